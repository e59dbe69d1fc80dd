"""How a store of job records is doing: what it holds, how old, how fast it grows, its gaps, and what is wrong."""

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.health_parts import (
    SKEW_S,
    WINDOW_DAYS,
    Quarantine,
    Rate,
    RateCounter,
    age_s,
    look_at_quarantine,
    newest_of,
)
from calmlflow.jobs.silence import DAY_S, GAP_DAYS, Silence, duration, find_silence
from calmlflow.jobs.stores.base import JOBS, MOSAICS, PREDICTIONS, Store


@dataclass(frozen=True)
class Health:
    """Figures of a store at one moment.

    Attributes
    ----------
    store : str
        Its name, without password.
    moment : int
        Epoch seconds.
    records, answered, mosaics, predictions : int
        ``answered``: records that a training has written its answers to.
    table : ndarray of int64, shape (4, 4)
        Records by instrument (rows, in the order of `INSTRUMENTS`) and memory bin.
    newest : str
        Dataset that finished last; empty where no record tells a time.
    newest_age_s, prediction_age_s : int, optional
        Since it finished, and since the last recorded prediction; 0 for what is ahead of this clock.
    in_future, unbelievable : int
        Records that finished later than now, and those of them by more than `SKEW_S`, which count for no age.
    rate : Rate
    silence : Silence
    quarantine : Quarantine
    problems : list of str
        A sentence for everything that makes the store unhealthy.
    """

    store: str
    moment: int
    records: int
    answered: int
    mosaics: int
    predictions: int
    table: NDArray[np.int64]
    newest: str
    newest_age_s: int | None
    prediction_age_s: int | None
    in_future: int
    unbelievable: int
    rate: Rate
    silence: Silence
    quarantine: Quarantine
    problems: list[str] = field(default_factory=list)

    def by_instrument(self) -> dict[str, int]:
        """Instrument -> records."""
        return dict(zip(INSTRUMENTS.values(), self.table.sum(axis=1).tolist(), strict=True))

    def by_bin(self) -> dict[str, int]:
        """Name of a memory bin -> records."""
        return dict(zip(BIN_NAMES, self.table.sum(axis=0).tolist(), strict=True))

    def warnings(self) -> list[str]:
        """What looks wrong, and makes nothing unhealthy."""
        if not self.in_future:
            return []
        ignored = f", {self.unbelievable:,} of them by more than a day, which count for no age" * bool(
            self.unbelievable
        )
        return [
            f"{self.in_future:,} records of {self.store} finished later than now{ignored}; expected clocks that agree"
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it, for scripts: times in epoch seconds, and units in the names where there are any."""
        rows = zip(INSTRUMENTS.values(), self.table.tolist(), strict=True)
        return {
            "store": self.store,
            "moment": self.moment,
            "healthy": not self.problems,
            "problems": self.problems,
            "warnings": self.warnings(),
            "records": self.records,
            "records_by_instrument": self.by_instrument(),
            "records_by_bin": self.by_bin(),
            "records_by_instrument_and_bin": {name: dict(zip(BIN_NAMES, row, strict=True)) for name, row in rows},
            "answered": self.answered,
            "mosaics": self.mosaics,
            "newest": self.newest or None,
            "newest_age_s": self.newest_age_s,
            "in_future": self.in_future,
            "stored_age_s": self.rate.newest_age_s,
            "stored_by_day": self.rate.by_day,
            "stored_last_day": self.rate.last_day,
            "stored_per_day_7d": self.rate.per_day_7,
            "stored_per_day_30d": self.rate.per_day_30,
            "gap_limit_s": self.silence.limit_s,
            "gaps": [asdict(gap) for gap in self.silence.gaps],
            "days_without_job": self.silence.days,
            "runs_of_days_without_job": self.silence.runs,
            "longest_run_days": self.silence.longest_run,
            "quarantine_open": self.quarantine.open,
            "quarantine_kinds": {name: asdict(kind) for name, kind in self.quarantine.kinds.items()},
            "quarantine_oldest_age_s": self.quarantine.oldest_age_s,
            "quarantine_added_7d": self.quarantine.added,
            "quarantine_resolved_7d": self.quarantine.resolved,
            "predictions": self.predictions,
            "prediction_age_s": self.prediction_age_s,
        }


def check_health(store: Store, max_age_s: float | None, now: float | None = None) -> Health:
    """Look at a store, part by part: memory does not grow with it.

    Unhealthy is a store without a record, one whose newest record is older than ``max_age_s``, and one whose quarantine
    grows faster than it is emptied: more entries came in than were stored after all in the last `WINDOW_DAYS` days. So
    one entry alarms on the first day, be it among ten thousand jobs that were stored: a list of what went wrong is of
    use only if somebody looks at it. The alarm ends when the entries are stored (``ingest --retry-quarantine``, after a
    fix), or by itself once nothing has been added for `WINDOW_DAYS` days: an idle quarantine does not grow.

    Parameters
    ----------
    store : Store
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
    found: dict[str, Any] = {**_look_at_records(store, moment), "quarantine": look_at_quarantine(store, moment)}
    predictions, newest = 0, 0.0
    for part in store.read(PREDICTIONS, ["timestamp"]):
        predictions += len(part)
        newest = max(newest, newest_of(part["timestamp"].to_numpy(dtype=np.float64), moment))
    health = Health(
        store=store.name,
        moment=moment,
        predictions=predictions,
        prediction_age_s=age_s(newest, moment),
        **found,
    )
    return replace(health, problems=_problems(health, max_age_s))


def _look_at_records(store: Store, now: int) -> dict[str, Any]:
    """The figures of `Health` that are those of jobs and mosaics."""
    records = answered = in_future = unbelievable = 0
    table = np.zeros((len(INSTRUMENTS), len(BIN_NAMES)), dtype=np.int64)
    since = now - GAP_DAYS * DAY_S
    # A cell a second: exact, sorted without sorting, and as large for a hundred million records.
    is_finished = np.zeros(now - since + 1, dtype=bool)
    newest, newest_time, before = "", 0, 0
    ingested = RateCounter(now)
    answers = ["bin_pred", "mem_pred", "wall_pred"]
    for part in store.read(JOBS, ["ipst", "timestamp", "instr", "mem_bin", "stored_at", *answers]):
        records += len(part)
        answered += int(part[answers].notna().any(axis=1).sum())
        # Records of a file are as unchecked as the file.
        numbers = ("timestamp", "instr", "mem_bin", "stored_at")
        part = part.assign(**{name: pd.to_numeric(part[name], errors="coerce") for name in numbers})
        table += _cross_table(part)
        ingested.add(part["stored_at"])
        times = part["timestamp"].fillna(0).clip(-1, 2**53).to_numpy(dtype=np.int64)
        in_future += int((times > now).sum())
        unbelievable += int((times > now + SKEW_S).sum())
        times = np.where(times > now + SKEW_S, 0, times)
        if len(times) and times.max() > newest_time:
            newest, newest_time = str(part["ipst"].iloc[times.argmax()]), int(times.max())
        times = times[times > 0]
        is_finished[np.minimum(times[times >= since], now) - since] = True
        before = max(before, int(times[times < since].max(initial=0)))
    mosaics = 0
    for part in store.read(MOSAICS, ["stored_at"]):
        mosaics += len(part)
        ingested.add(part["stored_at"])
    finished = np.flatnonzero(is_finished) + since
    return {
        "records": records,
        "answered": answered,
        "mosaics": mosaics,
        "table": table,
        "newest": newest,
        "newest_age_s": age_s(newest_time, now),
        "in_future": in_future,
        "unbelievable": unbelievable,
        "rate": ingested.rate(),
        "silence": find_silence(np.concatenate([[before], finished]) if before else finished, now),
    }


def _cross_table(part: pd.DataFrame) -> NDArray[np.int64]:
    instruments, bins = (part[name].fillna(-1).clip(-1, 99).to_numpy(dtype=np.int64) for name in ("instr", "mem_bin"))
    shape = (len(INSTRUMENTS), len(BIN_NAMES))
    known = (instruments >= 0) & (instruments < shape[0]) & (bins >= 0) & (bins < shape[1])
    cells = instruments[known] * shape[1] + bins[known]
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def _problems(health: Health, max_age_s: float | None) -> list[str]:
    problems = []
    if not health.records:
        problems.append(f"{health.store} holds no job record; expected at least one: ingest finished jobs")
    elif max_age_s is not None and (health.newest_age_s is None or health.newest_age_s > max_age_s):
        found = (
            f"no record of {health.store} tells when its job finished"
            if health.newest_age_s is None
            else f"the newest record of {health.store} is {duration(health.newest_age_s)} old"
        )
        problems.append(f"{found}; expected {duration(max_age_s)} at most: does ingest run?")
    quarantine = health.quarantine
    if quarantine.added > quarantine.resolved:
        problems.append(
            f"the quarantine of {health.store} grows faster than it is emptied: {quarantine.added:,} entries in and "
            f"{quarantine.resolved:,} out in the last {WINDOW_DAYS} days; expected no more in than out: "
            "see their reasons, and ingest with --retry-quarantine after a fix"
        )
    return problems
