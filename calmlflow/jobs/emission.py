"""Predictions into a store of job records, one by one or many: where they wait for their jobs to finish."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from calmlflow.jobs.stores.base import CHUNK_ROWS, PREDICTIONS, Store, conform
from calmlflow.jobs.stores.open import open_store


def open_store_emitter(uri: str) -> Callable[[Mapping[str, Any]], None]:
    """An emitter that keeps predictions in a store; safe to share between threads."""
    # Opened by the first prediction: a store that is away must not keep an answer from being given.
    opened: list[Store] = []
    writing = threading.Lock()

    def emit(record: Mapping[str, Any]) -> None:
        with writing:
            if not opened:
                opened.append(open_store(uri, create=True))
            _put(opened[0], pd.DataFrame([dict(record)]))

    return emit


def store_predictions(file: Path, uri: str, version: str) -> int:
    """Put the predictions of a Parquet file that `Predictor.predict_many` wrote into a store, in one change.

    Of rows that name the same dataset the last one counts.

    Returns
    -------
    int
        Rows of the file.
    """
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
