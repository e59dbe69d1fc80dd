"""Read job records from files, folders, archives and S3 objects, and write them to a file as a whole."""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa

from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import CHUNK_ROWS, JOBS, KILLED, Source, Table, conform
from calmlflow.settings import hide_password
from calmlflow.storage.archive import SUFFIXES as ARCHIVES
from calmlflow.storage.archive import extract
from calmlflow.storage.s3 import DeniedError, NoSuchObjectError, asking, download, new_client, parse_s3
from calmlflow.storage.tables import SUFFIXES, as_numbers, new_table, open_table

DATABASES = (".db", ".sqlite", ".sqlite3")

_SHOWN = 10
_TEXTS = ("ipppssoot", *(name for name, kind in JOBS.columns.items() if kind == "text"))
# Of the file of killed jobs beside a file ``jobs.csv`` or ``jobs.parquet``: ``jobs.killed_jobs.csv``.
_BESIDE = f".{KILLED.name}.csv"
_ARROW_TYPES = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}


class FileSource:
    """See `calmlflow.jobs.stores.base.Source`; ``read`` yields the parts of a table, ``close`` is called at the end."""

    def __init__(
        self, name: str, read: Callable[[Table], Iterator[pd.DataFrame]], close: Callable[[], None] = lambda: None
    ):
        self.name = name
        self._read = read
        self.close = close

    def read(self, table: Table, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """See `Source.read`."""
        for part in self._read(table):
            yield part if columns is None else part.reindex(columns=list(columns))

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Source.get`."""
        parts = [part[part["ipst"].isin(names)] for part in self._read(table)]
        return conform(pd.concat(parts) if parts else pd.DataFrame(), table)

    def count(self, table: Table) -> int:
        """See `Source.count`."""
        return sum(map(len, self._read(table)))


# -- Reading --------------------------------------------------------------------------------------------------------


def open_path(path: Path) -> FileSource:
    """Open a CSV or Parquet file, a folder or an archive.

    The table of a folder is ``data/latest.csv`` (a training's), ``latest.csv``, ``latest.parquet``, its only CSV file,
    or all Parquet files in it and below, in this order.
    """
    try:
        if path.is_dir():
            return _open_table(str(path), _table_of(path, f"folder {path}"))
        if not path.exists():
            raise InputError(f"{path} does not exist; expected a file of job records, or a training's folder")
        if path.name.lower().endswith(ARCHIVES):
            return _open_archive(path, str(path))
        return _open_table(str(path), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file of job records") from error


def open_object(uri: str) -> FileSource:
    """Open ``s3://bucket/key`` of a table, an archive or a SQLite file, or ``s3://bucket/prefix/`` of Parquet files."""
    target = parse_s3("s3://" + uri.partition("://")[2])
    key = target.key.lower()
    if key == "" or key.endswith((*SUFFIXES, "/")):
        return _open_table(str(target), str(target))
    kind = next((end for end in (*ARCHIVES, *DATABASES) if key.endswith(end)), None)
    if kind is None:
        known = ", ".join((*SUFFIXES, *ARCHIVES, *DATABASES))
        raise InputError(
            f"{target} is of no known kind; expected a key in {known}, or a prefix with a slash at its end"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calmlflow-s3-")))
        path = folder / f"object{kind}"
        download(target, path, "an archive or a SQLite file")
        if kind in ARCHIVES:
            return _open_archive(path, str(target))
        from calmlflow.jobs.stores.sql import open_sql

        try:
            store = open_sql(f"sqlite:///{path}")
        except CalmlflowError as error:
            raise InputError(f"{target} is no SQLite database of job records; expected one of `ingest`") from error
        stack.callback(store.close)
        return FileSource(str(target), store.read, stack.pop_all().close)


def _open_table(name: str, uri: str | Path, shown: str = "", close: Callable[[], None] = lambda: None) -> FileSource:
    """Open what `open_table` reads; ``shown`` is its name in errors."""

    def read(table: Table) -> Iterator[pd.DataFrame]:
        if table is KILLED:
            yield from _read_beside(uri)
        if table is not JOBS:
            return
        with open_table(uri, _TEXTS, JOBS.columns, shown) as opened:
            for batch in opened.batches(CHUNK_ROWS):
                cells = {
                    name: batch[name] if name in _TEXTS else as_numbers(batch[name]) for name in batch.schema.names
                }
                # The files of a folder may differ in their columns.
                yield pa.table(cells).to_pandas(ignore_metadata=True).reindex(columns=list(opened.columns))

    return FileSource(name, read, close)


def _read_beside(uri: str | Path) -> Iterator[pd.DataFrame]:
    """The killed jobs beside a table; none where there is no such file."""
    if not str(uri).lower().endswith(SUFFIXES):
        return
    beside = _beside(str(uri))
    if not (beside.startswith("s3://") or Path(beside).is_file()):
        return
    try:
        with suppress(NoSuchObjectError), open_table(beside, ("ipst", "kind", "reason"), KILLED.columns) as opened:
            for batch in opened.batches(CHUNK_ROWS):
                yield conform(batch.to_pandas().replace("", None), KILLED)
    except DeniedError as error:
        # The jobs themselves can be read, and most have no such file.
        say(f"warning: {error}; without it no killed jobs count")


def _beside(uri: str) -> str:
    return uri[: uri.rindex(".")] + _BESIDE


def _open_archive(archive: Path, shown: str) -> FileSource:
    with ExitStack() as stack:
        root = folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="calmlflow-archive-")))
        try:
            extract(archive, folder)
        except InputError as error:
            raise InputError(str(error).replace(str(archive), shown)) from error
        # An archive usually holds a single folder, besides what operating systems add.
        while len(inside := _visible(folder)) == 1 and inside[0].is_dir() and inside[0].name != "data":
            folder = inside[0]
        table = _table_of(folder, f"archive {shown}")
        member = table.relative_to(root).as_posix()
        return _open_table(shown, table, f"{shown}, member {member}", stack.pop_all().close)


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name[0] != "." and path.name != "__MACOSX"]


def _table_of(folder: Path, shown: str) -> Path:
    for candidate in ("data/latest.csv", "latest.csv", "latest.parquet"):
        if (folder / candidate).is_file():
            return folder / candidate
    named = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".csv" and path.name[0] not in "._")
    tables = [path for path in named if not path.name.endswith(_BESIDE)]
    if len(tables) == 1:
        return tables[0]
    if not tables and any(folder.rglob("*.parquet")):
        return folder
    listed = ", ".join(path.name for path in tables[:_SHOWN]) + (", ..." if len(tables) > _SHOWN else "")
    found = f"{len(tables)} CSV files ({listed})" if tables else "no CSV or Parquet file"
    raise InputError(f"{shown} holds {found}; expected data/latest.csv, latest.csv, a single CSV file or Parquet files")


# -- Writing --------------------------------------------------------------------------------------------------------


def write_file(uri: str, source: Source, on_progress: Callable[[int, int | None], None]) -> int:
    """Write the records of a source to a ``.csv`` or ``.parquet`` file, here or in S3, which it replaces.

    Killed jobs go to a file beside it (``jobs.killed_jobs.csv`` for ``jobs.csv``), where there are any or there is such
    a file. Columns that the source does not have are left out. An object of S3 is replaced only if no other process
    changed it meanwhile. Returns the number of records.
    """
    if not uri.lower().endswith(SUFFIXES):
        raise InputError(
            f"{hide_password(uri)!r} cannot be written; expected a database, or a file or an object of S3 in "
            f"{' or '.join(SUFFIXES)}"
        )
    written = _write_table(uri, JOBS, source, on_progress)
    if next(_read_beside(uri), None) is not None or source.count(KILLED):
        _write_table(_beside(uri), KILLED, source, lambda done, total: None)
    return written


def _write_table(uri: str, table: Table, source: Source, on_progress: Callable[[int, int | None], None]) -> int:
    if not uri.startswith("s3://"):
        return _write(Path(uri), table, source, on_progress)
    target, client = parse_s3(uri), new_client()
    try:
        with asking(target, "read", "a bucket that can be read"):
            there = client.head_object(Bucket=target.bucket, Key=target.key)
        condition = {"IfMatch": there["ETag"]}
    except NoSuchObjectError:
        condition = {"IfNoneMatch": "*"}
    with tempfile.TemporaryDirectory(prefix="calmlflow-s3-") as folder:
        path = Path(folder) / f"table{Path(uri).suffix}"
        written = _write(path, table, source, on_progress)
        with asking(target, "written", "an object that no other process changes"), path.open("rb") as file:
            client.put_object(Bucket=target.bucket, Key=target.key, Body=file, **condition)
    return written


def _write(path: Path, table: Table, source: Source, on_progress: Callable[[int, int | None], None]) -> int:
    parts = source.read(table)
    first = next(parts, conform(pd.DataFrame(), table))
    names = [name for name in table.columns if name in first]
    schema = pa.schema([(name, _ARROW_TYPES[table.columns[name]]) for name in names])
    written = 0
    with new_table(path, schema) as writer:
        for part in chain([first], parts):
            rows = pa.Table.from_pandas(conform(part, table, names), schema, preserve_index=False)
            for batch in rows.to_batches():
                writer.write(batch)
            written += len(part)
            on_progress(written, None)
    return written
