"""Where many answers go: a CSV or Parquet file, here or in S3, or what the caller has that takes batches."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from calmlflow import settings
from calmlflow.errors import InputError
from calmlflow.predictor.batch.answers import SCHEMA
from calmlflow.predictor.batch.s3 import put_file
from calmlflow.storage.s3 import S3Object, asking, new_client, parse_s3, s3_reason

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet")
ERRORS = ".errors.csv"


class Writer(Protocol):
    """What takes answers, in the columns of `calmlflow.predictor.batch.answers.SCHEMA`."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Take some; nobody sees them yet."""

    def commit(self) -> None:
        """Show all that was written, at once."""

    def abort(self) -> None:
        """Leave no trace of what was written."""


@dataclass(frozen=True)
class Target:
    """An output, not yet opened.

    Attributes
    ----------
    name, errors : str
        The output, and the file of rows that cannot be answered; for people.
    work : Path
        Folder for what is not finished.
    open : callable
        Gives the writer of the output.
    put_errors : callable
        Puts a file in the place of ``errors``; with None, removes what is there of an earlier call.
    files : tuple of Path
        Local files that it writes.
    """

    name: str
    errors: str
    work: Path
    open: Callable[[], Writer]
    put_errors: Callable[[Path | None], None]
    files: tuple[Path, ...] = ()


def target_of(output: str | Path | Writer, errors: str | Path | None = None) -> Target:
    """Say what writes an output.

    Parameters
    ----------
    output : str, Path or Writer
        A path or ``s3://bucket/key`` that ends in .csv or .parquet.
    errors : str or Path, optional
        Local CSV file for the rows that cannot be answered. Default, except with a Writer: ``{stem}.errors.csv`` beside
        the output.

    Raises
    ------
    InputError
        Another suffix, or no place for errors.
    """
    if not isinstance(output, str | Path):
        if errors is None:
            raise InputError(
                "the output is no file, and errors is missing; expected a CSV file for rows without answers"
            )
        path = Path(errors)
        return Target("the output", str(path), _work_beside(path), lambda: output, _local_errors(path), (path,))
    name = str(output)
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"output {name!r} ends in {suffix!r}; expected {' or '.join(SUFFIXES)}")
    if name.startswith("s3://"):
        if errors is not None:
            raise InputError("errors cannot be named for an output in S3; expected none: they go beside it")
        return _in_s3(parse_s3(name), suffix)
    path = Path(name)
    if errors is not None and Path(errors).resolve().parent != path.resolve().parent:
        raise InputError(f"errors would go to {errors}; expected a file beside the output {name}")
    if errors is not None and Path(errors).resolve() == path.resolve():
        raise InputError(f"errors and output are both {name}; expected two files")
    if path.is_dir():
        raise InputError(f"output {name} is a folder; expected a file")
    beside = path.with_suffix(ERRORS) if errors is None else Path(errors)
    work = _work_beside(path)

    def put(finished: Path) -> None:
        finished.replace(path)

    return Target(name, str(beside), work, lambda: FileWriter(work, suffix, put), _local_errors(beside), (path, beside))


def _work_beside(path: Path) -> Path:
    return path.parent / f".{path.name}.parts"


def _local_errors(path: Path) -> Callable[[Path | None], None]:
    def put(finished: Path | None) -> None:
        if finished is None:
            path.unlink(missing_ok=True)
        else:
            finished.replace(path)

    return put


def _in_s3(target: S3Object, suffix: str) -> Target:
    """What is not finished is kept in the cache: S3 has no place for it."""
    client = new_client()
    # Before the work, not after it.
    try:
        client.head_bucket(Bucket=target.bucket)
    except Exception as error:
        # Who may write need not be allowed to look.
        if s3_reason(error) != "403":
            with asking(target, "written", "a bucket that is there, and credentials that allow it"):
                raise
    beside = target._replace(key=target.key[: -len(suffix)] + ERRORS)
    work = settings.cache_dir() / "many" / hashlib.sha256(str(target).encode()).hexdigest()[:16]

    def put_errors(finished: Path | None) -> None:
        if finished is not None:
            put_file(finished, beside, client)
            return
        try:
            client.delete_object(Bucket=beside.bucket, Key=beside.key)
        except Exception as error:
            # Of an earlier run perhaps; no reason to keep the answers back.
            log.warning("%s cannot be removed (%s); if it is there, it is an earlier run's", beside, s3_reason(error))

    def open_writer() -> Writer:
        return FileWriter(work, suffix, lambda finished: put_file(finished, target, client))

    return Target(str(target), str(beside), work, open_writer, put_errors)


class FileWriter:
    """Writes a CSV or Parquet file, which is put into its place when it is whole.

    Parameters
    ----------
    folder : Path
        For the file until then.
    suffix : {".csv", ".parquet"}
    put : callable
        Puts the file into its place.
    """

    def __init__(self, folder: Path, suffix: str, put: Callable[[Path], None]):
        self._path = folder / f"answers{suffix}"
        self._put = put
        if suffix == ".csv":
            options = pyarrow.csv.WriteOptions(quoting_style="none", quoting_header="none")
            self._writer = pyarrow.csv.CSVWriter(self._path, SCHEMA, write_options=options)
        else:
            # Names differ from row to row: a dictionary of them would be a second copy.
            repeated = [name for name in SCHEMA.names if name != "ipst"]
            self._writer = pq.ParquetWriter(self._path, SCHEMA, use_dictionary=repeated)

    def write(self, batch: pa.RecordBatch) -> None:
        """See `Writer`."""
        self._writer.write_batch(batch)

    def commit(self) -> None:
        """See `Writer`."""
        self._writer.close()
        self._put(self._path)

    def abort(self) -> None:
        """See `Writer`."""
        # Closing writes the rest, which fails once more where the disk is full.
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._path.unlink(missing_ok=True)
