"""Keep predictions in a store, and read recorded predictions from a store or from S3."""

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.jobs.stores.base import CHUNK_ROWS, PREDICTIONS, Store, conform
from calmlflow.jobs.stores.open import open_store
from calmlflow.settings import SHADOW
from calmlflow.storage.s3 import S3Object, list_objects, new_client, parse_s3, read_object

log = logging.getLogger(__name__)

_READERS = 32
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Recorded:
    """Predictions of some datasets."""

    # With the columns of `PREDICTIONS`: text and float64, NaN where missing.
    predictions: pd.DataFrame = field(default_factory=lambda: _cells(conform(pd.DataFrame(), PREDICTIONS)))
    # Objects of S3 that hold no prediction, or one without a time, or that are gone or too large.
    unreadable: int = 0


def read_recorded(uri: str, datasets: Collection[str]) -> Recorded:
    """Read the recorded predictions of some datasets.

    Parameters
    ----------
    uri : str
        A store of job records, or ``s3://bucket/prefix`` with objects ``{ipst}/{name}.json``.
    datasets : collection of str
    """
    if not uri.startswith("s3://"):
        with closing(open_store(uri)) as store:
            return Recorded(_cells(store.get(PREDICTIONS, list(datasets))))
    client, wanted = new_client(connections=_READERS), set(datasets)
    bucket, key = parse_s3(uri)
    folder = S3Object(bucket, key.strip("/") + "/" if key.strip("/") else "")
    listed = (str(item["Key"]) for item in list_objects(client, folder, "recorded predictions"))
    keys = [key for key in listed if key.removeprefix(folder.key).partition("/")[0] in wanted]

    def read(key: str) -> dict[str, Any] | None:
        try:
            return _parse(read_object(client, S3Object(bucket, key), _MAX_BYTES, "a recorded prediction"))
        except InputError as error:
            log.warning("a prediction is left out: %s", error)
            return None

    with ThreadPoolExecutor(_READERS) as readers:
        records = list(readers.map(read, keys))
    found = _cells(pd.DataFrame(filter(None, records), columns=list(PREDICTIONS.columns)))
    timed = found[found["timestamp"].notna()]
    return Recorded(timed.reset_index(drop=True), len(records) - len(timed))


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
        name = record["ipst"].strip().lower()
        # The answer's ``unseen`` is true or false.
        cells = {key: int(cell) if isinstance(cell, bool) else cell for key, cell in record.items()}
        return {column: cells.get(column) for column in PREDICTIONS.columns} | {"ipst": name}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns in their types; a cell that is not of its type is missing."""
    cells = {}
    for name, kind in PREDICTIONS.columns.items():
        text = rows[name].astype("str")
        cells[name] = text.where(rows[name].notna()) if kind == "text" else pd.to_numeric(text, errors="coerce")
    return pd.DataFrame(cells).astype({n: "float64" for n, kind in PREDICTIONS.columns.items() if kind != "text"})


# -- Writing --------------------------------------------------------------------------------------------------------


def open_store_emitter(uri: str) -> Callable[[Mapping[str, Any]], None]:
    """An emitter that keeps predictions in a store; safe to share between threads."""
    # Opened by the first prediction: a store that is away must not keep an answer from being given. One for shadow
    # answers and one for all others, so that none of these waits for a shadow.
    opened: dict[bool, Store] = {}
    writing = {is_shadow: threading.Lock() for is_shadow in (False, True)}

    def emit(record: Mapping[str, Any]) -> None:
        is_shadow = record["source"] == SHADOW
        with writing[is_shadow]:
            if is_shadow not in opened:
                opened[is_shadow] = open_store(uri, create=True)
            _put(opened[is_shadow], pd.DataFrame([dict(record)]))

    return emit


def store_predictions(file: Path, uri: str, version: str) -> int:
    """Put the predictions of a Parquet file into a store, in one change; return its number of rows.

    Of rows with the same dataset the last one is kept.
    """
    import pyarrow.parquet as pq

    now, rows = time.time(), 0
    with closing(open_store(uri, create=True)) as store, store.change():
        for batch in pq.ParquetFile(file).iter_batches(CHUNK_ROWS):
            part = batch.to_pandas()
            rows += len(part)
            _put(store, part.assign(timestamp=now, version=version, source="batch"))
    return rows


def _put(store: Store, rows: pd.DataFrame) -> None:
    if "unseen" in rows:
        rows = rows.assign(unseen=rows["unseen"].map({True: 1, False: 0}))
    store.put(PREDICTIONS, conform(rows.drop_duplicates(list(PREDICTIONS.key), keep="last"), PREDICTIONS))
