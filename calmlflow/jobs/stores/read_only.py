"""Stores of job records that can only be read."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.jobs.stores.base import JOBS, Table, conform
from calmlflow.jobs.stores.file_store import rows_of, select

Parts = Callable[[Table], Iterator[pd.DataFrame]]


class ReadOnly:
    """See `calmlflow.jobs.stores.base.Store`.

    Parameters
    ----------
    name : str
    parts : callable
        Gives a table anew, in parts.
    close : callable
        Called at the end.
    """

    def __init__(self, name: str, parts: Parts, close: Callable[[], None] = lambda: None):
        self.name = name
        self._parts = parts
        self.close = close

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """See `Store.read`; records (JOBS) as they are."""
        for part in self._parts(table):
            yield select(part, table, columns, where)

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Store.get`."""
        parts = list(self._parts(table))
        return rows_of(pd.concat(parts), table, names, self.name)[0] if parts else conform(pd.DataFrame(), table)

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """Raise an InputError."""
        raise self._refusal()

    def count(self, table: Table) -> int:
        """See `Store.count`."""
        return sum(map(len, self._parts(table)))

    def change(self) -> AbstractContextManager[None]:
        """Raise an InputError."""
        raise self._refusal()

    def _refusal(self) -> InputError:
        return InputError(
            f"{self.name} can only be read; expected a database, or a file or an object of S3 in .csv or .parquet"
        )


def jobs_only(parts: Callable[[], Iterator[pd.DataFrame]]) -> Parts:
    """Of something that holds records (JOBS) and no other table."""
    return lambda table: parts() if table is JOBS else iter(())
