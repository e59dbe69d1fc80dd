"""Job records in S3: tables, archives of trainings, and SQLite files; tables can be written too."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import JOBS, Store, Table
from calmlflow.jobs.stores.file_store import FileStore
from calmlflow.jobs.stores.files import ARCHIVES, WRITABLE, is_records_file, table_name
from calmlflow.jobs.stores.formats import read_parts
from calmlflow.jobs.stores.read_only import ReadOnly, jobs_only
from calmlflow.storage.s3 import NoSuchObjectError, S3Object, asking, new_client, parse_s3, s3_reason

_DATABASES = (".db", ".sqlite", ".sqlite3")
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 3
_EXPECTED = "expected an object of job records"
# What S3 says where the object is not, or not any more, what the condition names.
_LOST = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
# Which change wrote an object: an answer may get lost, and the same request comes twice.
_CHANGE = "calmlflow-change"


def open_objects(uri: str, create: bool = False) -> Store:
    """Open ``s3://bucket/key`` of a table, an archive or a SQLite file, or ``s3://bucket/prefix/`` of Parquet files.

    Parameters
    ----------
    uri : str
        The key ends in ``.csv`` or ``.parquet`` (which can be written), ``.zip``, ``.tgz``, ``.tar.gz``, ``.db``,
        ``.sqlite``, ``.sqlite3`` or ``/``. Address and credentials as in `calmlflow.storage.s3.new_client`.
    create : bool
        Whether a table that is not there is one to be written.

    Raises
    ------
    InputError
        Nothing there, a key of no known kind, or a damaged object.
    CalmlflowError
        S3 cannot be asked.
    """
    target = parse_s3("s3://" + uri.partition("://")[2])
    name = str(target)
    key = target.key.lower()
    if not key.endswith((*WRITABLE, *ARCHIVES, *_DATABASES, "/")) and key:
        raise InputError(
            f"{name} is of no known kind; expected a key in {', '.join((*WRITABLE, *ARCHIVES, *_DATABASES))}, or a "
            "prefix with a slash at its end"
        )
    client = new_client()
    if key.endswith(WRITABLE):
        place = _Bucket(client, target)
        if not create and place.head(JOBS) is None:
            place.close()
            raise NoSuchObjectError(f"{name} does not exist; {_EXPECTED}")
        return FileStore(name, place)
    if key == "" or key.endswith("/"):
        return _open_prefix(client, target)
    folder = tempfile.TemporaryDirectory(prefix="calmlflow-s3-")
    try:
        path = Path(folder.name) / f"object{next(end for end in (*ARCHIVES, *_DATABASES) if key.endswith(end))}"
        download(client, target, path)
        if key.endswith(ARCHIVES):
            from calmlflow.jobs.stores.archives import open_archive

            return open_archive(path, name)
        return _open_database(path, name, folder)
    except BaseException:
        folder.cleanup()
        raise
    finally:
        if key.endswith(ARCHIVES):
            # Its table has been taken out.
            folder.cleanup()


def _open_prefix(client: Any, target: S3Object) -> ReadOnly:
    keys: list[str] = []
    with asking(target, "read", "a prefix of Parquet files"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=target.key):
            keys += [item["Key"] for item in page.get("Contents", ()) if is_records_file(item["Key"])]
    if not keys:
        raise InputError(f"{target} holds no Parquet file; expected some, or the key of one object")

    def parts() -> Iterator[pd.DataFrame]:
        for key in sorted(keys):
            # One at a time on disk.
            with tempfile.TemporaryDirectory(prefix="calmlflow-s3-") as folder:
                path = Path(folder) / "object.parquet"
                download(client, S3Object(target.bucket, key), path)
                yield from read_parts(path, f"s3://{target.bucket}/{key}")

    return ReadOnly(str(target), jobs_only(parts))


def _open_database(path: Path, name: str, folder: "tempfile.TemporaryDirectory[str]") -> ReadOnly:
    from calmlflow.jobs.stores.sql import open_sql

    try:
        store = open_sql(f"sqlite:///{path}")
    except InputError as error:
        raise InputError(str(error).replace(f"sqlite:///{path}", name)) from None
    except CalmlflowError:
        raise InputError(f"{name} is no SQLite database of job records; {_EXPECTED}") from None

    def close() -> None:
        store.close()
        folder.cleanup()

    return ReadOnly(name, store.read, close)


def download(client: Any, target: S3Object, path: Path) -> str:
    """Write an object into a file, to its last byte; gives its ETag.

    Raises
    ------
    NoSuchObjectError
        There is no such bucket or key.
    CalmlflowError
        S3 cannot be read, not to the end after several attempts, or the file cannot be written.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with asking(target, "read", "job records"):
                response = client.get_object(Bucket=target.bucket, Key=target.key)
                with closing(response["Body"]) as body, path.open("wb") as file:
                    for chunk in body.iter_chunks(_CHUNK_BYTES):
                        file.write(chunk)
            if path.stat().st_size == response["ContentLength"]:
                return str(response["ETag"])
        except NoSuchObjectError:
            raise
        except OSError as error:
            raise CalmlflowError(
                f"{target} cannot be read (no file for it: {error.strerror}); expected room in {path.parent.parent}"
            ) from None
        except CalmlflowError:
            if attempt == _ATTEMPTS:
                raise
    raise CalmlflowError(f"{target} cannot be read to its end; {_EXPECTED}")


class _Bucket:
    """Objects beside one another; see `calmlflow.jobs.stores.file_store.Place`."""

    def __init__(self, client: Any, target: S3Object):
        self._client = client
        self._target = target
        self._folder = tempfile.TemporaryDirectory(prefix="calmlflow-s3-")
        # Table -> ETag of the object that its file was fetched from; none where there was no object.
        self._etags: dict[str, str | None] = {}
        self.is_parquet = target.key.lower().endswith(".parquet")

    def shown(self, table: Table) -> str:
        return str(self._object(table))

    def head(self, table: Table) -> Any:
        """What S3 says of a table's object; None where there is none."""
        target = self._object(table)
        try:
            with asking(target, "read", "job records"):
                return self._client.head_object(Bucket=target.bucket, Key=target.key)
        except NoSuchObjectError:
            return None

    def fetch(self, table: Table) -> Path | None:
        path = self._path(table)
        there = self.head(table)
        etag = self._etags.get(table.name)
        if there is not None and there["ETag"] == etag and path.exists():
            return path
        try:
            self._etags[table.name] = None if there is None else download(self._client, self._object(table), path)
        except NoSuchObjectError:
            self._etags[table.name] = None
        return path if self._etags[table.name] else None

    def locked(self) -> AbstractContextManager[None]:
        """S3 has no locks; see `replace`."""
        return nullcontext()

    def stage(self, table: Table, write: Callable[[Path], None]) -> Path:
        path = self._path(table).with_suffix(".new")
        try:
            write(path)
        except OSError as error:
            raise CalmlflowError(
                f"{self._target} cannot be written ({error.strerror}); expected room in {path.parent.parent}"
            ) from None
        return path

    def replace(self, table: Table, staged: Path) -> bool:
        """Put the object where it is as it was fetched; S3 compares and writes in one step."""
        target, etag, change = self._object(table), self._etags[table.name], uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}

        def put() -> bool:
            with staged.open("rb") as file:
                try:
                    self._client.put_object(
                        Bucket=target.bucket, Key=target.key, Body=file, Metadata={_CHANGE: change}, **condition
                    )
                except Exception as error:
                    if s3_reason(error) not in (*_LOST, "NoSuchKey"):
                        raise
                    return False
            return True

        with asking(target, "written", "a bucket that can be written"):
            if put():
                return True
        there = self.head(table)
        return there is not None and there["Metadata"].get(_CHANGE) == change

    def close(self) -> None:
        self._folder.cleanup()

    def _object(self, table: Table) -> S3Object:
        return S3Object(self._target.bucket, table_name(self._target.key, table))

    def _path(self, table: Table) -> Path:
        return Path(self._folder.name) / f"{table.name}{'.parquet' if self.is_parquet else '.csv'}"
