"""Check the health of a store of job records: counts, age of the newest record, growth of the quarantine."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.stores.base import JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Source

DAY_S = 86_400

WINDOW_DAYS = 7
"""Days over which stored records and the growth of the quarantine are counted."""

SKEW_S = DAY_S
"""Largest difference between clocks and time zones. Records further in the future count for no age: one of the year
2050 would hide every later silence."""


@dataclass(frozen=True)
class Kind:
    """Open quarantine entries of one kind, with the newest as an example."""

    open: int = 0
    dataset: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Health:
    """Figures of a store at one moment.

    Attributes
    ----------
    store : str
        Its name, without password.
    moment : int
        Epoch seconds.
    records, mosaics, predictions : int
    table : ndarray of int64, shape (4, 4)
        Records by instrument (rows, in the order of `INSTRUMENTS`) and memory bin.
    newest : str
        Dataset that finished last; empty where no record has a time.
    newest_age_s : int, optional
        Seconds since it finished; 0 for a record in the future.
    in_future, ignored : int
        Records that finished later than now, and those of them that count for no age (`SKEW_S`).
    stored_by_day : dict of str to int
        UTC date -> records and mosaics that were stored, for today and the days before, `WINDOW_DAYS` in all.
    quarantine_kinds : dict of str to Kind
        The most frequent kind first; kinds without open entries are included.
    quarantine_added_7d, quarantine_resolved_7d : int
        Entries that were first seen, and resolved, in the last `WINDOW_DAYS` days.
    problems : list of str
        One sentence for each fault that makes the store unhealthy.
    """

    store: str
    moment: int
    records: int
    mosaics: int
    predictions: int
    table: NDArray[np.int64]
    newest: str
    newest_age_s: int | None
    in_future: int
    ignored: int
    stored_by_day: dict[str, int]
    quarantine_kinds: dict[str, Kind]
    quarantine_added_7d: int
    quarantine_resolved_7d: int
    problems: list[str] = field(default_factory=list)

    @property
    def quarantine_open(self) -> int:
        return sum(kind.open for kind in self.quarantine_kinds.values())

    def by_instrument(self) -> dict[str, int]:
        """Instrument -> records."""
        return dict(zip(INSTRUMENTS.values(), self.table.sum(axis=1).tolist(), strict=True))

    def by_bin(self) -> dict[str, int]:
        """Name of a memory bin -> records."""
        return dict(zip(BIN_NAMES, self.table.sum(axis=0).tolist(), strict=True))

    def warnings(self) -> list[str]:
        """Sentences about faults that do not make the store unhealthy."""
        if not self.in_future:
            return []
        ignored = f", {self.ignored:,} of them by more than a day, which count for no age" if self.ignored else ""
        return [f"{self.in_future:,} records of {self.store} finished later than now{ignored}; expected equal clocks"]

    def as_json(self) -> dict[str, Any]:
        """All figures, for scripts."""
        rows = zip(INSTRUMENTS.values(), self.table.tolist(), strict=True)
        return {
            **{name: value for name, value in asdict(self).items() if name != "table"},
            "healthy": not self.problems,
            "warnings": self.warnings(),
            "newest": self.newest or None,
            "quarantine_open": self.quarantine_open,
            "records_by_instrument": self.by_instrument(),
            "records_by_bin": self.by_bin(),
            "records_by_instrument_and_bin": {name: dict(zip(BIN_NAMES, row, strict=True)) for name, row in rows},
        }


def check_health(store: Source, max_age_s: float | None, now: float | None = None) -> Health:
    """Check a store, part by part.

    A store is unhealthy without a record, when its newest record is older than ``max_age_s``, and when more quarantine
    entries were added than resolved in the last `WINDOW_DAYS` days. So one new entry is a problem on its first day; it
    ends when entries are stored (``ingest --retry-quarantine``, after a fix), or once none was added for a week.

    Parameters
    ----------
    store : Source
    max_age_s : float or None
        None: any age will do.
    now : float, optional
        Epoch seconds; default: the clock.

    Raises
    ------
    CalmlflowError
        The store cannot be read.
    """
    moment = int(time.time() if now is None else now)
    records = in_future = ignored = newest_time = 0
    newest = ""
    table = np.zeros((len(INSTRUMENTS), len(BIN_NAMES)), dtype=np.int64)
    edges = [np.arange(-0.5, count) for count in table.shape]
    stored = np.zeros(WINDOW_DAYS, dtype=np.int64)
    for part in store.read(JOBS, ["ipst", "timestamp", "instr", "mem_bin", "stored_at"]):
        records += len(part)
        # Records of a file are unchecked.
        cells = {name: _numbers(part[name]) for name in ("timestamp", "instr", "mem_bin", "stored_at")}
        table += np.histogram2d(cells["instr"], cells["mem_bin"], edges)[0].astype(np.int64)
        stored += _by_day(cells["stored_at"], moment)
        times = np.nan_to_num(cells["timestamp"])
        in_future += int((times > moment).sum())
        ignored += int((times > moment + SKEW_S).sum())
        times = np.where(times > moment + SKEW_S, 0, times)
        if len(times) and times.max() > newest_time:
            newest, newest_time = str(part["ipst"].iloc[times.argmax()]), int(times.max())
    mosaics = 0
    for part in store.read(MOSAICS, ["stored_at"]):
        mosaics += len(part)
        stored += _by_day(_numbers(part["stored_at"]), moment)
    today = moment // DAY_S
    health = Health(
        store=store.name,
        moment=moment,
        records=records,
        mosaics=mosaics,
        predictions=store.count(PREDICTIONS),
        table=table,
        newest=newest,
        newest_age_s=max(moment - newest_time, 0) if newest_time else None,
        in_future=in_future,
        ignored=ignored,
        stored_by_day={
            str(np.datetime64(today - back, "D")): int(stored[back]) for back in reversed(range(WINDOW_DAYS))
        },
        **_check_quarantine(store, moment - WINDOW_DAYS * DAY_S),
    )
    return replace(health, problems=_problems(health, max_age_s))


def _numbers(cells: pd.Series) -> NDArray[np.float64]:
    return pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _by_day(times: NDArray[np.float64], now: int) -> NDArray[np.int64]:
    """Number of times on each of the last `WINDOW_DAYS` UTC days, today first; clocks that are ahead count as today."""
    days_back = now // DAY_S - np.minimum(times[times <= now + SKEW_S], now) // DAY_S
    return np.bincount(days_back[days_back < WINDOW_DAYS].astype(int), minlength=WINDOW_DAYS)


def _check_quarantine(store: Source, since: int) -> dict[str, Any]:
    """The figures of `Health` about the quarantine; an entry may be both added and resolved."""
    added = resolved = 0
    counts: Counter[str] = Counter()
    examples: dict[str, tuple[int, str, str]] = {}
    for part in store.read(QUARANTINE, ["ipst", "kind", "reason", "first_seen", "last_seen", "resolved_at"]):
        added += int((part["first_seen"] > since).fillna(False).sum())
        resolved += int((part["resolved_at"] > since).fillna(False).sum())
        part = part.fillna({"kind": "unknown", "reason": "", "last_seen": 0})
        counts.update(dict.fromkeys(part["kind"].unique(), 0))
        still = part[part["resolved_at"].isna()]
        counts.update(Counter(still["kind"]))
        newest = still.sort_values("last_seen").drop_duplicates("kind", keep="last")
        for kind, *found in newest[["kind", "last_seen", "ipst", "reason"]].itertuples(index=False, name=None):
            examples[kind] = max(tuple(found), examples.get(kind, tuple(found)))
    kinds = {kind: Kind(number, *examples.get(kind, (0, "", ""))[1:]) for kind, number in counts.most_common()}
    return {"quarantine_kinds": kinds, "quarantine_added_7d": added, "quarantine_resolved_7d": resolved}


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
