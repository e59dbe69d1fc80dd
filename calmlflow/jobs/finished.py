"""One finished job in S3: its control file and metrics files become a record, or a reason why not."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, job_features, parse_control
from calmlflow.hst.resources import MAX_METRICS_FILE_BYTES, StepFailedError, job_targets
from calmlflow.storage.s3 import (
    Content,
    NoSuchBucketError,
    NoSuchObjectError,
    S3Object,
    TryAgainError,
    asking,
    read_content,
)

STEPS = ("process", "preview")
"""Steps of a job, each timed in a file of its own."""

TRIES = 3
"""How often an object is read whose content breaks off, which boto3 leaves to its callers, or while S3 is busy: one of
thirty thousand requests is unlucky often enough to use up boto3's own tries."""

_SHOWN_BYTES = 2_000

NO_DATASET, FILE_MISSING, STEP_FAILED, BAD_CONTROL, BAD_METRICS = (
    "no dataset",
    "file missing",
    "step failed",
    "bad control file",
    "bad metrics file",
)
"""Kinds of quarantine entries."""


class Found(NamedTuple):
    """A finished job, with the columns of `calmlflow.jobs.stores.base.JOBS`, or of ``MOSAICS`` for a mosaic."""

    record: Mapping[str, Any]
    is_mosaic: bool


class Refused(NamedTuple):
    """A dataset that no record can be made of; see `calmlflow.jobs.stores.base.QUARANTINE`."""

    ipst: str
    kind: str
    reason: str
    timestamp: int | None = None
    record: str | None = None


class Unread(NamedTuple):
    """A dataset that S3 did not let us read; it counts as pending."""

    ipst: str
    reason: str


def metrics_key(name: str, step: str) -> str:
    """S3 key of the metrics file of a step."""
    return f"outputs/{name}/{step}_metrics.txt"


def read_finished(client: Any, bucket: str, name: str) -> Found | Refused | Unread:
    """Read what a finished job left in a bucket.

    Parameters
    ----------
    client
        Of S3; see `calmlflow.storage.s3.new_client`.
    bucket : str
    name : str
        Dataset, as its folder under ``outputs/`` is named.

    Returns
    -------
    Found, Refused or Unread
        ``timestamp`` is the time at which the newer one of the metrics files was written, in epoch seconds.

    Raises
    ------
    NoSuchBucketError
        There is no such bucket: nothing of a dataset.
    """
    try:
        job = parse_dataset(name)
        if job.name != name:
            raise InputError(f"folder outputs/{name[:60]} is no dataset's; expected its name in lower case, {job.name}")
    except InputError as error:
        return Refused(name, NO_DATASET, str(error))
    kind, control = BAD_METRICS, None
    metrics: dict[str, Content] = {}
    try:
        for step in STEPS:
            target = S3Object(bucket, metrics_key(name, step))
            metrics[step] = _read(client, target, MAX_METRICS_FILE_BYTES, "the output of time --verbose")
        targets = job_targets(name, *(metrics[step].data for step in STEPS))
        timestamp = int(max(content.modified for content in metrics.values()))
        used = {"ipst": name, "timestamp": timestamp, "wallclock": targets.wallclock, "memory": targets.memory}
        if job.is_hap:
            return Found({**used, "disk": _disk_gb(client, bucket, job)}, True)
        kind = BAD_CONTROL
        control = _read(client, S3Object(bucket, job.control_key), MAX_CONTROL_FILE_BYTES, "a control file").data
        features = job_features(name, parse_control(control))
        return Found({**used, **features._asdict(), "mem_bin": targets.mem_bin}, False)
    except NoSuchBucketError:
        raise
    except InputError as error:
        if isinstance(error, NoSuchObjectError):
            kind = FILE_MISSING
        elif isinstance(error, StepFailedError):
            kind = STEP_FAILED
        newest = max((content.modified for content in metrics.values()), default=None)
        return Refused(name, kind, str(error), None if newest is None else int(newest), _as_json(metrics, control))
    except CalmlflowError as error:
        return Unread(name, str(error))


def changed_since(client: Any, bucket: str, name: str, moment: float) -> bool:
    """Whether one of the three files of a dataset was written after a moment (epoch seconds).

    Raises
    ------
    CalmlflowError
        S3 cannot be asked.
    """
    keys = [metrics_key(name, step) for step in STEPS]
    keys.append(Dataset(name, "ipppssoot").control_key)
    return any(_written(client, S3Object(bucket, key)) > moment for key in keys)


def _written(client: Any, target: S3Object) -> float:
    """When an object was written; 0 where there is none."""
    try:
        with asking(target, "read", "a file of a finished job"):
            return float(client.head_object(Bucket=target.bucket, Key=target.key)["LastModified"].timestamp())
    except NoSuchObjectError:
        return 0.0


def _read(client: Any, target: S3Object, limit: int, expected: str) -> Content:
    for _ in range(TRIES - 1):
        with suppress(TryAgainError):
            return read_content(client, target, limit, expected)
    return read_content(client, target, limit, expected)


def _disk_gb(client: Any, bucket: str, job: Dataset) -> float:
    """GB (10^9 bytes) that the outputs of a job take up in the bucket."""
    target = S3Object(bucket, f"outputs/{job.name}/")
    with asking(target, "listed", "the outputs of a job"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=target.key)
        return sum(found["Size"] for page in pages for found in page.get("Contents", [])) / 1e9


def _as_json(metrics: Mapping[str, Content], control: bytes | None) -> str:
    """The beginnings of what was read, so that the quarantine shows what was wrong."""
    files = {f"{step}_metrics.txt": content.data for step, content in metrics.items()}
    files |= {"control": control} if control is not None else {}
    return json.dumps({name: data[:_SHOWN_BYTES].decode(errors="replace") for name, data in files.items()})
