"""Two parts of a store's health: how fast records come in, and what lies in the quarantine."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.jobs.silence import DAY_S
from calmlflow.jobs.stores.base import QUARANTINE, Store

WINDOW_DAYS = 7
"""Days over which the quarantine's growth is judged."""

RATE_DAYS = 14
"""Days whose stored records are told one by one."""

SKEW_S = DAY_S
"""Clocks, and slips of a time zone, may be so far ahead. What is later than that says nothing of an age: one record of
the year 2050 would keep every later silence from being noticed."""

# A name of nine letters is a word.
_DATASET = r"\b(?:(?=[a-z]*[0-9])[a-z][a-z0-9]{8}|(?:acs|wfc3)_[a-z0-9]{3}_[a-z0-9]{2}|skycell-[a-z0-9]+)\b"
_MAX_REASONS = 10_000


def newest_of(times: NDArray[np.float64], now: int) -> float:
    """The newest of some times that can be one, in epoch seconds; 0 where there is none."""
    return float(times[(times > 0) & (times <= now + SKEW_S)].max(initial=0))


def age_s(newest: float, now: int) -> int | None:
    """Seconds since a time; 0 where it is ahead of this clock, None where it is 0."""
    return max(int(now - newest), 0) if newest else None


# -- Rate of ingest -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """When records and mosaics were stored; one that was replaced counts when its successor came.

    Attributes
    ----------
    by_day : dict of str to int
        UTC date -> number, for today and the days before it, `RATE_DAYS` in all.
    last_day : int
        In the last 24 hours.
    per_day_7, per_day_30 : float
        Mean of the last 7, and 30, times 24 hours.
    newest_age_s : int, optional
        Since something was stored.
    """

    by_day: dict[str, int]
    last_day: int
    per_day_7: float
    per_day_30: float
    newest_age_s: int | None


class RateCounter:
    """Counts what was stored, part by part."""

    def __init__(self, now: int):
        self._now = now
        self._newest = 0.0
        self._by_day = np.zeros(RATE_DAYS, dtype=np.int64)
        self._since = dict.fromkeys((1, 7, 30), 0)

    def add(self, stored_at: pd.Series) -> None:
        """Count some, by their times in epoch seconds."""
        times = stored_at.to_numpy(dtype=np.float64, na_value=np.nan)
        times = times[times <= self._now + SKEW_S]
        self._newest = max(self._newest, newest_of(times, self._now))
        times = np.minimum(times, self._now)
        days_back = self._now // DAY_S - times // DAY_S
        self._by_day += np.bincount(days_back[days_back < RATE_DAYS].astype(int), minlength=RATE_DAYS)
        for days in self._since:
            self._since[days] += int((times > self._now - days * DAY_S).sum())

    def rate(self) -> Rate:
        """What was counted."""
        today = self._now // DAY_S
        by_day = {str(np.datetime64(today - back, "D")): int(self._by_day[back]) for back in reversed(range(RATE_DAYS))}
        return Rate(by_day, self._since[1], self._since[7] / 7, self._since[30] / 30, age_s(self._newest, self._now))


# -- Quarantine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Entries of the quarantine that are of one kind.

    Attributes
    ----------
    open : int
        Those not stored yet.
    alike : int
        Open ones that give the most frequent reason, names of datasets aside.
    dataset, reason : str
        One of these; empty where none is open.
    """

    open: int = 0
    alike: int = 0
    dataset: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Quarantine:
    """The quarantine at one moment.

    Attributes
    ----------
    kinds : dict of str to Kind
        The most frequent first; kinds of which all entries have been stored since are among them.
    oldest_age_s : int, optional
        Since the oldest open entry was first seen.
    added, resolved : int
        Entries first seen, and stored after all, in the last `WINDOW_DAYS` days.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    oldest_age_s: int | None = None
    added: int = 0
    resolved: int = 0

    @property
    def open(self) -> int:
        return sum(kind.open for kind in self.kinds.values())


def look_at_quarantine(store: Store, now: int) -> Quarantine:
    """Look at the quarantine, part by part; an entry seen first and stored within the window counts as both."""
    since = now - WINDOW_DAYS * DAY_S
    added = resolved = 0
    oldest = np.inf
    kinds: Counter[str] = Counter()
    reasons = pd.DataFrame(columns=["kind", "alike", "count", "dataset", "reason"])
    for part in store.read(QUARANTINE, ["ipst", "kind", "reason", "first_seen", "resolved_at"]):
        added += int((part["first_seen"] > since).fillna(False).sum())
        resolved += int((part["resolved_at"] > since).fillna(False).sum())
        part = part.fillna({"kind": "unknown", "reason": ""})
        kinds.update(dict.fromkeys(part["kind"].unique(), 0))
        still = part[part["resolved_at"].isna()]
        kinds.update(Counter(still["kind"]))
        oldest = min(oldest, still["first_seen"].to_numpy(dtype=np.float64, na_value=np.inf).min(initial=np.inf))
        alike = still["reason"].str.replace(_DATASET, "*", regex=True)
        more = still[["kind", "reason"]].assign(alike=alike, count=1, dataset=still["ipst"])
        reasons = _count_reasons(pd.concat([reasons, more]) if len(reasons) else more)
    most = reasons.drop_duplicates("kind").set_index("kind")
    examples = {str(kind): (int(row["count"]), row["dataset"], row["reason"]) for kind, row in most.iterrows()}
    return Quarantine(
        {kind: Kind(number, *examples.get(kind, (0, "", ""))) for kind, number in kinds.most_common()},
        age_s(oldest, now) if np.isfinite(oldest) else None,
        added,
        resolved,
    )


def _count_reasons(reasons: pd.DataFrame) -> pd.DataFrame:
    """Sum up reasons that are alike, the most frequent first; where all differ, not all are kept."""
    summed = reasons.groupby(["kind", "alike"], as_index=False).agg(
        count=("count", "sum"), dataset=("dataset", "first"), reason=("reason", "first")
    )
    return summed.sort_values("count", ascending=False, kind="stable").head(_MAX_REASONS)
