"""Answer many jobs in the order of their rows, and list the rows that break a rule."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, OPTIONAL_KEYS, parse_control
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.batch.answers import answer_schema, answer_table, memory_warnings
from calmlflow.predictor.batch.features import NAMES, cells_at, form_of, read_jobs
from calmlflow.predictor.bundle import Bundle
from calmlflow.storage.s3 import S3Object, asking, list_objects, new_client, parse_s3, read_object
from calmlflow.storage.tables import SUFFIXES, Piece, RefusedRow, TableWriter, new_table, open_table

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_ADDED = ("row", "reason")
_THREADS = 16
_SHOWN_WARNINGS = 20
_CONTROL_COLUMNS = ("ipst", "n_files", "total_mb", *OPTIONAL_KEYS)
_CONTROL_KEY = re.compile(r"control/([^/\s]+)/\1_MemModelFeatures\.txt")


class _Serving(Protocol):
    """`calmlflow.predictor.predictor.Serving`, which imports this module."""

    @property
    def bundle(self) -> Bundle | None: ...

    @property
    def version(self) -> str | None: ...


@dataclass(frozen=True)
class BatchOutcome:
    """Where predictions are, and the rows without an answer (a CSV file, or None); version of the bundle or policy.

    ``warnings`` counts the rows of each sentence on a switch, or on memory that does not fit the rung.
    """

    output: str
    answered: int
    errors: str | None
    failed: int
    version: str
    warnings: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.answered:,} jobs answered by version {self.version}: {self.output}"
        return text + (f"; {self.failed:,} rows could not be answered: {self.errors}" if self.errors else "")


@dataclass(frozen=True)
class _Source:
    name: str
    columns: tuple[str, ...]
    rows: int | None
    pieces: Iterator[Piece]


def predict_many(
    serving: _Serving,
    data: "str | Path | pd.DataFrame | pa.Table | Iterable[pa.RecordBatch]",
    output: str | Path,
    *,
    chunk_rows: int = 65_536,
    on_progress: Callable[[int, int | None], None] | None = None,
    is_part: bool = False,
) -> BatchOutcome:
    """Answer many jobs, all by the same version.

    Rows name their dataset in ``ipst`` or ``ipppssoot`` and hold either the nine features of a job record or the keys
    of a control file. Answers are in the order of the rows. A row that breaks a rule goes to ``{stem}.errors.csv``
    beside the output, with its number from 1, the reason and its cells. Output and errors appear when they are whole.
    A switch with a word that no header uses, or without one, costs no answer: such rows are counted and logged, and so
    are jobs whose memory does not fit the rung.

    Parameters
    ----------
    data : str, Path, DataFrame, Table or iterable of RecordBatch
        A CSV file, a Parquet file, a folder of Parquet files; ``s3://bucket/key.csv`` or ``.parquet``, or
        ``s3://bucket/prefix`` with control files below it; or batches of one schema.
    output : str or Path
        A path or ``s3://bucket/key`` that ends in .csv or .parquet, with the columns of
        `calmlflow.predictor.batch.answers.answer_schema`.
    chunk_rows : int
        Rows in memory at a time, 1 or more.
    on_progress : callable, optional
        Called with the rows done, and all rows if their number is known.
    is_part : bool
        No row need be answered: the output has none then.

    Raises
    ------
    InputError
        Input or output is none of those, the output would replace the input, or no row can be answered.
    """
    place = str(output)
    suffix = Path(place).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"output {place!r} ends in {suffix!r}; expected {' or '.join(SUFFIXES)}")
    errors = place[: -len(suffix)] + ".errors.csv"
    if isinstance(data, str | Path):
        _check_apart(str(data), (place, errors))
    answered = failed = 0
    first_reason = "no rows"
    warnings: dict[str, int] = {}
    examples: dict[str, str] = {}
    ladder = serving.bundle.ladder if serving.bundle else LADDER
    with ExitStack() as stack:
        source = _open(data, chunk_rows, stack)
        form_of(source.columns, source.name)
        passed_on = [name for name in source.columns if name not in _ADDED]
        error_schema = pa.schema([("row", pa.int64()), ("reason", pa.string()), *((n, pa.string()) for n in passed_on)])
        answer_writer = stack.enter_context(new_table(place, answer_schema(ladder)))
        error_writer: TableWriter | None = None
        for piece in source.pieces:
            # The files of a folder may differ in their columns.
            jobs = read_jobs(piece.batch, form_of(piece.batch.schema.names, source.name))
            answers = answer_table(jobs, serving.bundle)
            answer_writer.write(answers)
            answered += len(jobs.names)
            for sentence, (rows, example) in (jobs.warnings | memory_warnings(answers, ladder)).items():
                warnings[sentence] = warnings.get(sentence, 0) + rows
                examples.setdefault(sentence, example)
            if wrong := _wrong_rows(piece, jobs.reasons):
                if error_writer is None:
                    first_reason = wrong[0]["reason"]
                    # Opened last, so it takes its place before the answers do.
                    error_writer = stack.enter_context(new_table(errors, error_schema))
                error_writer.write(pa.RecordBatch.from_pylist(wrong, schema=error_schema))
                failed += len(wrong)
            if on_progress:
                on_progress(answered + failed, source.rows)
        if not answered and not is_part:
            raise InputError(f"no row of {source.name} can be answered; the first reason: {first_reason}")
    if not failed:
        _remove(errors)
    for sentence in sorted(warnings, key=warnings.__getitem__, reverse=True)[:_SHOWN_WARNINGS]:
        log.warning("%s rows, the first is %s: %s", f"{warnings[sentence]:,}", examples[sentence], sentence)
    return BatchOutcome(place, answered, errors if failed else None, failed, serving.version or "policy", warnings)


def _check_apart(data: str, outputs: tuple[str, ...]) -> None:
    """Raise an InputError if an output would replace the input, or lie in its folder."""
    for output in outputs:
        is_same = output == data
        if not (data.startswith("s3://") or output.startswith("s3://")):
            path = Path(output).resolve()
            is_same = Path(data).resolve() in (path, *path.parents)
        if is_same:
            raise InputError(f"{output} would be written over the input {data}; expected an output elsewhere")


def _remove(place: str) -> None:
    """Remove the errors of an earlier call."""
    if not place.startswith("s3://"):
        Path(place).unlink(missing_ok=True)
        return
    target = parse_s3(place)
    try:
        with asking(target, "removed", "a bucket of yours"):
            new_client().delete_object(Bucket=target.bucket, Key=target.key)
    except CalmlflowError as error:
        # The object may not even exist; the answers are in their place.
        log.warning("%s", error)


def _wrong_rows(piece: Piece, reasons: dict[int, str]) -> list[dict[str, Any]]:
    """The rows of a piece that cannot be answered, with number, reason and cells as text, in order."""
    rows: list[dict[str, Any]] = [{**row.cells, "row": row.number, "reason": row.reason} for row in piece.refused]
    if reasons:
        positions = sorted(reasons)
        names = piece.batch.schema.names
        columns = [cells_at(column, positions) for column in piece.batch.columns]
        for position, cells in zip(positions, zip(*columns, strict=True), strict=True):
            text = {name: None if cell is None else str(cell) for name, cell in zip(names, cells, strict=True)}
            rows.append({**text, "row": int(piece.numbers[position]), "reason": reasons[position]})
        rows.sort(key=lambda row: row["row"])
    return rows


# -- Input ------------------------------------------------------------------------------------------------------------


def _open(data: Any, chunk_rows: int, stack: ExitStack) -> _Source:
    if not isinstance(data, str | Path):
        return _open_batches(data, chunk_rows)
    if str(data).startswith("s3://") and Path(str(data)).suffix.lower() not in SUFFIXES:
        return _open_control_files(parse_s3(str(data)), chunk_rows)
    table = stack.enter_context(open_table(data, NAMES))
    return _Source(table.name, table.columns, table.rows, table.pieces(chunk_rows))


def _open_batches(data: Any, chunk_rows: int) -> _Source:
    """Take a DataFrame, an Arrow table, or record batches of one schema."""
    table = pa.Table.from_pandas(data, preserve_index=False) if hasattr(data, "to_parquet") else data
    batches = table.to_batches(chunk_rows) if isinstance(table, pa.Table) else table
    iterator = iter(batches) if isinstance(batches, Iterable) else iter([batches])
    first = next(iterator, None)
    if first is None:
        raise InputError("the table has no rows; expected some")
    if not isinstance(first, pa.RecordBatch):
        raise InputError(
            f"many jobs cannot be read from {type(data).__name__} of {type(first).__name__}; expected the name of a "
            "file or of a place in S3, a DataFrame, an Arrow table or record batches"
        )

    def pieces() -> Iterator[Piece]:
        number = 1
        for batch in chain([first], iterator):
            yield Piece(batch, number + np.arange(batch.num_rows))
            number += batch.num_rows

    rows = table.num_rows if isinstance(table, pa.Table) else None
    return _Source("the table", tuple(first.schema.names), rows, pieces())


def _open_control_files(target: S3Object, chunk_rows: int) -> _Source:
    """Read the control files under a prefix, many at a time."""
    client = new_client(connections=_THREADS)
    listed = list_objects(client, target._replace(key=target.key or "control/"), "a bucket with control files")
    found = (item["Key"] for item in listed if _CONTROL_KEY.fullmatch(item["Key"]))
    first = next(found, None)
    if first is None:
        raise InputError(
            f"there is no control file under {target}; expected keys control/ipst/ipst_MemModelFeatures.txt, or an "
            "object that ends in .csv or .parquet"
        )

    def pieces() -> Iterator[Piece]:
        number = 1
        with ThreadPoolExecutor(_THREADS) as pool:
            remaining = chain([first], found)
            while some := list(islice(remaining, min(chunk_rows, 1_000))):
                contents = pool.map(partial(_read_control_file, client, target.bucket), some)
                yield _control_piece(number, some, list(contents))
                number += len(some)

    return _Source(str(target), _CONTROL_COLUMNS, None, pieces())


def _read_control_file(client: Any, bucket: str, key: str) -> dict[str, str] | InputError:
    """Keys of a control file, or what is wrong with it; a fault of S3 is raised."""
    name = key.split("/")[1]
    try:
        if parse_dataset(name).is_hap:
            return {"ipst": name}
        content = read_object(client, S3Object(bucket, key), MAX_CONTROL_FILE_BYTES, "a control file")
        return {**parse_control(content), "ipst": name}
    except InputError as error:
        return error


def _control_piece(first: int, keys: list[str], contents: list[dict[str, str] | InputError]) -> Piece:
    rows: dict[int, dict[str, str]] = {}
    refused = []
    for number, (key, content) in enumerate(zip(keys, contents, strict=True), start=first):
        if isinstance(content, InputError):
            refused.append(RefusedRow(number, str(content), {"ipst": key.split("/")[1]}))
        else:
            rows[number] = content
    columns = {name: pa.array([row.get(name) for row in rows.values()], pa.string()) for name in _CONTROL_COLUMNS}
    return Piece(pa.RecordBatch.from_pydict(columns), np.array([*rows], dtype=np.int64), tuple(refused))
