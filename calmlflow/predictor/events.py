"""What AWS Lambda is called with: one job, or what S3 tells of new control files."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import InputError
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES
from calmlflow.predictor.control import ControlObject, control_object

MAX_RECORDS = 1000
"""S3 sends one record, by its documentation perhaps more."""

EXPECTED = 'expected {"Bucket": ..., "Key": ..., "Ipppssoot": ...} or a notification of S3'


def is_notification(event: object) -> bool:
    """Whether an event is, or claims to be, one of S3's: a notification, its test, or the same by EventBridge."""
    return isinstance(event, dict) and ("Records" in event or "detail-type" in event or _is_test(event))


def read_job(event: object) -> ControlObject:
    """Read ``{"Bucket", "Key", "Ipppssoot"}``; ``Dataset`` is accepted for ``Ipppssoot``, and ``Key`` may be absent.

    Raises
    ------
    InputError
        Something is missing or breaks a rule (see `control_object`), or the two names are not the same dataset's.
    """
    if not isinstance(event, dict):
        raise InputError(f"the event is a {type(event).__name__}; {EXPECTED}")
    names = [event[name] for name in ("Ipppssoot", "Dataset") if event.get(name) not in (None, "")]
    for name, value in (("Ipppssoot", names[0] if names else None), ("Bucket", event.get("Bucket"))):
        if not isinstance(value, str) or not value:
            raise InputError(f"the event has no {name}, as text; {EXPECTED}")
    found = [parse_dataset(name) for name in names]
    if found[0] != found[-1]:
        raise InputError(f"the event has Ipppssoot {found[0].name!r} and Dataset {found[1].name!r}; expected the same")
    return control_object(found[0].name, event["Bucket"], event.get("Key"))


def read_notification(event: Mapping[str, Any]) -> list[ControlObject | InputError]:
    """Read what S3 tells of new objects, itself or by EventBridge: for each of them, in order, where it is or what
    is wrong with its record. The dataset is told by the key. What S3 sends to try the connection has none.

    Raises
    ------
    InputError
        It is no such notification.
    """
    if "Records" in event:
        records = event["Records"]
        if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
            raise InputError(f"the event's Records are no list of 1 to {MAX_RECORDS}; {EXPECTED}")
        return [_read_record(record) for record in records]
    if "detail-type" in event:
        return [_read_detail(event)]
    return []


def _is_test(event: Mapping[str, Any]) -> bool:
    return event.get("Event") == "s3:TestEvent"


def _read_record(record: object) -> ControlObject | InputError:
    """One record of S3's own notification, where keys are URL-encoded."""
    if not isinstance(record, dict) or record.get("eventSource") != "aws:s3":
        return InputError(f"a record is not one of S3's; {EXPECTED}")
    name = record.get("eventName", "ObjectCreated")
    if not isinstance(name, str) or not name.removeprefix("s3:").startswith("ObjectCreated"):
        return InputError("a record's eventName is not that of a new object; expected ObjectCreated:...")
    return _locate(record.get("s3"), encoded=True)


def _read_detail(event: Mapping[str, Any]) -> ControlObject | InputError:
    """EventBridge's form, where keys are plain."""
    if event.get("source") != "aws.s3" or event.get("detail-type") != "Object Created":
        return InputError(
            "the event is not one of S3's new objects; expected source aws.s3, detail-type Object Created"
        )
    return _locate(event.get("detail"), encoded=False)


def _locate(told: object, encoded: bool) -> ControlObject | InputError:
    bucket, thing = (told.get("bucket"), told.get("object")) if isinstance(told, dict) else (None, None)
    key = thing.get("key") if isinstance(thing, dict) else None
    if not isinstance(bucket, dict) or not isinstance(thing, dict) or not isinstance(key, str) or not key:
        return InputError("a record names no bucket or no object; expected bucket.name and object.key")
    try:
        key = unquote_plus(key, errors="strict") if encoded else key
        folder, _, rest = key.partition("/")
        name, _, rest = rest.partition("/")
        if folder != "control" or not rest:
            raise InputError(f"Key {key[:60]!r} is not that of a control file; expected control/IPPPSSOOT/...")
        size = thing.get("size", 0)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_CONTROL_FILE_BYTES:
            raise InputError(
                f"Key {key[:60]!r} has not the size of a control file; expected at most {MAX_CONTROL_FILE_BYTES} bytes"
            )
        return control_object(name, bucket.get("name"), key)
    except UnicodeError:
        return InputError(f"Key {key[:60]!r} is not URL-encoded UTF-8; expected it as S3 writes it")
    except InputError as error:
        return error
