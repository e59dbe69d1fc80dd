"""Job records in files and folders."""

import fcntl
import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import JOBS, TABLES, Store, Table
from calmlflow.jobs.stores.file_store import FileStore
from calmlflow.jobs.stores.formats import is_parquet, read_parts
from calmlflow.jobs.stores.read_only import ReadOnly, jobs_only

ARCHIVES = (".zip", ".tgz", ".tar.gz")
WRITABLE = (".csv", ".parquet")

_SHOWN = 10
_STAGED = "new-"
# Names of other tables than the records'.
_OTHERS = re.compile(rf"\.({'|'.join(table.name for table in TABLES if table is not JOBS)})\.[^./]+$")


def open_path(path: Path, create: bool = False) -> Store:
    """Open a CSV or Parquet file, a folder or an archive.

    A folder holds its table as ``data/latest.csv`` (a training's), as ``latest.csv``, as ``latest.parquet``, as its
    only CSV file, or as Parquet files in it and below, in this order. Folders and archives can only be read.

    Parameters
    ----------
    path : Path
    create : bool
        Whether a file that is not there is one to be written, ``.csv`` or ``.parquet``.

    Raises
    ------
    InputError
        Nothing there, or a folder or archive with no such file or with several.
    """
    try:
        if path.is_dir():
            tables = _tables_of(path)
            return ReadOnly(
                str(path), jobs_only(lambda: (part for one in tables for part in read_parts(one, str(one))))
            )
        if path.name.lower().endswith(ARCHIVES):
            from calmlflow.jobs.stores.archives import open_archive

            return open_archive(path, str(path))
        if not path.exists():
            if not create:
                raise InputError(f"{path} does not exist; expected a file of job records, or a training's folder")
            if path.suffix.lower() not in WRITABLE:
                raise InputError(f"{path} cannot be made; expected a name that ends in {' or '.join(WRITABLE)}")
        return FileStore(str(path), _Folder(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file of job records") from None


def _tables_of(folder: Path) -> list[Path]:
    for candidate in ("data/latest.csv", "latest.csv", "latest.parquet"):
        if (folder / candidate).is_file():
            return [folder / candidate]
    tables = [path for path in _own(folder.iterdir()) if path.suffix.lower() == ".csv"]
    if len(tables) == 1:
        return tables
    files = _own(path for path in folder.rglob("*.parquet") if path.is_file())
    if files and not tables:
        return files
    shown = ", ".join(path.name for path in tables[:_SHOWN]) + (", ..." if len(tables) > _SHOWN else "")
    found = f"{len(tables)} CSV files ({shown})" if tables else "no CSV or Parquet file"
    raise InputError(
        f"folder {folder} holds {found}; expected data/latest.csv, latest.csv, a single CSV file or Parquet files"
    )


def _own(paths: Iterator[Path]) -> list[Path]:
    """Without the other tables of a store, which lie beside the first one."""
    return sorted(path for path in paths if not _OTHERS.search(path.name) and not path.name.startswith("."))


def is_records_file(key: str) -> bool:
    """Whether a key of S3 is that of a Parquet file of records, and not of another table beside it."""
    return key.lower().endswith(".parquet") and not _OTHERS.search(key)


# -- Places ---------------------------------------------------------------------------------------------------------


def table_name(name: str, table: Table) -> str:
    """Name of a table's file, or key of its object, beside the one of the records."""
    if table is JOBS:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{table.name}.{suffix}" if dot and "/" not in suffix else f"{name}.{table.name}"


class _Folder:
    """Files beside one another; see `calmlflow.jobs.stores.file_store.Place`."""

    def __init__(self, path: Path):
        # A link is another name of the same store: one lock, and one set of tables.
        self._path = path.resolve()
        self._staged: list[Path] = []
        self.is_parquet = path.suffix.lower() == ".parquet" or (path.exists() and is_parquet(path))

    def shown(self, table: Table) -> str:
        return str(self._path_of(table))

    def fetch(self, table: Table) -> Path | None:
        path = self._path_of(table)
        return path if path.exists() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One change at a time; the lock ends with the process, and its file stays: others may wait for it."""
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for table in TABLES:
                # What a killed change has left; whoever holds the lock is alone.
                for left in self._path.parent.glob(f".{glob.escape(self._path_of(table).name)}.{_STAGED}*"):
                    left.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)
            for path in self._staged:
                path.unlink(missing_ok=True)
            self._staged.clear()

    def stage(self, table: Table, write: Callable[[Path], None]) -> Path:
        path = self._path_of(table)
        with self._writing():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{_STAGED}")
            self._staged.append(Path(name))
            write(Path(name))
            os.fsync(handle)
            os.close(handle)
            if path.exists():
                mode = path.stat().st_mode & 0o777
            else:
                mask = os.umask(0)
                os.umask(mask)
                mode = 0o666 & ~mask
            Path(name).chmod(mode)
        return Path(name)

    def replace(self, table: Table, staged: Path) -> bool:
        with self._writing():
            # A link stays one, to the new file.
            staged.replace(self._path_of(table).resolve())
        return True

    def close(self) -> None:
        """Nothing is held."""

    def _path_of(self, table: Table) -> Path:
        return self._path.with_name(table_name(self._path.name, table))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CalmlflowError(
                f"{self._path} cannot be written ({error.strerror}); expected a file in a folder of yours"
            ) from None
