"""Tables of job records in CSV and Parquet files: read as they are, and written so that nothing of them is lost."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import CHUNK_ROWS, TABLES, Kind, Table

_KINDS: dict[str, Kind] = {name: kind for table in TABLES for name, kind in table.columns.items()}
_TEXTS = {"ipppssoot", *(name for name, kind in _KINDS.items() if kind == "text")}
MISSING_NUMBERS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""What pandas takes for a missing cell; in a column of text only an empty cell is missing."""

_ARROW_TYPES: dict[Kind, Any] = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}
_TABLE = "expected a header line and comma-separated records"
_PARQUET = "expected a Parquet file of job records"


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name or its first bytes."""
    if path.suffix.lower() == ".parquet":
        return True
    with _opened(path, str(path)) as file:
        return file.read(4) == b"PAR1"


def read_parts(path: Path, shown: str) -> Iterator[pd.DataFrame]:
    """The rows of a file as they are, in parts; the index is the number of the row.

    Parameters
    ----------
    path : Path
    shown : str
        What errors call it.

    Raises
    ------
    InputError
        The file is no table.
    """
    if not is_parquet(path):
        table = _read_csv(path, shown)
        for start in range(0, len(table), CHUNK_ROWS):
            yield table.iloc[start : start + CHUNK_ROWS]
        if table.empty:
            yield table
        return
    start = 0
    with _reading_parquet(shown), pq.ParquetFile(path) as file:
        _check_types(file.schema_arrow, shown)
        if not file.metadata.num_rows:
            yield file.schema_arrow.empty_table().to_pandas(ignore_metadata=True)
        for batch in file.iter_batches(CHUNK_ROWS):
            # A text that is none would be found out far from here.
            batch.validate(full=True)
            part = batch.to_pandas(ignore_metadata=True)
            part.index = pd.RangeIndex(start, start + len(part))
            start += len(part)
            yield part


def read_whole(path: Path, shown: str) -> pa.Table:
    """A file, to be changed and written again: cells of a CSV are text, to the letter."""
    if not is_parquet(path):
        return pa.Table.from_pandas(_read_csv(path, shown, as_text=True), preserve_index=False)
    with _reading_parquet(shown):
        table = pq.read_table(path, partitioning=None)
        _check_types(table.schema, shown)
        table.validate(full=True)
    return table


def write_whole(table: pa.Table, path: Path, as_parquet: bool) -> None:
    """Write a file."""
    if as_parquet:
        pq.write_table(table, path, compression="zstd")
    else:
        rows = table.to_pandas(ignore_metadata=True)
        # A lone carriage return ends a line for readers, and Python's writer leaves it bare.
        is_returned = any(rows[name].str.contains("\r", regex=False, na=False).any() for name in rows)
        quoting = csv.QUOTE_ALL if is_returned else csv.QUOTE_MINIMAL
        with path.open("w", encoding="utf-8", newline="") as file:
            rows.to_csv(file, index=False, lineterminator="\n", quoting=quoting)


# -- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, shown: str, as_text: bool = False) -> pd.DataFrame:
    with _opened(path, shown) as file:
        # pandas reads on past a NUL, and would take a binary file for a table of odd words.
        if b"\0" in file.read(65_536):
            raise InputError(f"{shown} is not text; {_TABLE}")
        file.seek(0)
        try:
            if as_text:
                table = pd.read_csv(file, dtype="str", na_filter=False)
            else:
                names = pd.read_csv(file, nrows=0).columns
                file.seek(0)
                table = pd.read_csv(
                    file,
                    dtype={name: "str" for name in names if name in _TEXTS},
                    na_values={name: [""] if name in _TEXTS else list(MISSING_NUMBERS) for name in names},
                    keep_default_na=False,
                    # To the last bit: another reading of the same figures would be another record.
                    float_precision="round_trip",
                    # Whole columns at once, so that the type of a cell does not depend on its neighbours.
                    low_memory=False,
                )
        except pd.errors.EmptyDataError:
            raise InputError(f"{shown} is empty; {_TABLE}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{shown} is not UTF-8 text ({error.reason}); {_TABLE}") from None
        except (pd.errors.ParserError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{shown} is no CSV table ({reason}); {_TABLE}") from None
    if not isinstance(table.index, pd.RangeIndex):
        # pandas takes surplus cells at the start of each line for row labels, and shifts the others.
        raise InputError(f"{shown} has lines with more cells than its header; {_TABLE}")
    return table


@contextmanager
def _opened(path: Path, shown: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}); {_TABLE}") from None


def csv_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as `conform` makes them, as text that reads back to the same cells."""

    def text(cells: pd.Series) -> pd.Series:
        if cells.dtype == np.float64:
            # The shortest text that is this number.
            cells = pd.Series(cells.to_numpy().astype("U32"), index=cells.index, dtype="str").where(cells.notna())
        return cells.astype("str").fillna("")

    return pd.DataFrame({name: text(rows[name]) for name in rows}, index=rows.index)


# -- Parquet --------------------------------------------------------------------------------------------------------


@contextmanager
def _reading_parquet(shown: str) -> Iterator[None]:
    try:
        yield
    except CalmlflowError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"{shown} is no Parquet file ({reason}); {_PARQUET}") from None


def _check_types(schema: pa.Schema, shown: str) -> None:
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise InputError(f"{shown} has more than one column {twice}; {_PARQUET}")
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        fits = (
            *(types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null),
            *(types.is_string, types.is_large_string, types.is_string_view),
        )
        if field.name in _KINDS and not any(fit(kind) for fit in fits):
            raise InputError(f"{shown}, column {field.name} holds {str(field.type)[:60]}; expected numbers or text")


def merged(old: pa.Table, new: pa.Table, places: np.ndarray, table: Table) -> pa.Table:
    """A table with rows replaced, and others added at its end.

    Parameters
    ----------
    old : Table of n rows
    new : Table of m rows
        Of the columns that ``old`` lacks, its old rows have missing cells.
    places : ndarray of int64, shape (m,)
        Row of ``old`` that a row takes the place of, or -1. It keeps the columns that ``new`` lacks.
    table : Table
    """
    replaced = pa.array(places, mask=places < 0)
    columns = {}
    for name in [*old.column_names, *(name for name in new.column_names if name not in old.column_names)]:
        if name not in old.column_names:
            after = new[name]
            before = pa.chunked_array([pa.nulls(len(old), after.type)])
        elif name not in new.column_names:
            before = old[name]
            after = before.take(replaced)
        else:
            before, after = _alike(old[name], new[name], _ARROW_TYPES[table.columns[name]])
        columns[name] = pa.chunked_array([*before.chunks, *after.chunks], before.type)
    order = np.arange(len(old))
    order[places[places >= 0]] = len(old) + np.flatnonzero(places >= 0)
    return pa.table(columns).take(np.concatenate([order, len(old) + np.flatnonzero(places < 0)]))


def _alike(old: pa.ChunkedArray, new: pa.ChunkedArray, own: pa.DataType) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    if types.is_string(new.type) or types.is_large_string(new.type):
        # Those of a CSV are text, whatever their column.
        own = new.type
    try:
        return old.cast(own), new.cast(own)
    except pa.ArrowInvalid:
        # A cell of the old rows is not of this kind: it stays to the letter.
        return old.cast(pa.string()), new.cast(pa.string())
