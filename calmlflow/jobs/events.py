"""Read the events that announce finished jobs (S3's notification of a trigger file, a name) and failed ones (Batch)."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.jobs.killed import BATCH
from calmlflow.jobs.records import MAX_TIMESTAMP
from calmlflow.storage.s3 import check_bucket
from calmlflow.storage.s3_events import EventError, is_notification, read_notices

EXPECTED = 'expected {"Bucket": ..., "Ipppssoot": ...} or a notification of S3 for messages/processed-IPPPSSOOT.trigger'

_EXPECTED_FAILURE = "expected Batch Job State Change of a job that ran and has the status FAILED"
# Beginnings of what Batch says, and what killed the job then.
_REASONS = {
    "OutOfMemoryError": "memory",
    "Job attempt duration exceeded timeout": "time",
    "Host EC2": "machine",
    "CannotInspectContainer": "machine",
    "CannotPullContainer": "machine",
    "CannotStartContainer": "machine",
    "DockerTimeout": "machine",
    "Task failed to start": "machine",
    # A person ended it.
    "Operator": "failed",
}
_SHOWN = 200

_TRIGGER = re.compile(r"messages/processed-(.+)\.trigger")


class FinishedJob(NamedTuple):
    """A dataset whose job has finished, and the bucket that it is in."""

    bucket: str
    name: str


def read_event(event: object) -> tuple[list[FinishedJob], list[InputError]]:
    """Read an event: its finished jobs, each once, and the faults of its other records.

    It is ``{"Bucket", "Ipppssoot"}``, where ``Dataset`` is accepted for ``Ipppssoot``, or S3's notification of new
    objects, its own or EventBridge's, whose keys are ``messages/processed-{ipppssoot}.trigger``.
    """
    if not isinstance(event, dict):
        raise EventError(f"the event is a {type(event).__name__}; {EXPECTED}")
    if not is_notification(event):
        told = [event[key] for key in ("Ipppssoot", "Dataset") if event.get(key) not in (None, "")]
        if not told:
            raise EventError(f"the event has no Ipppssoot; {EXPECTED}")
        check_bucket(event.get("Bucket"))
        names = [parse_dataset(name).name for name in told]
        if names[0] != names[-1]:
            raise InputError(f"the event has Ipppssoot {names[0]!r} and Dataset {names[1]!r}; expected the same")
        return [FinishedJob(event["Bucket"], names[0])], []
    found: dict[FinishedJob, None] = {}
    refused: list[InputError] = []
    for notice in read_notices(event, EXPECTED):
        try:
            if isinstance(notice, InputError):
                raise notice
            trigger = _TRIGGER.fullmatch(notice.key)
            if not trigger:
                raise InputError(f"Key {notice.key[:60]!r} is no trigger's; {EXPECTED}")
            found[FinishedJob(notice.bucket, parse_dataset(trigger[1]).name)] = None
        except InputError as error:
            refused.append(error)
    return list(found), refused


# -- Failed jobs ----------------------------------------------------------------------------------------------------


class FailedJob(NamedTuple):
    """A dataset whose job Batch gave up, the bucket that its command names ("" if none), and each attempt's end."""

    bucket: str
    name: str
    # As `calmlflow.jobs.killed.find_killed` takes them.
    kills: list[dict[str, Any]]


def is_batch_event(event: object) -> bool:
    """Whether an event claims to be one of Batch, which EventBridge hands on."""
    return isinstance(event, dict) and event.get("source") == "aws.batch"


def read_failure(event: Mapping[str, Any]) -> FailedJob:
    """Read Batch's event of a job that failed for good.

    The dataset is the first word of the container's command that is a dataset's name, or the job's name; the bucket is
    the first one that the command names. Each attempt that ran is a kill: Batch's reason says of what kind, or else the
    exit status.

    Raises
    ------
    InputError
        The event is another one, names no dataset, or tells of no attempt that ran.
    """
    detail = _part(event, "detail")
    if event.get("detail-type") != "Batch Job State Change" or detail.get("status") != "FAILED":
        raise InputError(f"the event is none of a failed job; {_EXPECTED_FAILURE}")
    container = _part(detail, "container")
    command = container.get("command")
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    bucket = next((word.split("/")[2] for word in words if word.startswith("s3://")), "")
    if bucket:
        check_bucket(bucket)
    names = []
    for word in words:
        with suppress(InputError):
            names.append(parse_dataset(word).name)
    name = names[0] if names else parse_dataset(detail.get("jobName")).name
    listed = detail.get("attempts")
    attempts = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    # What Batch says of the job is said of its last attempt.
    *earlier, last = attempts or [{}]
    told = [_attempt(one, {}) for one in earlier] + [_attempt(last, detail)]
    kills = [{"ipst": name, **one} for one in told if one]
    if not kills:
        raise InputError(f"job {name} has no attempt with a beginning and an end; {_EXPECTED_FAILURE}")
    for kill in kills:
        if kill.get("kind") == "memory" and (memory_gb := _memory_gb(container)):
            kill["memory"] = memory_gb
    return FailedJob(bucket, name, kills)


def _attempt(attempt: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is told of an attempt; ``job`` fills in what it does not say. None where it did not run."""
    started, stopped = (_seconds(attempt.get(key, job.get(key))) for key in ("startedAt", "stoppedAt"))
    if started is None or stopped is None:
        return None
    containers = [_part(attempt, "container"), _part(job, "container")]
    texts = [one.get("reason") for one in containers] + [one.get("statusReason") for one in (attempt, job)]
    said = [text for text in texts if isinstance(text, str) and text]
    known = [(text, kind) for text in said for start, kind in _REASONS.items() if text.startswith(start)]
    statuses = [one.get("exitCode") for one in containers]
    status = next((one for one in statuses if isinstance(one, int) and 0 <= one < 256), None)
    reason, kind = known[0] if known else (said[-1] if said else f"exit status {status}", None)
    judged = {"exit_status": status} if kind is None and status is not None else {"kind": kind or "failed"}
    return {
        "timestamp": int(stopped),
        "wallclock": max(stopped - started, 0.0),
        "reason": f"{BATCH}{reason}"[:_SHOWN].replace("\0", " ").encode(errors="replace").decode(),
        **judged,
    }


def _memory_gb(container: Mapping[str, Any]) -> float | None:
    """The memory that a container had."""
    listed = container.get("resourceRequirements")
    parts = [part for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []
    told = next((part.get("value") for part in parts if part.get("type") == "MEMORY"), container.get("memory"))
    mebibytes = int(told) if isinstance(told, str) and re.fullmatch("[0-9]{1,9}", told) else told
    return mebibytes * 2**20 / 1e9 if isinstance(mebibytes, int) and 0 < mebibytes < 2**30 else None


def _part(whole: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = whole.get(key)
    return part if isinstance(part, dict) else {}


def _seconds(milliseconds: object) -> float | None:
    """Epoch seconds of a time as Batch writes it."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1000 if 0 < milliseconds <= 1000 * MAX_TIMESTAMP else None
