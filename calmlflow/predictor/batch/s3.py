"""Many jobs from S3, and answers to it."""

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, OPTIONAL_KEYS, parse_control
from calmlflow.predictor.batch.pieces import Piece, Refused, Source
from calmlflow.predictor.batch.sources import open_local
from calmlflow.storage.s3 import S3Object, asking, new_client, parse_s3, read_object

THREADS = 16
_PIECE_OBJECTS = 1_000
_COLUMNS = ("ipst", "n_files", "total_mb", *OPTIONAL_KEYS)
_CONTROL_KEY = re.compile(r"control/([^/\s]+)/\1_MemModelFeatures\.txt")


def open_s3(uri: str, work: Path) -> Source:
    """Open ``s3://bucket/key.csv``, ``s3://bucket/key.parquet``, or the control files under ``s3://bucket/prefix``.

    Parameters
    ----------
    uri : str
    work : Path
        Folder for a copy of the object, or for the list of keys.
    """
    target = parse_s3(uri)
    client = new_client(connections=THREADS)
    if Path(target.key).suffix.lower() in (".csv", ".parquet"):
        return _open_object(client, target, work)
    return _open_control_files(client, target, work)


def _open_object(client: Any, target: S3Object, work: Path) -> Source:
    expected = "a CSV or Parquet file"
    with asking(target, "read", expected):
        head = client.head_object(Bucket=target.bucket, Key=target.key)
    identity = [str(target), head["ContentLength"], head["ETag"]]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    copy = work / f"input-{name}{Path(target.key).suffix.lower()}"
    if not copy.exists():
        partial_copy = copy.with_suffix(".partial")
        with asking(target, "read", expected), partial_copy.open("wb") as file:
            client.download_fileobj(target.bucket, target.key, file)
        partial_copy.replace(copy)
    return replace(open_local(copy, str(target)), name=str(target), identity=identity)


def put_file(path: Path, target: S3Object, client: Any) -> None:
    """Upload a file; the object is there whole, or as it was."""
    with asking(target, "written", "an S3 store that answers, and credentials that allow it"):
        client.upload_file(str(path), target.bucket, target.key)


# -- Control files --------------------------------------------------------------------------------------------------


def _open_control_files(client: Any, target: S3Object, work: Path) -> Source:
    """The list of keys is kept in a file: another day the bucket holds others, and nobody can hold millions."""
    listing = work / "keys"
    count, digest = 0, hashlib.sha256()
    with asking(target, "listed", "a bucket with control files"), listing.open("w", encoding="utf-8") as file:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=target.bucket, Prefix=target.key or "control/")
        for item in (item for page in pages for item in page.get("Contents", ())):
            if _CONTROL_KEY.fullmatch(item["Key"]):
                digest.update(f"{item['Key']} {item['ETag']} {item['Size']}\n".encode())
                file.write(item["Key"] + "\n")
                count += 1
    if not count:
        raise InputError(
            f"there is no control file under {target}; expected keys control/ipst/ipst_MemModelFeatures.txt, or an "
            "object that ends in .csv or .parquet"
        )

    def read(after: int, good: int) -> Iterator[Piece]:
        with listing.open(encoding="utf-8", newline="\n") as file, ThreadPoolExecutor(THREADS) as pool:
            keys: list[str] = []
            number = 0
            for number, line in enumerate(file, start=1):
                if number <= after:
                    continue
                keys.append(line.removesuffix("\n"))
                if len(keys) == min(good, _PIECE_OBJECTS):
                    yield _read_control_files(client, pool, target.bucket, keys, number)
                    keys = []
            if keys:
                yield _read_control_files(client, pool, target.bucket, keys, number)

    return Source(str(target), _COLUMNS, count, [str(target), count, digest.hexdigest()], read)


def _read_control_files(client: Any, pool: ThreadPoolExecutor, bucket: str, keys: list[str], last: int) -> Piece:
    found = list(pool.map(partial(_read_control_file, client, bucket), keys))
    numbers = range(last - len(keys) + 1, last + 1)
    rows = [(number, row) for number, row in zip(numbers, found, strict=True) if isinstance(row, dict)]
    refused = [
        Refused(number, row, {"ipst": key.split("/")[1]})
        for number, key, row in zip(numbers, keys, found, strict=True)
        if isinstance(row, str)
    ]
    columns = {name: pa.array([row.get(name) for _, row in rows], pa.string()) for name in _COLUMNS}
    return Piece(
        pa.RecordBatch.from_pydict(columns), np.array([number for number, _ in rows], dtype=np.int64), tuple(refused)
    )


def _read_control_file(client: Any, bucket: str, key: str) -> dict[str, str] | str:
    """Keys and values of a control file, or why there are none; a CalmlflowError where that is not the file's fault."""
    target = S3Object(bucket, key)
    name = key.split("/")[1]
    try:
        if parse_dataset(name).is_hap:
            return {"ipst": name}
        content = read_object(client, target, MAX_CONTROL_FILE_BYTES, "a control file")
        return {**parse_control(content), "ipst": name}
    except InputError as error:
        return str(error)
