"""Read the events that announce finished jobs: S3's notification of a trigger file, or a dataset by name."""

import re
from typing import NamedTuple

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.storage.s3 import check_bucket
from calmlflow.storage.s3_events import is_notification, read_notices

EXPECTED = 'expected {"Bucket": ..., "Ipppssoot": ...} or a notification of S3 for messages/processed-IPPPSSOOT.trigger'

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
        raise InputError(f"the event is a {type(event).__name__}; {EXPECTED}")
    if not is_notification(event):
        told = [event[key] for key in ("Ipppssoot", "Dataset") if event.get(key) not in (None, "")]
        if not told:
            raise InputError(f"the event has no Ipppssoot; {EXPECTED}")
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
