"""Copy job records into a database, or write them to a CSV or Parquet file."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.killed import killed_jobs
from calmlflow.jobs.quarantine import merge_entries
from calmlflow.jobs.stores.base import (
    HISTORY,
    JOBS,
    KILLED,
    MOSAICS,
    PREDICTIONS,
    QUARANTINE,
    Source,
    Store,
    Table,
    conform,
)
from calmlflow.jobs.stores.files import FileSource, write_file
from calmlflow.jobs.stores.open import is_database, open_source, open_store, parse_target
from calmlflow.jobs.upsert import Batch, Counts, merge_history, upsert

_OTHERS = (HISTORY, MOSAICS, KILLED, QUARANTINE, PREDICTIONS)
_MERGE: dict[Table, Callable[[Store, pd.DataFrame], None]] = {
    HISTORY: merge_history,
    QUARANTINE: merge_entries,
    PREDICTIONS: lambda store, rows: store.put(PREDICTIONS, rows),
}


@dataclass(frozen=True)
class Copied:
    """Outcome of a copy."""

    # Records of the source, their outcomes, and the records of the target afterwards.
    read: int
    counts: Counts
    there: int
    # Table -> rows that were copied.
    others: dict[str, int] = field(default_factory=dict)
    # Table -> rows that were not copied, because the target is a file, which holds records and killed jobs.
    left: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Counts by name, for metrics and scripts."""
        return {"read": self.read, **vars(self.counts), "there": self.there, **self.others}

    def __str__(self) -> str:
        more = "".join(f"; {number:,} rows of {name}" for name, number in self.others.items() if number)
        left = "".join(f"; {number:,} rows of {name} are not copied" for name, number in self.left.items() if number)
        return f"{self.read:,} records read: {str(self.counts) or 'none'}; the target holds {self.there:,}{more}{left}"


def copy(source: str, target: str, on_progress: Callable[[int, int | None], None] = lambda done, total: None) -> Copied:
    """Copy job records, and into a database the other tables too.

    In a database the newer record of a dataset wins, and invalid ones go to its quarantine. A file is written whole and
    unchecked, with one of killed jobs beside it, and replaces the one that is there. Safe to repeat.

    Parameters
    ----------
    source, target : str
        See `calmlflow.jobs.stores.open.open_source`. The target is a database, or a ``.csv`` or ``.parquet`` file here
        or in S3.
    on_progress : callable
        Called with the number of records done, and of all.

    Raises
    ------
    CalmlflowError
        A place cannot be read or written, or the target holds fewer records afterwards than were stored.
    """
    file = "" if is_database(target) else parse_target(target)
    with closing(open_source(source)) as one:
        if file:
            # Also those of which only tables tell that a file does not get.
            killed = killed_jobs(one)
            whole = FileSource(one.name, lambda table: iter([killed]) if table is KILLED else one.read(table))
            count = write_file(file, whole, on_progress)
            left = {table.name: one.count(table) for table in _OTHERS if table is not KILLED}
            return Copied(count, Counts(stored=count), count, {KILLED.name: len(killed)}, left)
        with closing(open_store(target, create=True)) as other:
            return _copy_into(one, other, on_progress)


def _copy_into(source: Source, target: Store, on_progress: Callable[[int, int | None], None]) -> Copied:
    counts, read = Counts(), 0
    before, total = target.count(JOBS), source.count(JOBS)
    for part in source.read(JOBS):
        counts += upsert(target, Batch(jobs=part), source.name)
        read += len(part)
        on_progress(read, total)
    there = target.count(JOBS)
    if counts.total != read or there < before + counts.stored:
        raise CalmlflowError(
            f"{target.name} holds {there:,} records after {counts.stored:,} new ones were added to {before:,}; "
            f"expected {before + counts.stored:,}: copy again, and find out who else writes there"
        )
    others = {}
    for table in _OTHERS:
        others[table.name] = 0
        for part in source.read(table):
            if table in (MOSAICS, KILLED):
                upsert(target, Batch(mosaics=part) if table is MOSAICS else Batch(killed=part), source.name)
            else:
                with target.change():
                    _MERGE[table](target, conform(part, table))
            others[table.name] += len(part)
    return Copied(read, counts, there, others)
