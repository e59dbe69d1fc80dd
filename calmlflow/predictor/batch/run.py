"""Answers to many jobs, in pieces and in order; interrupted, it goes on where it stopped."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

import calmlflow
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.batch.answers import KnownRows, answer_table, fingerprint
from calmlflow.predictor.batch.features import cells_at, form_of, read_jobs
from calmlflow.predictor.batch.outputs import Target, Writer, target_of
from calmlflow.predictor.batch.parts import Parts, claimed
from calmlflow.predictor.batch.pieces import Piece, Source
from calmlflow.predictor.batch.s3 import open_s3
from calmlflow.predictor.batch.sources import open_batches, open_local
from calmlflow.predictor.bundle import Bundle

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 65_536

OnProgress = Callable[[int, int | None], None]
"""Called with rows done, and rows in all where they are known."""

_ADDED = ("row", "reason")


class _Serving(Protocol):
    @property
    def bundle(self) -> Bundle | None: ...

    @property
    def version(self) -> str | None: ...


class _Predictor(Protocol):
    @property
    def serving(self) -> _Serving: ...


@dataclass(frozen=True)
class BatchOutcome:
    """Where predictions went, and how many rows could not be answered.

    Attributes
    ----------
    output : str
    answered : int
    errors : str or None
        File of the rows that could not be answered; None where there are none.
    failed : int
    version : str
        Of the bundle, or ``policy``.
    kept : int
        Rows that an earlier, interrupted call had done.
    """

    output: str
    answered: int
    errors: str | None
    failed: int
    version: str
    kept: int = 0

    def __str__(self) -> str:
        """One line for a person."""
        text = f"{self.answered:,} jobs answered by version {self.version}: {self.output}"
        if self.errors:
            text += f"; {self.failed:,} rows could not be answered: {self.errors}"
        return text + (f"; {self.kept:,} rows were done before" if self.kept else "")


def predict_many(
    predictor: _Predictor,
    data: "str | Path | pd.DataFrame | pa.Table | Iterable[pa.RecordBatch]",
    output: str | Path | Writer,
    *,
    errors: str | Path | None = None,
    identity: Any = None,
    chunk_rows: int = CHUNK_ROWS,
    on_progress: OnProgress | None = None,
) -> BatchOutcome:
    """Answer many jobs, all by the version that serves when it begins.

    Rows name their dataset in ``ipst`` or ``ipppssoot`` and hold either the nine features of a job record or a control
    file's keys. Answers come in the order of the rows; a row that breaks a rule is written to the errors, with its
    number, the reason and its cells. The output appears when it is whole. Until then finished parts are kept in a
    hidden folder beside it: called again after an interruption, with the same input and version, it goes on with them.

    Parameters
    ----------
    predictor : Predictor
        Or what else has such a ``serving``.
    data : str, Path, DataFrame, Table or iterable of RecordBatch
        A CSV file, a Parquet file, a folder of Parquet files; ``s3://bucket/key.csv`` or ``.parquet``, or
        ``s3://bucket/prefix`` with the control files below it; or batches of one schema.
    output : str, Path or Writer
        A path or ``s3://bucket/key`` that ends in .csv or .parquet, with the columns of
        `calmlflow.predictor.batch.answers.SCHEMA`; or what takes batches.
    errors : str or Path, optional
        CSV file for the rows that cannot be answered. Default, except with a Writer: ``{stem}.errors.csv`` beside the
        output.
    identity : JSON value, optional
        Of ``data`` that are batches: equal for equal input. Without it an interrupted call begins anew.
    chunk_rows : int
        Rows in memory at a time, 1 or more; of a CSV file it is always some megabytes.
    on_progress : callable, optional

    Raises
    ------
    InputError
        Input or output that is none of those, or no row that can be answered.
    CalmlflowError
        Output that cannot be written or that another process is writing, or S3 out of reach.
    """
    if chunk_rows < 1:
        raise InputError(f"chunk_rows is {chunk_rows}; expected 1 or more")
    serving = predictor.serving
    target = target_of(output, errors)
    with _writing(target), claimed(target.work, target.name):
        source = _open(data, target, identity)
        form_of(source.columns, source.name)
        header = {
            "input": source.identity,
            "version": serving.version,
            "bundle": fingerprint(serving.bundle),
            "calmlflow": calmlflow.__version__,
            "chunk_rows": chunk_rows,
        }
        parts = Parts(target.work, header)
        kept = parts.last
        known = KnownRows(serving.bundle) if serving.bundle else None
        for piece in source.read(kept, chunk_rows):
            _add_part(parts, piece, source, known)
            if on_progress:
                on_progress(parts.last, source.rows)
        _deliver(parts, source, target)
        parts.remove()
    answered, failed = (sum(getattr(part, name) for part in parts.done) for name in ("answered", "failed"))
    return BatchOutcome(
        target.name, answered, target.errors if failed else None, failed, serving.version or "policy", kept
    )


def _open(data: object, target: Target, identity: Any) -> Source:
    if not isinstance(data, str | Path):
        return open_batches(data, identity)
    if str(data).startswith("s3://"):
        if str(data) in (target.name, target.errors):
            raise InputError(f"{data} is input and output; expected two objects")
        return open_s3(str(data), target.work)
    source = open_local(Path(data))
    inputs = {path.resolve() for path in source.files}
    for path in target.files:
        if inputs & {path.resolve(), *path.resolve().parents}:
            raise InputError(f"{path} would be written over the input {data}; expected an output elsewhere")
    return source


def _add_part(parts: Parts, piece: Piece, source: Source, known: KnownRows | None) -> None:
    # The files of a folder may differ in their columns.
    jobs = read_jobs(piece.batch, form_of(piece.batch.schema.names, source.name))
    failed = [(row.number, row.reason, row.cells) for row in piece.refused]
    if jobs.reasons:
        # Of two columns of one name the first one.
        names = list(dict.fromkeys(piece.batch.schema.names))
        positions = [piece.batch.schema.names.index(name) for name in names]
        wrong = sorted(jobs.reasons)
        cells = [cells_at(piece.batch.column(position), wrong) for position in positions]
        for position, row in zip(wrong, zip(*cells, strict=True), strict=True):
            failed.append((int(piece.numbers[position]), jobs.reasons[position], dict(zip(names, row, strict=True))))
        failed.sort(key=lambda row: row[0])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        (number, reason, *(row.get(name) for name in _passed_on(source))) for number, reason, row in failed
    )
    parts.add(answer_table(jobs, known), text.getvalue(), len(failed), failed[0][1] if failed else "", piece.last)


def _passed_on(source: Source) -> list[str]:
    """Columns of the input that the errors have; those that an earlier call added are made anew."""
    return [name for name in dict.fromkeys(source.columns) if name not in _ADDED]


def _deliver(parts: Parts, source: Source, target: Target) -> None:
    """Put answers and errors into their places, answers last."""
    if not any(part.answered for part in parts.done):
        reason = next((part.reason for part in parts.done), "no rows")
        parts.remove()
        raise InputError(f"no row of {source.name} can be answered; the first reason: {reason}")
    writer = target.open()
    try:
        for batch in parts.batches():
            if batch.num_rows:
                writer.write(batch)
        errors = None
        if any(part.failed for part in parts.done):
            errors = target.work / "errors"
            with errors.open("wb") as file:
                header = io.StringIO()
                csv.writer(header, lineterminator="\n").writerow([*_ADDED, *_passed_on(source)])
                file.write(header.getvalue().encode())
                file.writelines(parts.failures())
        target.put_errors(errors)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


@contextmanager
def _writing(target: Target) -> Iterator[None]:
    """Turn what the file system refuses into a sentence; sources tell of their own files."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:120]
        raise CalmlflowError(
            f"{target.name} cannot be written ({reason}); expected a folder of yours with room: what is done is kept"
        ) from None
