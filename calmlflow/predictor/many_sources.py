"""Where many jobs come from, in pieces: a CSV file, Parquet files, or batches that the caller has."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calmlflow.hst.errors import InputError
from calmlflow.predictor.many_features import CELLS


class Refused(NamedTuple):
    """A row that the source itself could not read; ``cells`` are those that it could."""

    number: int
    reason: str
    cells: Mapping[str, Any]


class Piece(NamedTuple):
    """Some rows that follow one another.

    Attributes
    ----------
    batch : RecordBatch of n rows
    numbers : ndarray of int64, shape (n,)
        Number of each row in the input, from 1.
    refused : tuple of Refused
    """

    batch: pa.RecordBatch
    numbers: NDArray[np.int64]
    refused: tuple[Refused, ...] = ()

    @property
    def last(self) -> int:
        """The highest number in it."""
        return max([*self.numbers[-1:].tolist(), *(row.number for row in self.refused[-1:])], default=0)


@dataclass(frozen=True)
class Source:
    """An input, opened.

    Attributes
    ----------
    name : str
        For people.
    columns : tuple of str
    rows : int or None
        How many there are, where that can be told without reading them.
    identity : JSON value, or None
        Equal for two inputs only if they hold the same; None where nobody can tell.
    read : callable
        From a number of rows that are to be left out, and a number of rows that is a good piece, to the pieces.
    files : tuple of Path
        Local files, or the folder, that it reads.
    """

    name: str
    columns: tuple[str, ...]
    rows: int | None
    identity: Any
    read: Callable[[int, int], Iterator[Piece]]
    files: tuple[Path, ...] = ()


def open_local(path: Path) -> Source:
    """Open a CSV file, a Parquet file, or a folder with Parquet files below it, read in the order of their paths.

    Raises
    ------
    InputError
        Nothing there, or no such file; names it.
    """
    expected = "expected a CSV file, a Parquet file or a folder of Parquet files"
    try:
        if path.is_dir():
            paths = parquet_files(path)
            if not paths:
                raise InputError(f"folder {path} holds no Parquet file; {expected}")
            return _open_parquet(path, paths)
        if not path.is_file():
            raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}; {expected}")
        with path.open("rb") as file:
            is_parquet = path.suffix.lower() == ".parquet" or file.read(4) == b"PAR1"
        return _open_parquet(path, [path]) if is_parquet else _open_csv(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {expected}") from None


def open_batches(batches: Iterable[pa.RecordBatch], identity: Any = None) -> Source:
    """Take record batches of one schema as they come."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise InputError("the table has no rows; expected batches with some")

    def read(after: int, good: int) -> Iterator[Piece]:
        return _skipping(_cut(chain([first], iterator), good), after)

    return Source("the table", tuple(first.schema.names), None, identity, read)


def _cut(batches: Iterable[pa.RecordBatch], good: int) -> Iterator[Piece]:
    """Pieces of at most ``good`` rows; small batches of one schema are put together."""
    number = 1
    waiting: list[pa.RecordBatch] = []
    for batch in chain(batches, [None]):
        rows = sum(other.num_rows for other in waiting)
        if waiting and (batch is None or rows + batch.num_rows > good or batch.schema != waiting[0].schema):
            yield Piece(waiting[0] if len(waiting) == 1 else pa.concat_batches(waiting), number + np.arange(rows))
            number += rows
            waiting.clear()
        if batch is None:
            return
        while batch.num_rows > good:
            yield Piece(batch.slice(0, good), number + np.arange(good))
            number += good
            batch = batch.slice(good)
        waiting.append(batch)


def _skipping(pieces: Iterable[Piece], after: int) -> Iterator[Piece]:
    """The pieces without the rows up to a number."""
    for piece in pieces:
        if piece.last > after:
            start = int(np.searchsorted(piece.numbers, after, side="right"))
            refused = tuple(row for row in piece.refused if row.number > after)
            yield Piece(piece.batch.slice(start), piece.numbers[start:], refused)


def _stamp(path: Path) -> list[Any]:
    """What changes with a file's content."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _check_unchanged(path: Path, stamp: list[Any]) -> None:
    if _stamp(path) != stamp:
        raise InputError(f"{path} changed while it was read; expected it to stay as it was")


# -- Parquet --------------------------------------------------------------------------------------------------------


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder and those below it, without hidden ones and those of hidden folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file())
    return sorted(path for path in found if not any(part[0] in "._" for part in path.relative_to(folder).parts))


def _open_parquet(path: Path, paths: list[Path]) -> Source:
    stamps = [_stamp(one) for one in paths]
    counts: list[int] = []
    columns: dict[str, None] = {}
    for one in paths:
        with _reading(one), pq.ParquetFile(one) as file:
            counts.append(file.metadata.num_rows)
            columns |= dict.fromkeys(file.schema_arrow.names)

    def batches(after: int, good: int) -> Iterator[pa.RecordBatch]:
        """Without the row groups that lie wholly before ``after``."""
        for one, stamp, count in zip(paths, stamps, counts, strict=True):
            if after >= count:
                after -= count
                continue
            with _reading(one), pq.ParquetFile(one) as file:
                first = 0
                while after >= (rows := file.metadata.row_group(first).num_rows):
                    after, first = after - rows, first + 1
                groups = range(first, file.metadata.num_row_groups)
                for batch in file.iter_batches(good, row_groups=list(groups)):
                    start, after = min(after, batch.num_rows), max(after - batch.num_rows, 0)
                    yield batch.slice(start)
            _check_unchanged(one, stamp)

    def read(after: int, good: int) -> Iterator[Piece]:
        for piece in _cut(batches(after, good), good):
            yield piece._replace(numbers=piece.numbers + after)

    return Source(str(path), tuple(columns), sum(counts), stamps, read, (path,))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} cannot be read ({reason}); expected a Parquet file of job records") from None


# -- CSV ------------------------------------------------------------------------------------------------------------

_BLOCK_BYTES = 4 << 20
_EXPECTED_CSV = "expected a header line and comma-separated records"
# How tables that do not come from Python write that there is nothing.
_NOTHING = pa.array(["NA", "N/A", "n/a", "#N/A", "NULL", "null"])


def _open_csv(path: Path) -> Source:
    with path.open("rb") as file:
        if b"\0" in file.read(65_536):
            raise InputError(f"{path} is not text; {_EXPECTED_CSV}")
        file.seek(0)
        columns = _header(file, path)
    stamp = _stamp(path)

    def pieces() -> Iterator[Piece]:
        number = 1
        with path.open("rb") as file:
            _header(file, path)
            while block := _block(file):
                piece = _parse_block(block.decode("utf-8", "replace"), columns, number)
                number = max(piece.last + 1, number)
                yield piece
        _check_unchanged(path, stamp)

    def read(after: int, good: int) -> Iterator[Piece]:
        del good  # A block has some ten thousand rows.
        return _skipping(pieces(), after)

    return Source(str(path), columns, None, stamp, read, (path,))


def _header(file: BinaryIO, path: Path) -> tuple[str, ...]:
    """Read the header line; blank ones before it do not count."""
    for line in iter(lambda: file.readline(_BLOCK_BYTES), b""):
        cells = next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
        if any(map(str.strip, cells)):
            return tuple(cell.strip() for cell in cells)
    raise InputError(f"{path} is empty; {_EXPECTED_CSV}")


def _block(file: BinaryIO) -> bytes:
    """The next lines; a line break between quotation marks does not end one."""
    block = file.read(_BLOCK_BYTES) + file.readline(_BLOCK_BYTES)
    if block.count(b'"') % 2:
        end = file.tell()
        more = b""
        for line in iter(lambda: file.readline(_BLOCK_BYTES), b""):
            more += line
            if line.count(b'"') % 2:
                return block + more
            if len(more) > _BLOCK_BYTES:
                break
        # It is never closed: a mark that stands for inches, perhaps.
        file.seek(end)
    return block


def _parse_block(text: str, columns: tuple[str, ...], number: int) -> Piece:
    is_whole = True

    def note(row: Any) -> str:
        nonlocal is_whole
        is_whole = False
        return "skip"

    names = [str(position) for position in range(len(columns))]
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            pyarrow.csv.ReadOptions(column_names=names, block_size=4 * len(text) + 1),
            pyarrow.csv.ParseOptions(newlines_in_values='"' in text, invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowException:
        is_whole = False
    if is_whole:
        cells = [column.combine_chunks() for column in table.columns]
        return Piece(_batch_of_text(cells, columns), number + np.arange(table.num_rows))
    return _parse_ragged(text, columns, number)


def _parse_ragged(text: str, columns: tuple[str, ...], number: int) -> Piece:
    """The same for a block in which not every line has as many cells as the header."""
    right: list[list[str]] = []
    numbers: list[int] = []
    refused: list[Refused] = []
    try:
        for row in filter(None, csv.reader(io.StringIO(text, newline=""))):
            if len(row) == len(columns):
                right.append(row)
                numbers.append(number)
            else:
                reason = f"the line has {len(row)} cells; expected {len(columns)}, as the header has"
                refused.append(Refused(number, reason, dict(zip(columns, row, strict=False))))
            number += 1
    except csv.Error as error:
        refused.append(Refused(number, f"the line is no record ({error}); expected comma-separated cells", {}))
    cells = [pa.array(column, pa.string()) for column in zip(*right, strict=True)] or [pa.nulls(0, pa.string())] * len(
        columns
    )
    return Piece(_batch_of_text(cells, columns), np.array(numbers, dtype=np.int64), tuple(refused))


def _batch_of_text(cells: list[pa.Array], columns: tuple[str, ...]) -> pa.RecordBatch:
    kept = (
        pc.if_else(pc.is_in(column, _NOTHING), pa.scalar(None, pa.string()), column) if name in CELLS else column
        for name, column in zip(columns, cells, strict=True)
    )
    return pa.RecordBatch.from_arrays(list(kept), names=list(columns))
