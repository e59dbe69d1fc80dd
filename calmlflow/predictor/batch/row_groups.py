"""Answer the parts of a large Parquet table one by one, each by its own task, into a folder of Parquet files."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calmlflow.errors import InputError
from calmlflow.predictor.batch.features import NAMES
from calmlflow.predictor.batch.predict import predict_many
from calmlflow.predictor.predictor import Predictor
from calmlflow.storage.tables import open_table

PART_ROWS = 4_000_000
"""Whole row groups up to so many jobs are one task: seconds of work, at 10^6 jobs a second without evidence."""


def parts_of(data: str, version: str, registry_uri: str, timeout_s: float) -> list[dict[str, Any]]:
    """Tasks of `answer_part` for a Parquet file or a folder of them; an InputError where the table is none."""
    tasks: list[dict[str, Any]] = []
    with open_table(data, NAMES) as table:
        if data.startswith("s3://") or table.rows is None:
            raise InputError(f"{data} is answered as one; expected a Parquet file, or a folder of them, for parts")
        for path in table.paths:
            place, stat = str(path.resolve()), path.stat()
            with pq.ParquetFile(path) as parquet:
                rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            is_new = True
            for group, count in enumerate(rows):
                if not count:
                    continue
                if is_new or tasks[-1]["rows"] + count > PART_ROWS:
                    given = {"file": place, "size": stat.st_size, "changed": stat.st_mtime_ns, "rows": 0, "groups": []}
                    given |= {"version": version, "registry_uri": registry_uri, "timeout_s": timeout_s}
                    tasks.append(given)
                    is_new = False
                tasks[-1]["groups"].append(group)
                tasks[-1]["rows"] += count
    return tasks


def answer_part(task: Mapping[str, Any]) -> dict[str, int]:
    """Answer a part, by the version that the command found; gives the rows of each warning.

    Errors are numbered from the first row of the part.
    """
    serving = _predictor(task["version"], task["registry_uri"], task["timeout_s"]).serving
    stat = Path(task["file"]).stat()
    if (stat.st_size, stat.st_mtime_ns) != (task["size"], task["changed"]):
        raise InputError(f"{task['file']} is another file for a worker; expected the same for all, and no changes")
    batches = _batches(task["file"], task["groups"])
    return predict_many(serving, batches, task["place"], is_part=True).warnings


@lru_cache(maxsize=1)
def _predictor(version: str, registry_uri: str, timeout_s: float) -> Predictor:
    return Predictor(version, registry_uri, refresh=float("inf"), timeout_s=timeout_s)


def _batches(file: str, groups: list[int]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(65_536, row_groups=groups):
            batch.validate(full=True)
            yield batch
