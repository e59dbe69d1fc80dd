"""Job records in files: a CSV, or the folder that a training left behind."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from calmlflow.hst.errors import InputError
from calmlflow.jobs.store import JOBS, Table, conform

_SHOWN = 10


def open_path(path: Path, create: bool = False) -> "ReadOnly":
    """Open a file or folder; see `calmlflow.jobs.sources.open_store`."""
    return ReadOnly(str(path), lambda table: iter([read_path(path)] if table is JOBS else []))


class ReadOnly:
    """A store that can only be read; see `calmlflow.jobs.store.Store`."""

    def __init__(self, name: str, parts: Callable[[Table], Iterator[pd.DataFrame]]):
        self.name = name
        self._parts = parts

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """See `calmlflow.jobs.store.Store.read`."""
        for part in self._parts(table):
            for name, value in (where or {}).items():
                part = part[part[name] == value]
            yield part.reindex(columns=list(columns)) if columns else part

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `calmlflow.jobs.store.Store.get`."""
        parts = [part[part["ipst"].isin(list(names))] for part in self._parts(table)]
        return conform(pd.concat(parts) if parts else pd.DataFrame(), table)

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """Raise an InputError: it cannot be written."""
        raise InputError(f"{self.name} can only be read; expected a store that can be written")

    def count(self, table: Table) -> int:
        """See `calmlflow.jobs.store.Store.count`."""
        return sum(map(len, self._parts(table)))

    @contextmanager
    def change(self) -> Iterator[None]:
        """Raise an InputError: it cannot be written."""
        self.put(JOBS, pd.DataFrame())
        yield

    def close(self) -> None:
        """Nothing is held open."""


def read_path(path: Path) -> pd.DataFrame:
    """Read the table of a CSV file or of a folder, unchecked.

    A folder holds it as ``data/latest.csv`` (a training's), as ``latest.csv``, or as its only CSV file, in this order.

    Returns
    -------
    DataFrame
        Columns as in the file; names of datasets (``ipst``, ``ipppssoot``) are text.

    Raises
    ------
    InputError
        Nothing there, a folder with no such file or with several, or a file that is no CSV table.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a CSV file of job records, or a training's folder")
        return _read_csv(_table_of(path) if path.is_dir() else path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a CSV file of job records") from None


def _table_of(folder: Path) -> Path:
    for candidate in (folder / "data" / "latest.csv", folder / "latest.csv"):
        if candidate.is_file():
            return candidate
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv")
    if len(tables) == 1:
        return tables[0]
    shown = ", ".join(path.name for path in tables[:_SHOWN]) + (", ..." if len(tables) > _SHOWN else "")
    found = f"{len(tables)} CSV files ({shown})" if tables else "no CSV file"
    raise InputError(f"folder {folder} holds {found}; expected data/latest.csv, latest.csv or a single CSV file")


def _read_csv(path: Path) -> pd.DataFrame:
    expected = "expected a header line and comma-separated records"
    with path.open("rb") as file:
        # pandas reads on past a NUL, and would take a binary file for a table of odd words.
        if b"\0" in file.read(65_536):
            raise InputError(f"{path} is not text; {expected}")
        file.seek(0)
        try:
            # Whole columns at once (not low_memory), so that the type of a cell does not depend on its neighbours.
            table = pd.read_csv(file, dtype={"ipst": "str", "ipppssoot": "str"}, low_memory=False)
        except pd.errors.EmptyDataError:
            raise InputError(f"{path} is empty; {expected}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason}); {expected}") from None
        except (pd.errors.ParserError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is no CSV table ({reason}); {expected}") from None
    if not isinstance(table.index, pd.RangeIndex):
        # pandas takes surplus cells at the start of each line for row labels, and shifts the others.
        raise InputError(f"{path} has lines with more cells than its header; {expected}")
    return table
