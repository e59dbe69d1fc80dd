"""Read the events of AWS Lambda: one job of calcloud's, or S3's notification of new control files."""

from collections.abc import Mapping
from typing import Any

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES
from calmlflow.predictor.control import ControlObject, control_object
from calmlflow.storage.s3_events import EventError, Notice, is_notification, read_notices

EXPECTED = 'expected {"Bucket": ..., "Key": ..., "Ipppssoot": ...} or a notification of S3'


def read_job(event: object) -> ControlObject:
    """Read ``{"Bucket", "Key", "Ipppssoot"}``; ``Dataset`` is accepted for ``Ipppssoot``, and ``Key`` may be absent."""
    if not isinstance(event, dict):
        raise EventError(f"the event is a {type(event).__name__}; {EXPECTED}")
    if not event.keys() & {"Bucket", "Ipppssoot", "Dataset"}:
        raise EventError(f"the event has neither Bucket nor Ipppssoot; {EXPECTED}")
    names = [event[name] for name in ("Ipppssoot", "Dataset") if event.get(name) not in (None, "")]
    for name, value in (("Ipppssoot", names[0] if names else None), ("Bucket", event.get("Bucket"))):
        if not isinstance(value, str) or not value:
            raise InputError(f"the event has no {name}, as text; {EXPECTED}")
    found = [parse_dataset(name) for name in names]
    if found[0] != found[-1]:
        raise InputError(f"the event has Ipppssoot {found[0].name!r} and Dataset {found[1].name!r}; expected the same")
    return control_object(found[0].name, event["Bucket"], event.get("Key"))


def read_message(event: Mapping[str, Any]) -> list[ControlObject | InputError]:
    """Read one job, or a notification of new control files: for each record, in order, the file or the error."""
    if not is_notification(event):
        return [read_job(event)]
    notices = read_notices(event, EXPECTED)
    return [notice if isinstance(notice, InputError) else _locate(notice) for notice in notices]


def _locate(notice: Notice) -> ControlObject | InputError:
    folder, _, rest = notice.key.partition("/")
    name, _, rest = rest.partition("/")
    shown = repr(notice.key[:60])
    if folder != "control" or not rest:
        return InputError(f"Key {shown} is not that of a control file; expected control/IPPPSSOOT/...")
    if notice.size > MAX_CONTROL_FILE_BYTES:
        return InputError(f"Key {shown} is too large for a control file; expected {MAX_CONTROL_FILE_BYTES} bytes")
    try:
        return control_object(name, notice.bucket, notice.key)
    except InputError as error:
        return error
