"""Predictions that were recorded when they were given, read again: a ``.jsonl`` file, objects of S3, or a store."""

import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.jobs.stores.open import open_store
from calmlflow.storage.s3 import S3Object, asking, new_client, parse_s3, read_object

_READERS = 32
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Recorded:
    """Predictions of some datasets.

    Attributes
    ----------
    predictions : DataFrame
        With the columns of `PREDICTIONS`: ``ipst`` and ``version`` text, numbers float64, NaN
        where there is none.
    unreadable : int
        Lines and objects that hold no prediction.
    """

    predictions: pd.DataFrame
    unreadable: int = 0


def read_recorded(uri: str, datasets: Collection[str]) -> Recorded:
    """Read what was predicted for some datasets.

    Parameters
    ----------
    uri : str
        A path that ends in ``.jsonl`` or ``s3://bucket/prefix``, see `calmlflow.predictor.emit.open_emitter`, or else
        as for `stored_predictions`.
    datasets : collection of str

    Raises
    ------
    CalmlflowError
        It cannot be read.
    """
    if uri.startswith("s3://"):
        return _from_texts(_objects(parse_s3(uri), set(datasets)), datasets)
    if "://" not in uri and uri.endswith(".jsonl"):
        return _from_texts(_lines(Path(uri)), datasets)
    return stored_predictions(uri, datasets)


def stored_predictions(uri: str, datasets: Collection[str]) -> Recorded:
    """Read what a store of job records holds of what was predicted for some datasets; see `open_store`."""
    with closing(open_store(uri)) as store:
        return Recorded(_cells(store.get(PREDICTIONS, list(datasets))))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise CalmlflowError(f"{path} cannot be read ({error.strerror}); expected recorded predictions") from None


def _objects(folder: S3Object, datasets: set[str]) -> Iterator[bytes]:
    """Objects ``{prefix}/{ipst}/{name}.json`` of the datasets, many at once."""
    client = new_client(connections=_READERS)
    prefix = folder.key.strip("/") + "/" if folder.key.strip("/") else ""
    keys = []
    with asking(folder, "listed", "recorded predictions"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=folder.bucket, Prefix=prefix):
            names = [str(found["Key"]) for found in page.get("Contents", [])]
            keys += [key for key in names if key.removeprefix(prefix).partition("/")[0] in datasets]

    def read(key: str) -> bytes:
        return read_object(client, S3Object(folder.bucket, key), _MAX_BYTES, "a recorded prediction")

    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read, keys)


def _from_texts(texts: Iterable[bytes], datasets: Collection[str]) -> Recorded:
    wanted, found, unreadable = set(datasets), [], 0
    for text in texts:
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            name = record["ipst"].strip().lower()
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            # Who was killed while writing leaves half a line.
            unreadable += 1
            continue
        if name in wanted:
            found.append({column: record.get(column) for column in PREDICTIONS.columns} | {"ipst": name})
    return Recorded(_cells(pd.DataFrame(found, columns=list(PREDICTIONS.columns))), unreadable)


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Numbers where numbers are due; a cell that holds none is missing, as its row can say nothing of that."""
    cells = {}
    for name, kind in PREDICTIONS.columns.items():
        text = rows[name].astype("str")
        cells[name] = text.where(rows[name].notna()) if kind == "text" else pd.to_numeric(text, errors="coerce")
    return pd.DataFrame(cells).astype({n: "float64" for n, kind in PREDICTIONS.columns.items() if kind != "text"})
