"""How finished jobs get into a store: the newer record wins, the older one stays in the history, and whatever cannot be
stored goes to the quarantine, each in one change with the rest.

Everything here may be done twice: a change that was cut short is repeated as a whole, and finds what is there already.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from calmlflow.jobs.records import COLUMNS, MAX_TIMESTAMP, SUPERSEDED, record_cells, sort_records
from calmlflow.jobs.store import (
    CHUNK_ROWS,
    HISTORY,
    JOBS,
    MOSAICS,
    QUARANTINE,
    TRAINING_COLUMNS,
    Store,
    Table,
    conform,
)

IMPOSSIBLE = "no valid record"
"""Kind of a quarantine entry whose figures break the schema or cannot be true."""

_MAX_RECORD = 10_000
# As long as a key of S3 may be.
_MAX_NAME = 1024


@dataclass(frozen=True)
class Batch:
    """Some finished jobs, as they were found.

    Attributes
    ----------
    jobs : DataFrame
        With the columns `COLUMNS` (or what `check_records` takes for them), perhaps `TRAINING_COLUMNS`; unchecked.
    mosaics : DataFrame
        With the columns of `MOSAICS`.
    refused : DataFrame
        Of what has no record: ``ipst`` (or whatever stands for it), ``timestamp`` (epoch seconds; may be missing),
        ``kind``, ``reason`` and, where one is there, ``record`` (JSON text).
    """

    jobs: pd.DataFrame = field(default_factory=pd.DataFrame)
    mosaics: pd.DataFrame = field(default_factory=pd.DataFrame)
    refused: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass
class Counts:
    """What became of a number of jobs; each is counted once.

    Attributes
    ----------
    stored, updated : int
        Were not there before; took the place of an older or different record, which is in the history.
    unchanged, older : int
        Were there already, to the last digit; came after a newer record, and are in the history alone.
    quarantined : int
    """

    stored: int = 0
    updated: int = 0
    unchanged: int = 0
    older: int = 0
    quarantined: int = 0

    def __iadd__(self, other: "Counts") -> "Counts":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def keep(store: Store, batch: Batch, source: str, now: float | None = None) -> Counts:
    """Put a batch into a store, in one change.

    Parameters
    ----------
    store : Store
    batch : Batch
    source : str
        Where the batch comes from, without secrets; kept with what is quarantined.
    now : float, optional
        Epoch seconds; default: the clock.

    Returns
    -------
    Counts
        ``total`` is the number of rows in the batch.
    """
    moment = int(time.time() if now is None else now)
    counts = Counts()
    with store.change():
        refused = batch.refused
        if len(batch.jobs):
            carried = [name for name in TRAINING_COLUMNS if name in batch.jobs]
            checked = sort_records(batch.jobs, source, carried)
            is_older = checked.quarantine["reason"].eq(SUPERSEDED)
            counts += _keep_newer(store, JOBS, checked.valid, moment)
            _remember(store, record_cells(checked.quarantine[is_older]), moment)
            counts.older += int(is_older.sum())
            refused = pd.concat([refused, _as_refused(checked.quarantine[~is_older])], ignore_index=True)
        if len(batch.mosaics):
            counts += _keep_newer(store, MOSAICS, batch.mosaics, moment)
        counts.quarantined += _quarantine(store, refused, source, moment)
    return counts


def write_back(store: Store, jobs: pd.DataFrame, trained_at: int) -> tuple[int, int]:
    """Write what a training found out about jobs into the store that they came from, all of it or nothing.

    Parameters
    ----------
    store : Store
    jobs : DataFrame of n jobs
        With the columns `COLUMNS` as they were trained on, and some of `TRAINING_COLUMNS`; the rest stay as they are.
    trained_at : int
        Time of the training, epoch seconds.

    Returns
    -------
    tuple of int
        Records that got it, and records left alone since they are gone or other ones by now.
    """
    jobs = jobs.assign(trained_at=trained_at)
    # A training of one network says nothing of what the others found out.
    found = [name for name in TRAINING_COLUMNS if name in jobs]
    jobs = conform(jobs, JOBS)
    told = [name for name in COLUMNS if name not in ("ipst", "timestamp")]
    written = 0
    with store.change():
        for start in range(0, len(jobs), CHUNK_ROWS):
            part = jobs.iloc[start : start + CHUNK_ROWS].reset_index(drop=True)
            there = _matching(store, JOBS, part["ipst"])
            # Records are read with total_mb rounded; what the store has may not be.
            seen = there[told].assign(total_mb=there["total_mb"].round())
            is_same = (part[told] == seen).fillna(False).all(axis=1)
            store.put(JOBS, there.assign(**{name: part[name] for name in found})[is_same])
            written += int(is_same.sum())
    return written, len(jobs) - written


# -- Records --------------------------------------------------------------------------------------------------------


def _keep_newer(store: Store, table: Table, rows: pd.DataFrame, now: int) -> Counts:
    """Put rows of distinct datasets where they are new, newer, or others of the same time."""
    rows = conform(rows.assign(stored_at=now), table)
    there = _matching(store, table, rows["ipst"])
    is_new = there["stored_at"].isna() & there["wallclock"].isna()
    told = [name for name in table.columns if name not in ("ipst", "stored_at", *TRAINING_COLUMNS)]
    is_same = ~is_new & (rows[told].eq(there[told]).fillna(False) | (rows[told].isna() & there[told].isna())).all(
        axis=1
    )
    is_older = ~is_new & ~is_same & (rows["timestamp"] < there["timestamp"]).fillna(False)
    replaces = ~is_new & ~is_same & ~is_older
    brings = pd.Series(False, index=rows.index)
    if table is JOBS:
        _remember(store, there[replaces], now)
        _remember(store, rows[is_older], now)
        # The same record may come with what another training found out; without, it leaves what is there.
        found = list(TRAINING_COLUMNS)
        brings = is_same & (rows[found].notna() & rows[found].ne(there[found]).fillna(True)).any(axis=1)
        rows.loc[brings, found] = rows.loc[brings, found].where(
            rows.loc[brings, found].notna(), there.loc[brings, found]
        )
        rows.loc[brings, "stored_at"] = there.loc[brings, "stored_at"]
    store.put(table, rows[is_new | replaces | brings])
    _resolve(store, rows.loc[~is_older, "ipst"], now)
    return Counts(
        stored=int(is_new.sum()),
        updated=int((replaces | brings).sum()),
        unchanged=int((is_same & ~brings).sum()),
        older=int(is_older.sum()),
    )


def _matching(store: Store, table: Table, names: pd.Series) -> pd.DataFrame:
    """The store's rows of some datasets, in their order; cells of those that it does not have are missing."""
    there = store.get(table, names.tolist()).set_index("ipst")
    return conform(there.reindex(names).reset_index(), table)


def _remember(store: Store, rows: pd.DataFrame, now: int) -> None:
    """Put records into the history; the same one twice is one."""
    if rows.empty:
        return
    rows = conform(rows, JOBS)
    texts = rows[list(COLUMNS)].astype("str").agg("|".join, axis=1)
    rows = rows.assign(digest=[_digest(text) for text in texts], replaced_at=now)
    store.put(HISTORY, conform(rows.drop_duplicates(["ipst", "digest"], keep="last"), HISTORY))


# -- Quarantine -----------------------------------------------------------------------------------------------------


def _quarantine(store: Store, refused: pd.DataFrame, source: str, now: int) -> int:
    """Open entries, or count another try on those that are open already."""
    if refused.empty:
        return 0
    rows = conform(refused.assign(source=source, first_seen=now, last_seen=now, tries=1), QUARANTINE)
    rows["ipst"] = rows["ipst"].fillna("").str.slice(0, _MAX_NAME)
    rows["digest"] = rows["digest"].fillna("")
    key = list(QUARANTINE.key)
    rows = rows.drop_duplicates(key, keep="last")
    there = store.get(QUARANTINE, rows["ipst"].tolist())
    there = there[there["resolved_at"].isna()].set_index(key)
    rows = rows.set_index(key)
    known = rows.index.intersection(there.index)
    rows.loc[known, "first_seen"] = there.loc[known, "first_seen"]
    rows.loc[known, "tries"] = there.loc[known, "tries"] + 1
    store.put(QUARANTINE, conform(rows.reset_index(), QUARANTINE))
    return len(refused)


def _resolve(store: Store, names: pd.Series, now: int) -> None:
    """Close the entries of datasets that have been stored."""
    entries = store.get(QUARANTINE, names.tolist())
    entries = entries[entries["resolved_at"].isna()]
    if len(entries):
        store.put(QUARANTINE, entries.assign(resolved_at=now))


def _as_refused(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table that are no valid records, as entries of the quarantine."""
    told = rows.drop(columns="reason")
    records = [json.dumps(row, default=str)[:_MAX_RECORD] for row in told.to_dict("records")]
    timestamps = pd.to_numeric(rows["timestamp"].astype("str"), errors="coerce") if "timestamp" in rows else np.nan
    return pd.DataFrame(
        {
            "ipst": rows["ipst"].astype("str").str.strip().str.lower().to_numpy(),
            "digest": [_digest(record) for record in records],
            # A time that is none is told in the record.
            "timestamp": pd.Series(timestamps, index=rows.index).where(lambda t: t.between(0, MAX_TIMESTAMP)).round(),
            "kind": IMPOSSIBLE,
            "reason": rows["reason"].to_numpy(),
            "record": records,
        }
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
