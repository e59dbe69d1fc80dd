"""Read and write CSV and Parquet tables, in files, folders and S3, as Arrow batches."""

import codecs
import csv
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import types

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.files import replacing
from calmlflow.storage.s3 import download, list_objects, new_client, parse_s3, upload

MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts that stand for a missing cell, as in pandas; in a column of text only an empty cell is missing."""

SUFFIXES = (".csv", ".parquet")
"""Endings of the names of tables."""

BATCH_ROWS = 50_000

_MISSING = pa.array(MISSING)
_HEAD_BYTES = 1 << 16
# A record must fit in one block.
_BLOCK_BYTES = 4 << 20
_SHOWN_CHARACTERS = 1_000
_LINE_END = re.compile("[\r\n]")
_SPECIAL = '[",\r\n]'
_CSV = "expected a header line and comma-separated records"
_PARQUET = "expected a Parquet file with columns of numbers and text"


class RefusedRow(NamedTuple):
    """A row with a wrong number of cells: its number from 1, what is wrong, and its first cells."""

    number: int
    reason: str
    cells: dict[str, str]


class Piece(NamedTuple):
    """Rows of a table.

    Attributes
    ----------
    batch : RecordBatch of n rows
        Cells of a CSV file are text.
    numbers : ndarray of int64, shape (n,)
        Number of each row in the table, from 1.
    refused : tuple of RefusedRow
        Rows that are not in ``batch``; their numbers lie among ``numbers``, or right before or after them.
    """

    batch: pa.RecordBatch
    numbers: NDArray[np.int64]
    refused: tuple[RefusedRow, ...] = ()


class _File(NamedTuple):
    """A local file of a table, its name for errors, and its format."""

    path: Path
    shown: str
    is_parquet: bool


@dataclass(frozen=True)
class TableSource:
    """An open table, see `open_table`.

    Attributes
    ----------
    name : str
        For people.
    columns : tuple of str
        Of all files.
    rows : int or None
        None for a CSV file, whose rows nobody has counted.
    """

    name: str
    columns: tuple[str, ...]
    rows: int | None
    _files: tuple[_File, ...]
    _text_columns: frozenset[str]

    @property
    def paths(self) -> list[Path]:
        """Its files, or their copies, in order."""
        return [file.path for file in self._files]

    def pieces(self, batch_rows: int = BATCH_ROWS) -> Iterator[Piece]:
        """Read the table from its beginning, in pieces of at most ``batch_rows`` rows.

        Raises
        ------
        InputError
            The file is damaged; the text names it.
        """
        first = 1
        for file in self._files:
            if file.is_parquet:
                with _reading(file, _PARQUET), pq.ParquetFile(file.path) as parquet:
                    for batch in parquet.iter_batches(batch_rows):
                        # Text that is not UTF-8 would fail far from here.
                        batch.validate(full=True)
                        yield Piece(batch, first + np.arange(batch.num_rows))
                        first += batch.num_rows
            else:
                yield from _csv_pieces(file, self._text_columns, batch_rows)

    def batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Read the batches of `pieces`; an InputError names the first row with a wrong number of cells."""
        for piece in self.pieces(batch_rows):
            if piece.refused:
                row = piece.refused[0]
                raise InputError(f"{self.name}, row {row.number}: {row.reason}")
            yield piece.batch


@contextmanager
def open_table(
    uri: str | Path, text_columns: Collection[str] = (), columns: Collection[str] = (), shown: str = ""
) -> Iterator[TableSource]:
    """Open a table of any size; objects of S3 are copied to a temporary folder while the block runs.

    Parameters
    ----------
    uri : str or Path
        A CSV or Parquet file, a folder with Parquet files in it and below, or the same as ``s3://bucket/key`` and
        ``s3://bucket/prefix/``. Hidden files are left out, and files are read in the order of their names.
    text_columns : collection of str
        Columns of a CSV file in which only an empty cell is missing; in others all of `MISSING` are.
    columns : collection of str
        Columns that the caller is going to use: in a Parquet file they must hold numbers or text.
    shown : str
        Name of the table for errors. Default: the URI.

    Raises
    ------
    InputError
        There is no table, a column is there twice, or one of ``columns`` holds neither numbers nor text.
    CalmlflowError
        S3 cannot be read.
    """
    name = shown or str(uri)
    with tempfile.TemporaryDirectory() as temporary:
        files = _fetched(str(uri), Path(temporary)) if str(uri).startswith("s3://") else _local_files(Path(uri), name)
        rows: int | None = 0
        found: dict[str, None] = {}
        for file in files:
            if file.is_parquet:
                with _reading(file, _PARQUET), pq.ParquetFile(file.path) as parquet:
                    _check_schema(parquet.schema_arrow, {*text_columns, *columns}, file.shown)
                    rows = None if rows is None else rows + parquet.metadata.num_rows
                    found |= dict.fromkeys(parquet.schema_arrow.names)
            else:
                rows = None
                found |= dict.fromkeys(_csv_header(file)[0])
        yield TableSource(name, tuple(found), rows, tuple(files), frozenset(text_columns))


def as_numbers(cells: pa.Array) -> pa.Array:
    """Convert text to int64, or to float64 to the last bit; cells that are not all numbers stay as they are."""
    if not types.is_string(cells.type):
        return cells
    try:
        floats = cells.cast(pa.float64())
    except pa.ArrowInvalid:
        plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), r"^\+([0-9.])", r"\1")
        numbers = plain if plain.equals(cells) else as_numbers(plain)
        return cells if types.is_string(numbers.type) else numbers
    try:
        # Not first: Arrow takes 0x10 for a whole number.
        return cells.cast(pa.int64())
    except pa.ArrowInvalid:
        return floats


# -- Places ---------------------------------------------------------------------------------------------------------


def _local_files(path: Path, shown: str) -> list[_File]:
    expected = "expected a CSV file, a Parquet file or a folder of Parquet files"
    try:
        if path.is_dir():
            names = sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())
            files = [_File(path / name, str(path / name), True) for name in names if _is_table_name(name)]
            if not files:
                raise InputError(f"folder {shown} holds no Parquet file; {expected}")
            return files
        if not path.is_file():
            raise InputError(f"{shown} {'is no file' if path.exists() else 'does not exist'}; {expected}")
        with path.open("rb") as opened:
            is_parquet = path.suffix.lower() == ".parquet" or opened.read(4) == b"PAR1"
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}); {expected}") from error
    return [_File(path, shown, is_parquet)]


def _fetched(uri: str, folder: Path) -> list[_File]:
    """Copy an object, or the Parquet objects below a prefix."""
    target = parse_s3(uri)
    client = new_client()
    keys = [target.key]
    if not target.key or target.key.endswith("/"):
        found = (item["Key"] for item in list_objects(client, target, "a bucket with Parquet files"))
        keys = sorted(key for key in found if _is_table_name(key.removeprefix(target.key)))
        if not keys:
            raise InputError(f"there is no Parquet file under {target}; expected some")
    files: list[_File] = []
    for number, key in enumerate(keys):
        one = target._replace(key=key)
        path = folder / f"{number}{Path(key).suffix.lower()}"
        download(one, path, "a CSV or Parquet file", client)
        files += _local_files(path, str(one))
    return files


def _is_table_name(name: str) -> bool:
    """Whether a path in a folder is that of a Parquet file that is not hidden."""
    return name.lower().endswith(".parquet") and not any(part[0] in "._" for part in name.split("/") if part)


@contextmanager
def _reading(file: _File, expected: str) -> Iterator[None]:
    """Translate the errors of pyarrow."""
    try:
        yield
    except CalmlflowError:
        raise
    # Damaged Parquet files raise OSError, and UnicodeDecodeError is a ValueError.
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{file.shown} cannot be read ({reason}); {expected}") from error


# -- Parquet --------------------------------------------------------------------------------------------------------


def _check_schema(schema: pa.Schema, used: Collection[str], shown: str) -> None:
    _check_columns(schema.names, shown)
    fits = (
        *(types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null),
        *(types.is_string, types.is_large_string, types.is_string_view),
    )
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if field.name in used and not any(fit(kind) for fit in fits):
            raise InputError(f"{shown}, column {field.name} holds {str(field.type)[:60]}; expected numbers or text")


def _check_columns(names: Collection[str], shown: str) -> None:
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise InputError(f"{shown} has column {twice[0]} twice; expected it once")


# -- CSV ------------------------------------------------------------------------------------------------------------


def _csv_header(file: _File) -> tuple[list[str], int]:
    """Names of the columns, and the place where the records begin."""
    with _reading(file, _CSV):
        with file.path.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
        if b"\0" in head:
            raise InputError(f"{file.shown} is not text; {_CSV}")
        line = re.match(rb"(?:\xef\xbb\xbf)?[\r\n]*([^\r\n]+)", head)
        if line is None:
            raise InputError(f"{file.shown} is empty; {_CSV}")
        try:
            columns = [name.strip() for name in next(csv.reader([line[1].decode()], strict=True))]
        except csv.Error as error:
            raise InputError(f"{file.shown} has no header that can be read ({error}); {_CSV}") from error
    _check_columns(columns, file.shown)
    return columns, line.end()


def _csv_pieces(file: _File, text_columns: Collection[str], batch_rows: int) -> Iterator[Piece]:
    columns, start = _csv_header(file)
    _check_text(file)
    invalid: list[Any] = []

    def skip(row: Any) -> str:
        invalid.append(row)
        return "skip"

    names = [str(place) for place in range(len(columns))]
    # The last row that was given out, and how many of the invalid ones were.
    last, given = 0, 0
    with _reading(file, _CSV), file.path.open("rb") as opened:
        opened.seek(start)
        if not opened.read(_HEAD_BYTES).strip(b"\r\n"):
            return
        opened.seek(start)
        # All cells are text, so that no cell's type depends on others. Without threads, Arrow numbers the rows. It
        # reads ahead: rows of a later block may be among the invalid ones.
        for block in pyarrow.csv.open_csv(
            opened,
            pyarrow.csv.ReadOptions(column_names=names, block_size=_BLOCK_BYTES, use_threads=False),
            pyarrow.csv.ParseOptions(invalid_row_handler=skip),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        ):
            _check_line_ends(file, block.columns, invalid)
            named = zip(columns, block.columns, strict=True)
            cells = [_with_missing(column, name in text_columns) for name, column in named]
            batch = pa.RecordBatch.from_arrays(cells, columns)
            for offset in range(0, batch.num_rows, batch_rows):
                part = batch.slice(offset, batch_rows)
                pending = invalid[given:]
                numbers = last + 1 + np.arange(part.num_rows + len(pending))
                numbers = numbers[~np.isin(numbers, [row.number for row in pending])][: part.num_rows]
                last = int(numbers[-1])
                before = [row for row in pending if row.number < last]
                given += len(before)
                yield Piece(part, numbers, tuple(_refused(row, columns) for row in before))
        _check_line_ends(file, [], invalid)
    if rest := invalid[given:]:
        nothing = pa.RecordBatch.from_arrays([pa.array([], pa.string()) for _ in columns], columns)
        yield Piece(nothing, np.zeros(0, np.int64), tuple(_refused(row, columns) for row in rest))


def _refused(row: Any, columns: Collection[str]) -> RefusedRow:
    cells = next(csv.reader([row.text[:_SHOWN_CHARACTERS]]), [])
    reason = f"the line has {row.actual_columns} cells; expected {len(columns)}, as the header has"
    return RefusedRow(row.number, reason, dict(zip(columns, cells, strict=False)))


def _check_text(file: _File) -> None:
    """Read the file once: Arrow would show a traceback for text that is not UTF-8 in a line that it refuses."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _reading(file, _CSV), file.path.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            decoder.decode(block)
        decoder.decode(b"", final=True)


def _check_line_ends(file: _File, cells: Collection[pa.Array], invalid: Collection[Any]) -> None:
    """Refuse a line break in a cell: an open quotation mark swallows the records after it."""
    is_broken = any(_LINE_END.search(row.text) for row in invalid) or any(
        pc.any(pc.match_substring(column, end)).as_py() for column in cells for end in ("\n", "\r")
    )
    if is_broken:
        raise InputError(
            f"{file.shown} has a line break in a cell, or a quotation mark that is not closed; expected each record "
            "on one line"
        )


def _with_missing(cells: pa.Array, is_text: bool) -> pa.Array:
    is_missing = pc.equal(cells, "") if is_text else pc.is_in(pc.utf8_trim_whitespace(cells), _MISSING)
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), cells)


# -- Writing --------------------------------------------------------------------------------------------------------


class TableWriter(Protocol):
    """Take the batches of a table; see `new_table`."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""


class _CsvWriter:
    """Write CSV with quotation marks only where a cell needs them."""

    def __init__(self, file: IO[bytes], schema: pa.Schema):
        self._file = file
        self.write(pa.RecordBatch.from_pylist([], schema), with_header=True)

    def write(self, batch: pa.RecordBatch, with_header: bool = False) -> None:
        texts = [column for column in batch.columns if types.is_string(column.type)]
        is_plain = not any(pc.any(pc.match_substring_regex(column, _SPECIAL)).as_py() for column in texts)
        style: Any = "none" if is_plain else "needed"
        options = pyarrow.csv.WriteOptions(include_header=with_header, quoting_style=style, quoting_header="none")
        pyarrow.csv.write_csv(batch, self._file, options)


@contextmanager
def new_table(uri: str | Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Write a table that is there, whole, when the block succeeds; what was there is replaced.

    Parameters
    ----------
    uri : str or Path
        A path or ``s3://bucket/key`` that ends in ``.csv`` or ``.parquet``.
    schema : Schema
        Of the batches.

    Raises
    ------
    InputError
        The name ends otherwise.
    CalmlflowError
        It cannot be written.
    """
    name = str(uri)
    suffix = Path(name).suffix.lower()
    if isinstance(uri, str) and re.match("(?!s3:)[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise InputError(f"table {name!r} is of an unknown scheme; expected a path or s3://bucket/key")
    if suffix not in SUFFIXES:
        raise InputError(f"table {name!r} ends in {suffix!r}; expected {' or '.join(SUFFIXES)}")
    if name.startswith("s3://"):
        target = parse_s3(name)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary, f"table{suffix}")
            with new_table(copy, schema) as writer:
                yield writer
            upload(copy, target, new_client())
        return
    with replacing(Path(name), "wb") as file:
        if suffix == ".csv":
            yield _CsvWriter(file, schema)
        else:
            # Names differ from row to row: a dictionary of them would be a second copy.
            repeated = [name for name in schema.names if name not in ("ipst", "ipppssoot")]
            with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated) as parquet:
                yield parquet
