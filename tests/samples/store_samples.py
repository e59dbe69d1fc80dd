"""Rows of every table of a store, and what a store holds."""

import pandas as pd

from calmlflow.jobs.stores.base import HISTORY, JOBS, KILLED, MOSAICS, PREDICTIONS, QUARANTINE, Store, Table, conform

RECORD = {
    "ipst": "j8c601020",
    "timestamp": 1_620_740_441,
    **{"n_files": 5, "total_mb": 94.0, "drizcorr": 1, "pctecorr": 1, "crsplit": 2, "subarray": 0, "detector": 1},
    **{"dtype": 1, "instr": 0, "wallclock": 126.0, "memory": 1.17, "mem_bin": 0},
}
ANSWER = {"bin_pred": 1, "mem_pred": 1.5, "wall_pred": 130.25, "wc_mean": 120.0, "wc_std": 1 / 3, "wc_err": 1e-300}
ROWS: dict[Table, list[dict]] = {
    JOBS: [RECORD, {**RECORD, **ANSWER, "ipst": "j91jc4010", "split": "test", "trained_at": 1_700_000_000}],
    HISTORY: [{**RECORD, "digest": "a" * 16, "replaced_at": 5}, {**RECORD, "digest": "b" * 16}],
    MOSAICS: [{"ipst": "acs_8ph_01", "timestamp": 7, "wallclock": 3.5, "memory": 60.1, "disk": 12.25}],
    KILLED: [
        {
            **{name: cell for name, cell in RECORD.items() if name not in ("wallclock", "memory", "mem_bin")},
            **{
                "kind": "memory",
                "wallclock": 41.5,
                "memory": 1.792,
                "reason": "process_metrics.txt says exit status 137",
            },
        },
        {
            **{name: cell for name, cell in RECORD.items() if name not in ("memory", "mem_bin")},
            "timestamp": 7,
            "kind": "time",
        },
    ],
    QUARANTINE: [
        {"ipst": "x", "digest": "", "kind": "no dataset", "reason": 'a "quoted" text,\nin two lines', "first_seen": 1},
        {
            "ipst": "nan",
            "digest": "NA",
            "kind": "",
            "reason": "caf\u00e9 \u2713",
            "record": '{"a": "1\\t"}',
            "tries": 2,
        },
    ],
    PREDICTIONS: [
        {"ipst": "j8c601020", "timestamp": 1_700_000_000.123456, "n_files": 5.0, "bin_pred": 2, "version": "7"},
        {"ipst": "j8c601020", "timestamp": 1_700_000_001.0, "unseen": 1, "source": "policy"},
    ],
}


def contents(store: Store, table: Table) -> pd.DataFrame:
    """All rows of a table, in the order of their keys."""
    parts = [conform(pd.DataFrame(), table), *store.read(table)]
    return pd.concat(parts, ignore_index=True).sort_values(list(table.key)).reset_index(drop=True)


def plain(rows: pd.DataFrame) -> list[dict]:
    """Rows, with None for a missing cell."""
    found = rows.astype(object)
    return found.where(found.notna(), None).to_dict("records")


def frame(table: Table, rows: list[dict]) -> pd.DataFrame:
    return conform(pd.DataFrame(rows), table).sort_values(list(table.key)).reset_index(drop=True)


def record(ipst: str = "j8c601020", **cells: object) -> dict:
    return {**RECORD, "ipst": ipst, **cells}
