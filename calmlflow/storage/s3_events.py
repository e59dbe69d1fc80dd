"""Read notifications of new objects, from S3 itself or from EventBridge."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

from calmlflow.errors import InputError
from calmlflow.storage.s3 import check_bucket

MAX_RECORDS = 1000
"""Records of one notification; S3 sends one, and its documentation allows more."""


class Notice(NamedTuple):
    """A new object: its bucket, its key (not URL-encoded), and its size in bytes (0 if unknown)."""

    bucket: str
    key: str
    size: int


def is_notification(event: object) -> bool:
    """Whether an event claims to be a notification of S3, its test event, or an event of EventBridge."""
    return isinstance(event, dict) and (
        "Records" in event or "detail-type" in event or event.get("Event") == "s3:TestEvent"
    )


def read_notices(event: Mapping[str, Any], expected: str) -> list[Notice | InputError]:
    """Read the new objects of a notification in order, with an InputError in the place of a wrong record.

    ``expected`` says what a handler takes, for errors. Raises an InputError where ``Records`` is no list of 1 to
    `MAX_RECORDS`.
    """
    if "Records" in event:
        records = event["Records"]
        if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
            raise InputError(f"the event's Records are no list of 1 to {MAX_RECORDS}; {expected}")
        return [_read_record(record, expected) for record in records]
    return [_read_detail(event)] if "detail-type" in event else []


def _read_record(record: object, expected: str) -> Notice | InputError:
    if not isinstance(record, dict) or record.get("eventSource") != "aws:s3":
        return InputError(f"a record is not one of S3's; {expected}")
    name = record.get("eventName", "ObjectCreated")
    if not isinstance(name, str) or not name.removeprefix("s3:").startswith("ObjectCreated"):
        return InputError("a record's eventName is not that of a new object; expected ObjectCreated:...")
    return _locate(record.get("s3"), encoded=True)


def _read_detail(event: Mapping[str, Any]) -> Notice | InputError:
    if event.get("source") != "aws.s3" or event.get("detail-type") != "Object Created":
        return InputError(
            "the event is not one of S3's new objects; expected source aws.s3, detail-type Object Created"
        )
    return _locate(event.get("detail"), encoded=False)


def _locate(told: object, encoded: bool) -> Notice | InputError:
    bucket, thing = (told.get("bucket"), told.get("object")) if isinstance(told, dict) else (None, None)
    key = thing.get("key") if isinstance(thing, dict) else None
    if not isinstance(bucket, dict) or not isinstance(thing, dict) or not isinstance(key, str) or not key:
        return InputError("a record names no bucket or no object; expected bucket.name and object.key")
    try:
        key = unquote_plus(key, errors="strict") if encoded else key
        size = thing.get("size", 0)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"Key {key[:60]!r} has a size that is none; expected a number of bytes")
        check_bucket(bucket.get("name"))
        return Notice(bucket["name"], key, size)
    except UnicodeError:
        return InputError(f"Key {key[:60]!r} is not URL-encoded UTF-8; expected it as S3 writes it")
    except InputError as error:
        return error
