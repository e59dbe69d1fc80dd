"""The job record: its schema, and what becomes of records that break it."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENT_CODES
from calmlflow.hst.errors import InputError
from calmlflow.hst.ladder import needed_bin

MIN_MEMORY_GB = 0.2
"""The calibration container alone needs more."""

_NAME = "[" + "".join(INSTRUMENT_CODES) + "][a-z0-9]{8}"
_MAX_COUNT = 1_000_000

SCHEMA = pa.DataFrameSchema(
    {
        "ipst": pa.Column(str, pa.Check.str_matches(f"^{_NAME}$"), unique=True),
        "timestamp": pa.Column("int64", pa.Check.ge(0)),
        "n_files": pa.Column("int64", pa.Check.in_range(1, _MAX_COUNT)),
        "total_mb": pa.Column("float64", pa.Check.in_range(0, 1e9)),
        **{name: pa.Column("int64", pa.Check.isin([0, 1])) for name in ("drizcorr", "pctecorr")},
        "crsplit": pa.Column("int64", pa.Check.isin([0, 1, 2])),
        **{name: pa.Column("int64", pa.Check.isin([0, 1])) for name in ("subarray", "detector", "dtype")},
        "instr": pa.Column("int64", pa.Check.isin([0, 1, 2, 3])),
        "wallclock": pa.Column("float64", pa.Check.in_range(1, 1e7)),
        "memory": pa.Column("float64", pa.Check.in_range(MIN_MEMORY_GB, 1e4)),
        "mem_bin": pa.Column("int64", pa.Check.isin([0, 1, 2, 3])),
    },
    index=pa.Index("int64"),
    ordered=True,
    strict=True,
)
"""Schema of valid records: ``total_mb`` in whole megabytes, ``wallclock`` in seconds, ``memory`` in GB."""

COLUMNS = tuple(SCHEMA.columns)

_ALLOWED = {
    **dict.fromkeys(("drizcorr", "pctecorr", "subarray", "detector", "dtype"), (0, 1)),
    "crsplit": (0, 1, 2),
    "instr": (0, 1, 2, 3),
    "mem_bin": (0, 1, 2, 3),
}
_RANGES = {
    "timestamp": (0, 2**53, "epoch seconds"),
    "n_files": (1, _MAX_COUNT, "a whole number, 1 or more"),
    "total_mb": (0, 1e9, "megabytes, 0 or more"),
    "wallclock": (1, 1e7, "seconds, 1 or more"),
    "memory": (MIN_MEMORY_GB, 1e4, f"GB, {MIN_MEMORY_GB} or more: the container alone needs that"),
}


@dataclass(frozen=True)
class Checked:
    """Records told apart.

    Attributes
    ----------
    valid : DataFrame
        Columns `COLUMNS`, in the order of the input, with a fresh index.
    quarantine : DataFrame
        The other records as they came, and a column ``reason``.
    """

    valid: pd.DataFrame
    quarantine: pd.DataFrame

    def reasons(self) -> dict[str, int]:
        """How many records are in quarantine for each rule, most frequent first."""
        rules = (
            self.quarantine["reason"]
            .str.split("; ")
            .explode()
            .str.replace(r" is .*? expected", ": expected", regex=True)
        )
        return {str(rule): int(count) for rule, count in rules.value_counts().items()}


def check_records(frame: pd.DataFrame, source: str) -> Checked:
    """Tell valid records from those that break the schema or cannot be true.

    ``total_mb`` is rounded; ``mem_bin`` is computed where the column is absent, and ``timestamp`` is 0 there. Columns
    that are not in `COLUMNS` are left out of the valid records. Of several records of one dataset the newest is valid,
    and the last one among equally new ones.

    Parameters
    ----------
    frame : DataFrame
    source : str
        Where the records come from, for errors.

    Raises
    ------
    InputError
        A needed column is missing, or no record is valid.
    """
    missing = [name for name in COLUMNS if name not in frame.columns and name not in ("timestamp", "mem_bin")]
    if missing:
        raise InputError(f"{source} has no column {', '.join(missing)}; expected the columns {', '.join(COLUMNS)}")
    names = frame["ipst"].astype(str).str.strip().str.lower()
    checked = pd.DataFrame({"ipst": names.to_numpy(dtype=object)}, index=frame.index)
    problems: list[tuple[str, NDArray[np.bool_]]] = []

    known_name = names.str.fullmatch(_NAME).to_numpy(dtype=bool)
    problems.append(("ipst is {ipst}, expected an ipppssoot of " + ", ".join(INSTRUMENT_CODES), ~known_name))
    for name in COLUMNS[1:]:
        if name not in frame.columns:
            continue
        # Text such as "1e3" is a number here, a date or a boolean is not.
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        if name == "total_mb":
            values = np.round(values)
        checked[name] = values
        if name in _ALLOWED:
            bad = ~np.isin(values, _ALLOWED[name])
            expected = f"one of {', '.join(map(str, _ALLOWED[name]))}"
        else:
            low, high, expected = _RANGES[name]
            bad = ~((values >= low) & (values <= high))
            if name in ("n_files", "timestamp"):
                bad |= values != np.floor(values)
        problems.append((f"{name} is {{{name}}}, expected {expected}", bad))
    if "timestamp" not in checked:
        checked.insert(1, "timestamp", 0.0)
    memory = checked["memory"].to_numpy()
    bins = needed_bin(np.where(np.isfinite(memory) & (memory >= 0), memory, 0.0))
    if "mem_bin" not in checked:
        checked["mem_bin"] = bins.astype(float)
    sound = ~np.any([bad for _, bad in problems], axis=0)
    letters, ends = names.str[:1], names.str[-1:]
    for name, truth in (
        ("instr", letters.map(INSTRUMENT_CODES).to_numpy(dtype=float, na_value=np.nan)),
        ("dtype", (ends == "0").to_numpy(dtype=float)),
        ("mem_bin", bins.astype(float)),
    ):
        of = "memory" if name == "mem_bin" else "the dataset name"
        problems.append((f"{name} is {{{name}}}, expected what {of} says", sound & (checked[name].to_numpy() != truth)))
    sound = ~np.any([bad for _, bad in problems], axis=0)
    problems.append(("an older record of the dataset, expected the newest only", sound & ~_newest(checked, sound)))

    reasons = _reasons(frame, problems)
    good = reasons == ""
    checked = checked[good].reset_index(drop=True)
    if checked.empty:
        first = f"; the first reason: {reasons[0]}" if len(reasons) else ""
        raise InputError(f"{source} holds no valid job record among {len(frame)}{first}")
    valid = checked[list(COLUMNS)].astype({name: str(column.dtype) for name, column in SCHEMA.columns.items()})
    quarantine = frame[~good].assign(reason=reasons[~good]).reset_index(drop=True)
    return Checked(SCHEMA.validate(valid), quarantine)


def _newest(checked: pd.DataFrame, sound: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Among sound records, those that are the newest of their dataset."""
    found = checked.loc[sound, ["ipst", "timestamp"]].reset_index(drop=True)
    last = found.sort_values("timestamp", kind="stable").drop_duplicates("ipst", keep="last").index
    newest = np.zeros(len(checked), dtype=bool)
    newest[np.flatnonzero(sound)[last]] = True
    return newest


def _reasons(frame: pd.DataFrame, problems: list[tuple[str, NDArray[np.bool_]]]) -> NDArray[np.object_]:
    """All reasons of each record, joined; empty for a valid one."""
    reasons = np.full(len(frame), "", dtype=object)
    for template, bad in problems:
        if not bad.any():
            continue
        name = template.partition(" ")[0]
        shown = "{" + name + "}"
        before, _, after = template.partition(shown)
        values = frame[name].astype(str).str.slice(0, 40).to_numpy(dtype=object) if shown in template else None
        for position in np.flatnonzero(bad):
            text = before + values[position] + after if values is not None else template
            reasons[position] = f"{reasons[position]}; {text}" if reasons[position] else text
    return reasons
