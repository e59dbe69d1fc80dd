"""Records from one store into another, counted on both sides."""

from collections.abc import Callable
from dataclasses import dataclass, field

from calmlflow.hst.errors import CalmlflowError
from calmlflow.jobs.keeping import Batch, Counts, keep
from calmlflow.jobs.store import JOBS, TABLES, Store, conform


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

    The newer record of a dataset wins, as in `calmlflow.jobs.keeping.keep`; what is no valid record goes to the
    quarantine of the target. Safe to run again.

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
    for table in TABLES:
        if table is not JOBS:
            copied.others[table.name] = 0
            for part in source.read(table):
                with target.change():
                    target.put(table, conform(part, table))
                copied.others[table.name] += len(part)
    return copied
