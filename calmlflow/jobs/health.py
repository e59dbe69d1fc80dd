"""Check the health of a store of job records: counts, age of the newest record, kills, growth of the quarantine."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.hst.resources import KILLS
from calmlflow.jobs.killed import killed_jobs
from calmlflow.jobs.stores.base import JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Source, Table

DAY_S = 86_400

WINDOW_DAYS = 7
"""Days over which stored records and the growth of the quarantine are counted."""

# Clocks and time zones differ by a day at most. Records further in the future count for no age: one of the year 2050
# would hide that ingest has stopped.
_SKEW_S = DAY_S


@dataclass(frozen=True)
class Health:
    """Figures of a store at one moment; times are epoch seconds."""

    store: str
    moment: int
    records: int
    mosaics: int
    predictions: int
    # What killed jobs -> kills, all and those of the last seven days.
    killed: dict[str, int]
    killed_7d: dict[str, int]
    # Records by instrument (rows, in the order of `INSTRUMENTS`) and memory bin.
    table: NDArray[np.int64]
    # Dataset that finished last, and seconds since then; empty and None where no record has a time.
    newest: str
    newest_age_s: int | None
    # UTC date -> records and mosaics that were stored, today last.
    stored_by_day: dict[str, int]
    # Kind -> open entries, the most frequent first; kinds of which all entries are resolved are 0.
    quarantine_kinds: dict[str, int]
    quarantine_added_7d: int
    quarantine_resolved_7d: int
    # A sentence for each fault that makes the store unhealthy.
    problems: list[str] = field(default_factory=list)

    @property
    def quarantine_open(self) -> int:
        return sum(self.quarantine_kinds.values())

    def by_instrument(self) -> dict[str, int]:
        """Instrument -> records."""
        return dict(zip(INSTRUMENTS.values(), self.table.sum(axis=1).tolist(), strict=True))

    def by_bin(self) -> dict[str, int]:
        """Name of a memory bin -> records."""
        return dict(zip(BIN_NAMES, self.table.sum(axis=0).tolist(), strict=True))

    def as_json(self) -> dict[str, Any]:
        """All figures, for scripts."""
        rows = zip(INSTRUMENTS.values(), self.table.tolist(), strict=True)
        return {
            **{name: value for name, value in asdict(self).items() if name != "table"},
            "healthy": not self.problems,
            "newest": self.newest or None,
            "quarantine_open": self.quarantine_open,
            "records_by_instrument": self.by_instrument(),
            "records_by_bin": self.by_bin(),
            "records_by_instrument_and_bin": {name: dict(zip(BIN_NAMES, row, strict=True)) for name, row in rows},
        }


def check_health(store: Source, max_age_s: float | None, now: float | None = None) -> Health:
    """Check a store.

    It is unhealthy without a record, when its newest record is older than ``max_age_s`` (None: any age will do), and
    when more quarantine entries were added than resolved in the last `WINDOW_DAYS` days. So one new entry is a problem
    on its first day; it ends when entries are stored, or once none was added for a week.
    """
    moment = int(time.time() if now is None else now)
    jobs = _read(store, JOBS, ["ipst", "timestamp", "instr", "mem_bin", "stored_at"])
    mosaics = _read(store, MOSAICS, ["stored_at"])
    entries = _read(store, QUARANTINE, ["kind", "first_seen", "resolved_at"])

    edges = [np.arange(-0.5, len(names)) for names in (INSTRUMENTS, BIN_NAMES)]
    table, *_ = np.histogram2d(_numbers(jobs["instr"]), _numbers(jobs["mem_bin"]), edges)
    times = np.nan_to_num(_numbers(jobs["timestamp"]))
    times = np.where(times > moment + _SKEW_S, 0, times)
    newest_time = int(times.max(initial=0))

    today = moment // DAY_S
    stored_at = np.concatenate([_numbers(part["stored_at"]) for part in (jobs, mosaics)])
    days_back = today - np.minimum(stored_at[stored_at <= moment + _SKEW_S], moment) // DAY_S
    by_day = np.bincount(days_back[days_back < WINDOW_DAYS].astype(int), minlength=WINDOW_DAYS)

    kills = killed_jobs(store, moment)
    kinds = entries["resolved_at"].isna().groupby(entries["kind"].fillna("unknown")).sum()
    since = moment - WINDOW_DAYS * DAY_S
    is_recent = kills["timestamp"] > since
    health = Health(
        store=store.name,
        moment=moment,
        records=len(jobs),
        mosaics=len(mosaics),
        predictions=store.count(PREDICTIONS),
        killed={kind: int(kills["kind"].eq(kind).sum()) for kind in KILLS},
        killed_7d={kind: int(kills["kind"][is_recent].eq(kind).sum()) for kind in KILLS},
        table=table.astype(np.int64),
        newest=str(jobs["ipst"].iloc[times.argmax()]) if newest_time else "",
        newest_age_s=max(moment - newest_time, 0) if newest_time else None,
        stored_by_day={
            str(np.datetime64(today - back, "D")): int(by_day[back]) for back in reversed(range(WINDOW_DAYS))
        },
        quarantine_kinds={str(kind): int(count) for kind, count in kinds.sort_values(ascending=False).items()},
        quarantine_added_7d=int((_numbers(entries["first_seen"]) > since).sum()),
        quarantine_resolved_7d=int((_numbers(entries["resolved_at"]) > since).sum()),
    )
    return replace(health, problems=_problems(health, max_age_s))


def _read(store: Source, table: Table, columns: Sequence[str]) -> pd.DataFrame:
    parts = list(store.read(table, columns))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))


def _numbers(cells: pd.Series) -> NDArray[np.float64]:
    """Numbers, NaN where a cell is none: records of a file are unchecked."""
    return pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _problems(health: Health, max_age_s: float | None) -> list[str]:
    problems = []
    if not health.records:
        problems.append(f"{health.store} holds no job record; expected at least one: ingest finished jobs")
    elif max_age_s is not None and (health.newest_age_s is None or health.newest_age_s > max_age_s):
        found = (
            f"no record of {health.store} has a time"
            if health.newest_age_s is None
            else f"the newest record of {health.store} is {duration(health.newest_age_s)} old"
        )
        problems.append(f"{found}; expected {duration(max_age_s)} at most: does ingest run?")
    added, resolved = health.quarantine_added_7d, health.quarantine_resolved_7d
    if added > resolved:
        problems.append(
            f"the quarantine of {health.store} grows: {added:,} entries added and {resolved:,} resolved in the last "
            f"{WINDOW_DAYS} days; expected no more added than resolved: see their reasons, and ingest with "
            "--retry-quarantine after a fix"
        )
    return problems


def duration(seconds: float) -> str:
    """A length of time for people: ``45 s``, ``3.2 h``, ``12.0 d``."""
    for unit, size in (("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
