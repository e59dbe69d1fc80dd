"""Records from one store into another, counted on both sides."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.quarantine import merge_entries
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Store, Table, conform
from calmlflow.jobs.upsert import Batch, Counts, keep, merge_history


@dataclass
class Copied:
    """What became of the records of a store in another one.

    Attributes
    ----------
    read : int
        Records of the source.
    counts : Counts
        What became of them; their sum is ``read``.
    there : int
        Records of the target after that, with those that it had before.
    others : dict of str to int
        Table -> rows, of what else was copied: history, mosaics, quarantine, predictions.
    """

    read: int = 0
    counts: Counts = field(default_factory=Counts)
    there: int = 0
    others: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Counts by name, for metrics and for scripts."""
        return {"read": self.read, **vars(self.counts), "there": self.there, **self.others}

    def __str__(self) -> str:
        what = ", ".join(f"{number:,} {name}" for name, number in vars(self.counts).items() if number)
        more = "".join(f"; {number:,} rows of {name}" for name, number in self.others.items() if number)
        return f"{self.read:,} records read: {what or 'none'}; the target holds {self.there:,}{more}"


def copy(
    source: Store, target: Store, on_progress: Callable[[int, int | None], None] = lambda done, total: None
) -> Copied:
    """Copy the records of a store into another one, and its other tables.

    The newer record of a dataset wins, as in `calmlflow.jobs.upsert.keep`, and so does what was said last of an entry
    of the quarantine; what is no valid record goes to the quarantine of the target. Safe to run again.

    Parameters
    ----------
    source, target : Store
    on_progress : callable
        Called with the records done, and their number.

    Raises
    ------
    CalmlflowError
        A store cannot be read or written; parts that were written before stay. Or the target holds fewer records
        afterwards than came into it.
    """
    copied = Copied()
    before = target.count(JOBS)
    total = source.count(JOBS)
    for part in source.read(JOBS):
        copied.counts += keep(target, Batch(jobs=part), source.name)
        copied.read += len(part)
        on_progress(copied.read, total)
    copied.there = target.count(JOBS)
    if copied.counts.total != copied.read or copied.there < before + copied.counts.stored:
        raise CalmlflowError(
            f"{target.name} holds {copied.there:,} records after {copied.counts.stored:,} new ones came to "
            f"{before:,}; expected {before + copied.counts.stored:,}: copy again, and see who else writes there"
        )
    for table in (HISTORY, MOSAICS, QUARANTINE, PREDICTIONS):
        copied.others[table.name] = 0
        for part in source.read(table):
            _copy_part(target, table, part, source.name)
            copied.others[table.name] += len(part)
    return copied


def _copy_part(target: Store, table: Table, part: pd.DataFrame, source: str) -> None:
    """Add rows of a table other than the records; what the target knows better stays."""
    if table is MOSAICS:
        keep(target, Batch(mosaics=part), source)
        return
    part = conform(part, table)
    with target.change():
        if table is HISTORY:
            merge_history(target, part)
        elif table is QUARANTINE:
            merge_entries(target, part)
        else:
            target.put(table, part)
