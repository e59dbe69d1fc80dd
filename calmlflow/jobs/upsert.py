"""Upsert finished jobs: newer records win, older ones go to the history, invalid ones to the quarantine."""

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.killed import keep_killed
from calmlflow.jobs.quarantine import as_entries, as_refused, close_entries, digest_of, open_entries
from calmlflow.jobs.records import COLUMNS, SUPERSEDED, record_cells, sort_killed, sort_mosaics, sort_records
from calmlflow.jobs.stores.base import (
    CHUNK_ROWS,
    HISTORY,
    JOBS,
    KILLED,
    MOSAICS,
    TRAINING_COLUMNS,
    Store,
    Table,
    conform,
    in_order,
)
from calmlflow.jobs.stores.open import open_store

_ATTEMPTS = 20


@dataclass(frozen=True)
class Batch:
    """Finished jobs as they were read, unchecked."""

    # With the columns `COLUMNS`, and any of `TRAINING_COLUMNS`.
    jobs: pd.DataFrame = field(default_factory=pd.DataFrame)
    # With the columns of `MOSAICS`, each dataset once.
    mosaics: pd.DataFrame = field(default_factory=pd.DataFrame)
    # With the columns of `KILLED`.
    killed: pd.DataFrame = field(default_factory=pd.DataFrame)
    # Jobs without a record: ``ipst``, ``kind`` and ``reason``; where known ``timestamp`` and ``record`` (JSON text).
    refused: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Counts:
    """Number of jobs by outcome; each job is counted once."""

    # New datasets.
    stored: int = 0
    # Replaced an older or different record, which is in the history.
    updated: int = 0
    # Equal to the record that is there.
    unchanged: int = 0
    # Older than the record that is there; kept in the history only (mosaics have none).
    older: int = 0
    quarantined: int = 0
    # Of these, those whose ``mem_bin`` was not the one that their memory needs.
    mended: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def outcomes(self) -> dict[str, int]:
        return {name: number for name, number in vars(self).items() if name != "mended"}

    @property
    def total(self) -> int:
        return sum(self.outcomes().values())

    def __str__(self) -> str:
        mended = f" (mem_bin of {self.mended:,} mended: it follows from memory)" if self.mended else ""
        return ", ".join(f"{number:,} {name}" for name, number in self.outcomes().items() if number) + mended


def upsert(store: Store, batch: Batch, source: str, now: float | None = None, alone: bool = False) -> Counts:
    """Put a batch into a store, in one change; kills that are valid are not counted.

    ``source`` is its origin, which quarantined rows keep, and ``now`` the time at which it was read. With ``alone``
    each row is all that the source has of its dataset, as in a bucket.
    """
    moment = int(time.time() if now is None else now)
    refused, valid, older, mended = batch.refused, pd.DataFrame(), pd.DataFrame(), 0
    if len(batch.jobs):
        carried = [name for name in TRAINING_COLUMNS if name in batch.jobs]
        checked = sort_records(batch.jobs.assign(**_valid_answers(batch.jobs, carried)), source, carried)
        is_older = checked.quarantine["reason"].eq(SUPERSEDED)
        valid, older, mended = checked.valid, checked.quarantine[is_older], checked.mended
        refused = pd.concat([refused, as_refused(checked.quarantine[~is_older], alone)], ignore_index=True)
    mosaics = batch.mosaics
    if len(mosaics):
        checked = sort_mosaics(mosaics)
        mosaics = checked.valid
        refused = pd.concat([refused, as_refused(checked.quarantine, alone)], ignore_index=True)
    killed = batch.killed
    if len(killed):
        checked = sort_killed(killed)
        killed = conform(checked.valid, KILLED)
        refused = pd.concat([refused, as_refused(checked.quarantine, alone=False)], ignore_index=True)
    entries = as_entries(refused, source, moment)
    counts = Counts(quarantined=len(refused), mended=mended)
    with store.change():
        if len(valid):
            counts += _remember_superseded(store, older, valid, moment)
        for table, rows in ((JOBS, valid), (MOSAICS, mosaics)):
            if len(rows):
                rows = conform(rows.assign(stored_at=moment), table)
                found, stored = _store_newer(store, table, rows, moment)
                counts += found
                close_entries(store, stored, source, moment, entries)
        keep_killed(store, killed, moment)
        open_entries(store, entries)
    return counts


# -- Answers of a training ------------------------------------------------------------------------------------------


class WrittenBack(NamedTuple):
    """Records that got the answers of a training, and records left alone: gone, changed or trained later."""

    written: int
    left: int

    def __str__(self) -> str:
        left = f"; {self.left:,} left alone: gone, changed or trained later" if self.left else ""
        return f"{self.written:,} records{left}"


def check_writable(uri: str) -> None:
    """Raise a CalmlflowError where `write_back` could not write; begins a change and writes nothing."""
    with closing(open_store(uri)) as store, store.change():
        pass


def write_back(store: Store, jobs: pd.DataFrame, trained_at: int) -> WrittenBack:
    """Write the answers of a training to the records that it was trained on, in one change.

    Parameters
    ----------
    store : Store
    jobs : DataFrame of n jobs
        With the columns `COLUMNS` as they were trained on, and any of `TRAINING_COLUMNS`.
    trained_at : int
        Time of the training, epoch seconds.
    """
    jobs = jobs.assign(trained_at=trained_at)
    # A training of one network has no answers of the others.
    answers = [name for name in TRAINING_COLUMNS if name in jobs]
    jobs = conform(jobs, JOBS)
    written = 0
    with store.change():
        for start in range(0, len(jobs), CHUNK_ROWS):
            part = jobs.iloc[start : start + CHUNK_ROWS].reset_index(drop=True)
            there = in_order(store.get(JOBS, part["ipst"].tolist()), part, JOBS)
            is_same = _is_same(part, there, JOBS) & (there["trained_at"].fillna(-1) <= trained_at).astype(bool)
            seen, part = (rows[is_same].reset_index(drop=True) for rows in (there, part))
            written += int(store.replace(JOBS, seen, part[["ipst", *answers]]).sum())
    return WrittenBack(written, len(jobs) - written)


def _valid_answers(jobs: pd.DataFrame, names: list[str]) -> dict[str, pd.Series]:
    """Training columns without the cells that are not of their kind: a bad answer costs no record."""
    answers = {}
    for name in names:
        if TRAINING_COLUMNS[name] != "text":
            cells = pd.to_numeric(jobs[name], errors="coerce")
            answers[name] = cells if TRAINING_COLUMNS[name] == "number" else cells.where(cells.mod(1).eq(0))
    return answers


# -- Records --------------------------------------------------------------------------------------------------------


def _store_newer(store: Store, table: Table, rows: pd.DataFrame, now: int) -> tuple[Counts, pd.DataFrame]:
    """Write rows that are new, newer, or different at the same time; return counts, and the rows that are stored."""
    counts, stored = Counts(), [rows.iloc[:0]]
    for _ in range(_ATTEMPTS):
        known = store.get(table, rows["ipst"].tolist())
        there = in_order(known, rows, table)
        is_new = ~rows["ipst"].isin(known["ipst"])
        is_same = ~is_new & _is_same(rows, there, table)
        is_older = ~is_new & ~is_same & (rows["timestamp"] < there["timestamp"]).fillna(False)
        is_replacing = ~is_new & ~is_same & ~is_older
        new, has_answers = rows, pd.Series(False, index=rows.index)
        if table is JOBS:
            _remember(store, there[is_replacing], now)
            _remember(store, rows[is_older], now)
            answered = _answered(there, rows)
            has_answers = is_same & ~_is_equal(answered, there[list(TRAINING_COLUMNS)]).all(axis=1)
            known_at = answered.assign(stored_at=there["stored_at"])
            new = rows.assign(**{str(name): rows[name].mask(has_answers, known_at[name]) for name in known_at})
        is_written = is_new | is_replacing | has_answers
        is_lost = is_written.copy()
        seen, new = (part[is_written].reset_index(drop=True) for part in (there, new))
        is_lost[is_written] = ~store.replace(table, seen, new)
        counts += Counts(
            stored=int((is_new & ~is_lost).sum()),
            updated=int(((is_replacing | has_answers) & ~is_lost).sum()),
            unchanged=int((is_same & ~has_answers).sum()),
            older=int(is_older.sum()),
        )
        stored.append(rows[~is_older & ~is_lost])
        # Another process changed these since they were read: compare them with what it stored.
        rows = rows[is_lost].reset_index(drop=True)
        if rows.empty:
            return counts, pd.concat(stored, ignore_index=True)
    raise CalmlflowError(
        f"{store.name}: {len(rows):,} records of {table.name} are changed all the time; expected fewer writers"
    )


def _remember_superseded(store: Store, older: pd.DataFrame, valid: pd.DataFrame, now: int) -> Counts:
    """Put valid records with a newer one in the same batch into the history; equal ones are no change."""
    rows = conform(record_cells(older).assign(total_mb=lambda cells: cells["total_mb"].round()), JOBS)
    is_same = _is_same(rows, in_order(valid, rows, JOBS), JOBS)
    _remember(store, rows[~is_same], now)
    return Counts(unchanged=int(is_same.sum()), older=int((~is_same).sum()))


def _is_same(rows: pd.DataFrame, there: pd.DataFrame, table: Table) -> pd.Series:
    """Whether rows equal those of the store; its total_mb may have more digits."""
    told = [name for name in table.columns if name not in ("ipst", "stored_at", *TRAINING_COLUMNS)]
    if "total_mb" in told:
        there = there.assign(total_mb=there["total_mb"].round())
    return _is_equal(rows[told], there[told]).all(axis=1)


def _is_equal(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Cell by cell; missing ones equal each other."""
    return one.eq(other).fillna(False).astype(bool) | (one.isna() & other.isna())


def _answered(there: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Answers for equal records: the later training's, and the other's where it has none."""
    is_later = there["trained_at"].fillna(-1) > rows["trained_at"].fillna(-1)
    return pd.DataFrame(
        {
            name: there[name].where(is_later & there[name].notna() | rows[name].isna(), rows[name])
            for name in TRAINING_COLUMNS
        }
    )


def _remember(store: Store, rows: pd.DataFrame, now: int) -> None:
    """Put records into the history; equal ones become one, with the answers of both."""
    if rows.empty:
        return
    rows = conform(rows, JOBS)
    texts = rows[list(COLUMNS)].astype("str").fillna("").agg("|".join, axis=1)
    rows = rows.assign(digest=[digest_of(text) for text in texts], replaced_at=now)
    rows = rows.drop_duplicates(["ipst", "digest"], keep="last").reset_index(drop=True)
    merge_history(store, conform(rows, HISTORY))


def merge_history(store: Store, rows: pd.DataFrame) -> None:
    """Add rows to the history; a row that is there keeps its times and answers."""
    there = in_order(store.get(HISTORY, rows["ipst"].tolist()), rows, HISTORY)
    first = {name: there[name].fillna(rows[name]) for name in ("stored_at", "replaced_at")}
    store.put(HISTORY, rows.assign(**_answered(there, rows), **first))
