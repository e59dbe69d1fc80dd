"""Many jobs from S3, and answers to it."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, OPTIONAL_KEYS, parse_control
from calmlflow.predictor.control import check_bucket, s3_reason
from calmlflow.predictor.many.pieces import Piece, Refused, Source
from calmlflow.predictor.many.sources import open_local

THREADS = 16
_PIECE_OBJECTS = 1_000
_COLUMNS = ("ipst", "n_files", "total_mb", *OPTIONAL_KEYS)
_CONTROL_KEY = re.compile(r"control/([^/]+)/\1_MemModelFeatures\.txt")
_MISSING = ("NoSuchKey", "NoSuchBucket", "InvalidBucketName", "404")


class S3Object(NamedTuple):
    """An object, or a prefix of several."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key[:120]}"


def parse_s3(uri: str) -> S3Object:
    """Read ``s3://bucket/key``; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    check_bucket(bucket)
    return S3Object(bucket, key)


def new_client() -> Any:
    """A client with more patience than that for one answer; see `calmlflow.predictor.control.s3_client`."""
    import boto3
    from botocore.config import Config

    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = None if own else os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = 5
    config = Config(connect_timeout=10, read_timeout=30, retries=retries, max_pool_connections=THREADS)
    try:
        return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)
    except Exception as error:
        # boto3's own kinds and ValueError. Their texts may quote an address with a password in it.
        raise CalmlflowError(
            f"boto3 cannot make a client for S3 ({type(error).__name__}); expected AWS_* variables that fit together"
        ) from None


@contextmanager
def asking(target: S3Object, act: str, expected: str) -> Iterator[None]:
    """Turn what boto3 raises in the block into a sentence; an InputError where there is no such bucket or key."""
    try:
        yield
    except (CalmlflowError, MemoryError):
        raise
    except Exception as error:
        # boto3, and what it stands on, raise families of their own. A full disk is none of them.
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            raise
        reason = s3_reason(error)
        kind = InputError if reason in _MISSING else CalmlflowError
        raise kind(f"{target} cannot be {act} ({reason}); expected {expected}") from None


def open_s3(uri: str, work: Path) -> Source:
    """Open ``s3://bucket/key.csv``, ``s3://bucket/key.parquet``, or the control files under ``s3://bucket/prefix``.

    Parameters
    ----------
    uri : str
    work : Path
        Folder for a copy of the object, or for the list of keys.
    """
    target = parse_s3(uri)
    client = new_client()
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
        with asking(target, "read", "a control file"):
            response = client.get_object(Bucket=bucket, Key=key)
            size = response["ContentLength"]
            with response["Body"] as body:
                content = body.read(MAX_CONTROL_FILE_BYTES + 1)
            if len(content) < min(size, MAX_CONTROL_FILE_BYTES + 1):
                raise CalmlflowError(f"{target} cannot be read ({len(content)} of {size} bytes); expected all of it")
        return {**parse_control(content), "ipst": name}
    except InputError as error:
        return str(error)
