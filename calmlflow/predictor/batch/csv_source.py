"""A CSV file of many jobs, in pieces: every cell as text, whatever its neighbours are."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from calmlflow.errors import InputError
from calmlflow.predictor.batch.features import CELLS
from calmlflow.predictor.batch.pieces import Piece, Refused, Source, check_unchanged, reading, skipping, stamp

_BLOCK_BYTES = 4 << 20
_LINE_BYTES = 1 << 20
_SHOWN = 1_000
_EXPECTED = "expected a header line and comma-separated records"
# How tables that do not come from Python write that there is nothing.
_NOTHING = pa.array(["NA", "N/A", "n/a", "#N/A", "NULL", "null"])


def open_csv(path: Path, shown: str) -> Source:
    """Open a CSV file; ``shown`` names it in errors. A line without as many cells as the header is a refused row."""
    with path.open("rb") as file:
        if b"\0" in file.read(65_536):
            raise InputError(f"{shown} is not text; {_EXPECTED}")
        file.seek(0)
        columns = _header(file, shown)
    before = stamp(path)

    def pieces() -> Iterator[Piece]:
        number = 1
        with reading(shown, _EXPECTED), path.open("rb") as file:
            _header(file, shown)
            while block := _block(file, shown):
                piece = _parse_block(block.decode("utf-8", "replace"), columns, number)
                number = max(piece.last + 1, number)
                yield piece
        check_unchanged(path, before)

    def read(after: int, good: int) -> Iterator[Piece]:
        del good  # A block has some ten thousand rows.
        return skipping(pieces(), after)

    return Source(shown, columns, None, before, read, (path,))


def _header(file: BinaryIO, shown: str) -> tuple[str, ...]:
    """Read the header line; blank ones before it do not count."""
    for line in iter(lambda: file.readline(_LINE_BYTES), b""):
        try:
            cells = next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
        except csv.Error as error:
            raise InputError(f"{shown} has no header that can be read ({error}); {_EXPECTED}") from None
        if any(map(str.strip, cells)):
            return tuple(cell.strip() for cell in cells)
    raise InputError(f"{shown} is empty; {_EXPECTED}")


def _block(file: BinaryIO, shown: str) -> bytes:
    """The next lines; a line break between quotation marks does not end one."""
    block = file.read(_BLOCK_BYTES)
    rest = file.readline(_LINE_BYTES)
    if len(rest) == _LINE_BYTES:
        raise InputError(f"{shown} has a line of more than {_LINE_BYTES:,} bytes; {_EXPECTED}")
    block += rest
    if block.count(b'"') % 2:
        end = file.tell()
        more = b""
        for line in iter(lambda: file.readline(_LINE_BYTES), b""):
            more += line
            if line.count(b'"') % 2:
                return block + more
            if len(more) > _LINE_BYTES:
                break
        # It is never closed: a mark that stands for inches, perhaps.
        file.seek(end)
    return block


def _parse_block(text: str, columns: tuple[str, ...], number: int) -> Piece:
    if '"' in text:
        # Arrow takes all up to the next mark for one cell, also where the first one stands for inches.
        return _parse_rows(_quoted_rows(text), columns, number)
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
            pyarrow.csv.ParseOptions(invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowException:
        is_whole = False
    if is_whole:
        cells = [column.combine_chunks() for column in table.columns]
        return Piece(_batch_of_text(cells, columns), number + np.arange(table.num_rows))
    return _parse_rows((line.split(",") for line in _lines(text)), columns, number)


def _lines(text: str) -> list[str]:
    """Those with something in them; not `str.splitlines`, which also breaks at characters that a cell may hold."""
    return [line for line in re.split("\r\n|\r|\n", text) if line]


def _quoted_rows(text: str) -> list[list[str] | str]:
    """Rows of a block with quotation marks, a line of text where they do not fit together.

    A mark that is never closed, or closed in the middle of another row's cell, must not swallow the rows in between.
    """
    try:
        return list(filter(None, csv.reader(io.StringIO(text, newline=""), strict=True)))
    except csv.Error:
        return [_row_of_line(line) for line in _lines(text)]


def _row_of_line(line: str) -> list[str] | str:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return line


def _parse_rows(rows: Iterable[list[str] | str], columns: tuple[str, ...], number: int) -> Piece:
    """The same for rows of which not every one has as many cells as the header."""
    right: list[list[str]] = []
    numbers: list[int] = []
    refused: list[Refused] = []
    for place, row in enumerate(rows, start=number):
        if len(row) == len(columns) and not isinstance(row, str):
            right.append(row)
            numbers.append(place)
            continue
        reason = f"the line has {len(row)} cells; expected {len(columns)}, as the header has"
        if isinstance(row, str):
            reason = "the line's quotation marks do not fit together; expected them around whole cells"
            row = row[:_SHOWN].split(",")
        refused.append(Refused(place, reason, dict(zip(columns, row, strict=False))))
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
