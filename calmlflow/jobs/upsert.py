"""How finished jobs get into a store: the newer record wins, the older one stays in the history, and whatever cannot be
stored goes to the quarantine, each in one change with the rest.

Everything here may be done twice: a change that was cut short is repeated as a whole, and finds what is there already.
"""

import time
from dataclasses import dataclass, field

import pandas as pd

from calmlflow.jobs.quarantine import as_entries, as_refused, close_entries, digest_of, open_entries
from calmlflow.jobs.records import COLUMNS, SUPERSEDED, record_cells, sort_mosaics, sort_records
from calmlflow.jobs.stores.base import (
    CHUNK_ROWS,
    HISTORY,
    JOBS,
    MOSAICS,
    TRAINING_COLUMNS,
    Store,
    Table,
    conform,
)


@dataclass(frozen=True)
class Batch:
    """Some finished jobs, as they were found.

    Attributes
    ----------
    jobs : DataFrame
        With the columns `COLUMNS` (or what `check_records` takes for them), perhaps `TRAINING_COLUMNS`; unchecked.
    mosaics : DataFrame
        With the columns of `MOSAICS`; unchecked, each dataset once.
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
        Were there already, to the last digit; came after a newer record, and are in the history alone
        (mosaics have none).
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


def keep(store: Store, batch: Batch, source: str, now: float | None = None, alone: bool = False) -> Counts:
    """Put a batch into a store, in one change.

    Parameters
    ----------
    store : Store
    batch : Batch
    source : str
        Where the batch comes from, without secrets; kept with what is quarantined.
    now : float, optional
        Epoch seconds at which the batch was read; default: the clock.
    alone : bool
        Each row is all that the source has of its dataset, as in a bucket.

    Returns
    -------
    Counts
        ``total`` is the number of rows in the batch.
    """
    moment = int(time.time() if now is None else now)
    counts = Counts()
    refused, valid, older = batch.refused, pd.DataFrame(), pd.DataFrame()
    if len(batch.jobs):
        carried = [name for name in TRAINING_COLUMNS if name in batch.jobs]
        checked = sort_records(batch.jobs.assign(**_answers_in(batch.jobs, carried)), source, carried)
        is_older = checked.quarantine["reason"].eq(SUPERSEDED)
        valid, older = checked.valid, checked.quarantine[is_older]
        refused = pd.concat([refused, as_refused(checked.quarantine[~is_older], alone)], ignore_index=True)
    mosaics = batch.mosaics
    if len(mosaics):
        checked = sort_mosaics(mosaics)
        mosaics = checked.valid
        refused = pd.concat([refused, as_refused(checked.quarantine, alone)], ignore_index=True)
    entries = as_entries(refused, source, moment)
    with store.change():
        if len(valid):
            counts += _keep_older(store, older, valid, moment)
            counts += _keep_newer(store, JOBS, valid, source, moment, entries)
        if len(mosaics):
            counts += _keep_newer(store, MOSAICS, mosaics, source, moment, entries)
        open_entries(store, entries)
    counts.quarantined += len(refused)
    return counts


def write_back(store: Store, jobs: pd.DataFrame, trained_at: int) -> tuple[int, int]:
    """Write what a training found out about jobs into the store that they came from, in one change.

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
        Records that got it, and records left alone: gone, other ones by now, or with the answers of a later training.
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
            there = _in_order(store.get(JOBS, part["ipst"].tolist()), JOBS, part["ipst"])
            # Records are read with total_mb rounded; what the store has may not be.
            seen = there[told].assign(total_mb=there["total_mb"].round())
            is_same = (part[told] == seen).fillna(False).all(axis=1)
            # A later training has the last word.
            is_same &= (there["trained_at"].fillna(-1) <= trained_at).astype(bool)
            store.put(JOBS, there.assign(**{name: part[name] for name in found})[is_same])
            written += int(is_same.sum())
    return written, len(jobs) - written


def _answers_in(jobs: pd.DataFrame, names: list[str]) -> dict[str, pd.Series]:
    """What trainings found out, as far as it is of its kind: a bad cell there costs no record."""
    numbers = {name: pd.to_numeric(jobs[name], errors="coerce") for name in names if TRAINING_COLUMNS[name] != "text"}
    return {
        name: cells.where(cells.mod(1).eq(0)) if TRAINING_COLUMNS[name] == "whole" else cells
        for name, cells in numbers.items()
    }


# -- Records --------------------------------------------------------------------------------------------------------


def _keep_newer(store: Store, table: Table, rows: pd.DataFrame, source: str, now: int, refused: pd.DataFrame) -> Counts:
    """Put rows of distinct datasets where they are new, newer, or others of the same time."""
    rows = conform(rows.assign(stored_at=now), table)
    known = store.get(table, rows["ipst"].tolist())
    is_new = ~rows["ipst"].isin(known["ipst"])
    there = _in_order(known, table, rows["ipst"])
    is_same = ~is_new & _is_same(rows, there, table)
    is_older = ~is_new & ~is_same & (rows["timestamp"] < there["timestamp"]).fillna(False)
    replaces = ~is_new & ~is_same & ~is_older
    brings = pd.Series(False, index=rows.index)
    if table is JOBS:
        _remember(store, there[replaces], now)
        _remember(store, rows[is_older], now)
        answered = _answered(there, rows)
        brings = is_same & ~_is_equal(answered, there[list(TRAINING_COLUMNS)]).all(axis=1)
        rows[list(TRAINING_COLUMNS)] = rows[list(TRAINING_COLUMNS)].mask(brings, answered)
        rows["stored_at"] = rows["stored_at"].mask(brings, there["stored_at"])
    store.put(table, rows[is_new | replaces | brings])
    close_entries(store, rows[~is_older], source, now, refused)
    return Counts(
        stored=int(is_new.sum()),
        updated=int((replaces | brings).sum()),
        unchanged=int((is_same & ~brings).sum()),
        older=int(is_older.sum()),
    )


def _keep_older(store: Store, older: pd.DataFrame, valid: pd.DataFrame, now: int) -> Counts:
    """Remember valid records that a newer one of their own batch took the place of; the same one twice is no change."""
    rows = conform(record_cells(older).assign(total_mb=lambda cells: cells["total_mb"].round()), JOBS)
    winners = _in_order(valid, JOBS, rows["ipst"])
    is_same = _is_same(rows, winners, JOBS)
    _remember(store, rows[~is_same], now)
    return Counts(unchanged=int(is_same.sum()), older=int((~is_same).sum()))


def _in_order(there: pd.DataFrame, table: Table, names: pd.Series) -> pd.DataFrame:
    """Rows of some datasets in the order of these; cells of those that are not there are missing."""
    return conform(there.set_index("ipst").reindex(names).reset_index(), table)


def _is_same(rows: pd.DataFrame, there: pd.DataFrame, table: Table) -> pd.Series:
    """Whether rows tell the same of their jobs; what is read has a rounded total_mb, what a store has may not."""
    told = [name for name in table.columns if name not in ("ipst", "stored_at", *TRAINING_COLUMNS)]
    if "total_mb" in told:
        there = there.assign(total_mb=there["total_mb"].round())
    return _is_equal(rows[told], there[told]).all(axis=1)


def _is_equal(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Cell by cell; missing ones equal each other."""
    return one.eq(other).fillna(False).astype(bool) | (one.isna() & other.isna())


def _answered(there: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What trainings found out about the same records: the later training's word, and the other's where it has none."""
    is_later = there["trained_at"].fillna(-1) > rows["trained_at"].fillna(-1)
    return pd.DataFrame(
        {
            name: there[name].where(is_later & there[name].notna() | rows[name].isna(), rows[name])
            for name in TRAINING_COLUMNS
        }
    )


def _remember(store: Store, rows: pd.DataFrame, now: int) -> None:
    """Put records into the history; the same one twice is one, with what trainings found out about either."""
    if rows.empty:
        return
    rows = conform(rows, JOBS)
    texts = rows[list(COLUMNS)].astype("str").fillna("").agg("|".join, axis=1)
    rows = rows.assign(digest=[digest_of(text) for text in texts], replaced_at=now)
    rows = rows.drop_duplicates(["ipst", "digest"], keep="last").reset_index(drop=True)
    merge_history(store, conform(rows, HISTORY))


def merge_history(store: Store, rows: pd.DataFrame) -> None:
    """Add rows to the history; of those that it has, the first time stays, and what trainings found out."""
    key = list(HISTORY.key)
    known = store.get(HISTORY, rows["ipst"].tolist()).set_index(key)
    there = conform(known.reindex(pd.MultiIndex.from_frame(rows[key])).reset_index(), HISTORY)
    answered = _answered(there, rows)
    first = {name: there[name].fillna(rows[name]) for name in ("stored_at", "replaced_at")}
    store.put(HISTORY, rows.assign(**answered, **first))
