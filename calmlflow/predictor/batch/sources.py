"""Where many jobs come from: a CSV file, Parquet files, or batches that the caller has."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calmlflow.errors import InputError
from calmlflow.predictor.batch.csv_source import open_csv
from calmlflow.predictor.batch.pieces import Piece, Source, check_unchanged, reading, skipping, stamp


def open_local(path: Path, shown: str = "") -> Source:
    """Open a CSV file, a Parquet file, or a folder with Parquet files below it, read in the order of their paths.

    Parameters
    ----------
    path : Path
    shown : str
        What errors call it. Default: its path.

    Raises
    ------
    InputError
        Nothing there, or no such file; names it.
    """
    shown = shown or str(path)
    expected = "expected a CSV file, a Parquet file or a folder of Parquet files"
    with reading(shown, expected):
        if path.is_dir():
            paths = parquet_files(path)
            if not paths:
                raise InputError(f"folder {path} holds no Parquet file; {expected}")
            return _open_parquet(path, {one: str(one) for one in paths})
        if not path.is_file():
            raise InputError(f"{path} {'is no file' if path.exists() else 'does not exist'}; {expected}")
        with path.open("rb") as file:
            is_parquet = path.suffix.lower() == ".parquet" or file.read(4) == b"PAR1"
        return _open_parquet(path, {path: shown}) if is_parquet else open_csv(path, shown)


def open_batches(data: object, identity: Any = None) -> Source:
    """Take an Arrow table, a DataFrame, or record batches of one schema as they come."""
    table = pa.Table.from_pandas(data, preserve_index=False) if hasattr(data, "to_parquet") else data
    batches = table.to_batches() if isinstance(table, pa.Table) else table
    iterator = iter(batches) if isinstance(batches, Iterable) else iter([batches])
    first = next(iterator, None)
    if first is None:
        raise InputError("the table has no rows; expected some")
    if not isinstance(first, pa.RecordBatch):
        raise InputError(
            f"many jobs cannot be read from {type(data).__name__} of {type(first).__name__}; expected the name of a "
            "file or of a place in S3, a DataFrame, an Arrow table or record batches"
        )

    def read(after: int, good: int) -> Iterator[Piece]:
        return skipping(_cut(chain([first], iterator), good), after)

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


# -- Parquet --------------------------------------------------------------------------------------------------------


_EXPECTED_PARQUET = "expected a Parquet file of job records"


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder and those below it, without hidden ones and those of hidden folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() == ".parquet" and path.is_file())
    return sorted(path for path in found if not any(part[0] in "._" for part in path.relative_to(folder).parts))


def _open_parquet(path: Path, files: dict[Path, str]) -> Source:
    """Open files one after the other; ``files`` says what errors call each."""
    before = [stamp(one) for one in files]
    counts: list[int] = []
    columns: dict[str, None] = {}
    for one, shown in files.items():
        with reading(shown, _EXPECTED_PARQUET), pq.ParquetFile(one) as file:
            counts.append(file.metadata.num_rows)
            columns |= dict.fromkeys(file.schema_arrow.names)

    def batches(after: int, good: int) -> Iterator[pa.RecordBatch]:
        """Without the row groups that lie wholly before ``after``."""
        for (one, shown), was, count in zip(files.items(), before, counts, strict=True):
            if after >= count:
                after -= count
                continue
            with reading(shown, _EXPECTED_PARQUET), pq.ParquetFile(one) as file:
                first = 0
                while after >= (rows := file.metadata.row_group(first).num_rows):
                    after, first = after - rows, first + 1
                groups = range(first, file.metadata.num_row_groups)
                for batch in file.iter_batches(good, row_groups=list(groups)):
                    start, after = min(after, batch.num_rows), max(after - batch.num_rows, 0)
                    yield batch.slice(start)
            check_unchanged(one, was)

    def read(after: int, good: int) -> Iterator[Piece]:
        for piece in _cut(batches(after, good), good):
            yield piece._replace(numbers=piece.numbers + after)

    return Source(str(path), tuple(columns), sum(counts), before, read, (path,))
