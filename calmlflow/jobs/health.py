"""How a store of job records is doing: what it holds, how old, how fast it grows, its gaps, and what is wrong."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.store import JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Store

DAY_S = 86_400
WINDOW_DAYS = 7
"""Days over which the quarantine's growth is judged, and the rate of ingest is told beside that of 30 days."""

RATE_DAYS = 14
GAP_WINDOW_DAYS = 180
"""How far back gaps are looked for."""

GAP_FACTOR = 3.0
"""A gap is longer than so many times the 99th percentile of the time between one finished job and the next, and than a
day: what is rare for this store, whether it gets ten jobs a day or ten thousand."""


@dataclass(frozen=True)
class Gap:
    """A stretch without a finished job, in epoch seconds; ``is_open``: it lasts until now."""

    start: int
    end: int
    is_open: bool = False

    @property
    def hours(self) -> float:
        return (self.end - self.start) / 3600


@dataclass
class Health:
    """Figures of a store at one moment.

    Attributes
    ----------
    store : str
    moment : int
        Epoch seconds.
    records, mosaics, predictions, answered : int
        ``answered``: records that a training has written its answers to.
    table : ndarray of int64, shape (4, 4)
        Records by instrument (rows, in the order of `INSTRUMENTS`) and memory bin.
    newest, newest_age_s : str, float
        Dataset that finished last, and how long ago; "" and None where there is none.
    stored_age_s, prediction_age_s : float
        Since ingest last stored a record, and since the last recorded prediction; None where there is none.
    in_future : int
        Records that finished later than now, by somebody's clock.
    quarantine : dict of str to int
        Kind -> open entries.
    examples : dict of str to str
        Kind -> the reason of one of them, the newest.
    quarantine_age_s : float
        Of the oldest open entry; None where there is none.
    added, resolved : int
        Entries that were opened, and that were closed, in the last `WINDOW_DAYS` days.
    stored_per_day : dict of str to int
        UTC date -> records stored, for the last `RATE_DAYS` days; a date without is 0.
    rate_week, rate_month : float
        Records stored a day, mean of the last 7 and 30 days.
    gaps : list of Gap
        The longest first.
    problems : list of str
        A sentence for everything that is wrong.
    """

    store: str
    moment: int
    records: int = 0
    mosaics: int = 0
    predictions: int = 0
    answered: int = 0
    table: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(INSTRUMENTS), len(BIN_NAMES)), dtype=int))
    newest: str = ""
    newest_age_s: float | None = None
    stored_age_s: float | None = None
    prediction_age_s: float | None = None
    in_future: int = 0
    quarantine: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    quarantine_age_s: float | None = None
    added: int = 0
    resolved: int = 0
    stored_per_day: dict[str, int] = field(default_factory=dict)
    rate_week: float = 0.0
    rate_month: float = 0.0
    gaps: list[Gap] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def by_instrument(self) -> dict[str, int]:
        """Instrument -> records."""
        return dict(zip(INSTRUMENTS.values(), self.table.sum(axis=1).tolist(), strict=True))

    def by_bin(self) -> dict[str, int]:
        """Name of a memory bin -> records."""
        return dict(zip(BIN_NAMES, self.table.sum(axis=0).tolist(), strict=True))

    def as_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        plain = {name: value for name, value in vars(self).items() if name not in ("table", "gaps", "problems")}
        rows = zip(INSTRUMENTS.values(), self.table.tolist(), strict=True)
        return {
            **plain,
            "table": {name: dict(zip(BIN_NAMES, row, strict=True)) for name, row in rows},
            "gaps": [vars(gap) for gap in self.gaps],
            "healthy": not self.problems,
            "problems": self.problems,
        }


def check_health(store: Store, max_age_s: float | None, now: float | None = None) -> Health:
    """Look at a store, in parts, so that memory does not grow with it.

    Unhealthy is a store without a record, one whose newest record is older than ``max_age_s``, and one whose quarantine
    grows faster than it is emptied: more entries were opened than closed in the last `WINDOW_DAYS` days. On the first
    day of a store that is so with the first entry: look at it, mend the cause and ingest with ``--retry-quarantine``,
    or leave it: what nobody adds to is not told again after these days.

    Parameters
    ----------
    store : Store
    max_age_s : float or None
        None: any age will do.
    now : float, optional
        Epoch seconds; default: the clock.
    """
    moment = int(time.time() if now is None else now)
    health = Health(store.name, moment)
    _look_at_jobs(store, health)
    _look_at_quarantine(store, health)
    health.mosaics = store.count(MOSAICS)
    newest_prediction = -np.inf
    for part in store.read(PREDICTIONS, ["timestamp"]):
        health.predictions += len(part)
        newest_prediction = max(newest_prediction, part["timestamp"].max())
    if health.predictions:
        health.prediction_age_s = float(max(moment - newest_prediction, 0))
    health.problems = _problems(health, max_age_s)
    return health


def _look_at_jobs(store: Store, health: Health) -> None:
    now = health.moment
    finished: list[NDArray[np.int64]] = []
    days: Counter[int] = Counter()
    newest, newest_stored = 0, 0
    for part in store.read(JOBS, ["ipst", "timestamp", "instr", "mem_bin", "trained_at", "stored_at"]):
        health.records += len(part)
        health.answered += int(part["trained_at"].notna().sum())
        known = part[part["instr"].between(0, 3).fillna(False) & part["mem_bin"].between(0, 3).fillna(False)]
        np.add.at(health.table, (known["instr"].to_numpy(dtype=int), known["mem_bin"].to_numpy(dtype=int)), 1)
        part = part[(part["timestamp"] > 0).fillna(False)]
        times = part["timestamp"].to_numpy(dtype=np.int64)
        health.in_future += int((times > now).sum())
        if len(times) and times.max() > newest:
            newest, health.newest = int(times.max()), str(part["ipst"].iloc[times.argmax()])
        # To the minute, each once: enough to see a gap of a day, in the memory of half a year at most.
        finished.append(np.unique(times[times > now - GAP_WINDOW_DAYS * DAY_S] // 60))
        stored = part["stored_at"].dropna().to_numpy(dtype=np.int64)
        newest_stored = max(newest_stored, int(stored.max(initial=0)))
        days.update((stored[stored > now - 31 * DAY_S] // DAY_S).tolist())
    if newest:
        health.newest_age_s = float(max(now - newest, 0))
    if newest_stored:
        health.stored_age_s = float(max(now - newest_stored, 0))
    today = now // DAY_S
    for day in range(today - RATE_DAYS + 1, today + 1):
        health.stored_per_day[str(np.datetime64(day, "D"))] = days[day]
    health.rate_week = sum(days[today - back] for back in range(WINDOW_DAYS)) / WINDOW_DAYS
    health.rate_month = sum(days[today - back] for back in range(30)) / 30
    minutes = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *finished]))
    health.gaps = find_gaps(minutes * 60, now)


def find_gaps(finished: NDArray[np.int64], now: int) -> list[Gap]:
    """Stretches without a finished job that are rare for these jobs; see `GAP_FACTOR`.

    Parameters
    ----------
    finished : ndarray of int64, shape (n,)
        When jobs finished, epoch seconds, ascending.
    now : int

    Returns
    -------
    list of Gap
        The longest first; the one from the newest job until now among them.
    """
    if len(finished) < 2:
        return []
    spacing = np.diff(finished)
    usual = max(GAP_FACTOR * float(np.quantile(spacing, 0.99, method="lower")), DAY_S)
    gaps = [Gap(int(finished[at]), int(finished[at + 1])) for at in np.flatnonzero(spacing > usual)]
    if now - finished[-1] > usual:
        gaps.append(Gap(int(finished[-1]), now, True))
    return sorted(gaps, key=lambda gap: gap.start - gap.end)


def _look_at_quarantine(store: Store, health: Health) -> None:
    since = health.moment - WINDOW_DAYS * DAY_S
    kinds: Counter[str] = Counter()
    oldest = np.inf
    seen: dict[str, int] = {}
    for part in store.read(QUARANTINE, ["kind", "reason", "first_seen", "last_seen", "resolved_at"]):
        health.added += int((part["first_seen"] > since).fillna(False).sum())
        health.resolved += int((part["resolved_at"] > since).fillna(False).sum())
        still = part[part["resolved_at"].isna()].sort_values("last_seen")
        kinds.update(still["kind"].fillna("unknown").tolist())
        oldest = min(oldest, still["first_seen"].min() if len(still) else np.inf)
        for kind, entry in still.groupby("kind").last().iterrows():
            if entry["last_seen"] >= seen.get(str(kind), 0):
                seen[str(kind)], health.examples[str(kind)] = entry["last_seen"], str(entry["reason"])
    health.quarantine = dict(kinds.most_common())
    if np.isfinite(oldest):
        health.quarantine_age_s = float(max(health.moment - oldest, 0))


def _problems(health: Health, max_age_s: float | None) -> list[str]:
    problems = []
    if not health.records:
        problems.append(f"{health.store} holds no job record; expected at least one: ingest finished jobs")
    elif max_age_s is not None and (health.newest_age_s is None or health.newest_age_s > max_age_s):
        age = "has no time" if health.newest_age_s is None else f"is {duration(health.newest_age_s)} old"
        problems.append(
            f"the newest record of {health.store} {age}; expected {duration(max_age_s)} at most: is ingest running?"
        )
    if health.added > health.resolved:
        problems.append(
            f"the quarantine of {health.store} grew by {health.added:,} entries and was emptied by {health.resolved:,} "
            f"in the last {WINDOW_DAYS} days; expected no more than are emptied: see the reasons, and ingest with "
            "--retry-quarantine once they are mended"
        )
    return problems


def duration(seconds: float) -> str:
    """A length of time for people: ``45 s``, ``3.2 h``, ``12.0 d``."""
    for unit, size in (("d", DAY_S), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
