"""Read notifications of new objects, from S3 itself or from EventBridge, also inside messages of SQS and SNS."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_plus

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.s3 import check_bucket

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RECORDS = 1000
"""Records of one notification; S3 sends one, and its documentation allows more."""


class Notice(NamedTuple):
    """A new object: its bucket, its key (not URL-encoded), and its size in bytes (0 if unknown)."""

    bucket: str
    key: str
    size: int


class EventError(InputError):
    """An event, or a part of one, that cannot be read: the call fails, since a normal return would lose it."""


def handle_messages(event: object, handle: Callable[[Any], T]) -> tuple[list[T], dict[str, Any]]:
    """Call ``handle`` with an event, or with each event inside the messages of SQS or SNS that it holds.

    Gives what ``handle`` returned, and for SQS ``batchItemFailures``: the messages that failed, to be sent again alone.
    Raises the first error, once each message was tried, where the messages are not those of SQS, or all failed.
    """
    records = event.get("Records") if isinstance(event, dict) else None
    messages = records if isinstance(records, list) and any(map(_is_message, records)) else [event]
    ids = [message.get("messageId") if isinstance(message, dict) else None for message in messages]
    results: list[T] = []
    faults: dict[int, CalmlflowError] = {}
    for place, message in enumerate(messages):
        try:
            results.append(handle(_unwrap(message)))
        except CalmlflowError as error:
            faults[place] = error
    # A message without an id cannot be named. And Lambda ignores batchItemFailures where it is not set up for them.
    if faults and (len(faults) == len(messages) or not all(ids[place] for place in faults)):
        raise next(iter(faults.values()))
    for place, fault in faults.items():
        log.error("message %s failed: %s", ids[place], fault)
    return results, {"batchItemFailures": [{"itemIdentifier": ids[place]} for place in faults]} if any(ids) else {}


def _is_message(record: object) -> bool:
    return isinstance(record, dict) and (
        record.get("eventSource") == "aws:sqs" or record.get("EventSource") == "aws:sns"
    )


def _unwrap(message: object) -> object:
    """The event inside a record of SQS or SNS, or inside SNS's envelope; any other event as it is."""
    if not isinstance(message, dict):
        return message
    if message.get("eventSource") == "aws:sqs":
        text = message.get("body")
    elif message.get("EventSource") == "aws:sns":
        return _unwrap(message.get("Sns"))
    elif message.get("Type") == "Notification" and "TopicArn" in message:
        text = message.get("Message")
    else:
        return message
    try:
        if isinstance(text, str):
            return _unwrap(json.loads(text))
    except (ValueError, RecursionError):
        pass
    raise EventError("the text of a message of SQS or SNS is no JSON; expected a notification of S3")


def is_notification(event: object) -> bool:
    """Whether an event claims to be of S3, EventBridge, SQS or SNS."""
    return isinstance(event, dict) and (
        "Records" in event or "detail-type" in event or event.get("Event") == "s3:TestEvent"
    )


def read_notices(event: Mapping[str, Any], expected: str) -> list[Notice | EventError]:
    """Read the new objects of a notification in order, with an EventError in the place of a wrong record.

    ``expected`` says what a handler takes, for errors. Raises an EventError where ``Records`` is no list of 1 to
    `MAX_RECORDS`.
    """
    if "Records" in event:
        records = event["Records"]
        if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
            raise EventError(f"the event's Records are no list of 1 to {MAX_RECORDS}; {expected}")
        return [_read_record(record, expected) for record in records]
    return [_read_detail(event)] if "detail-type" in event else []


def _read_record(record: object, expected: str) -> Notice | EventError:
    if not isinstance(record, dict) or record.get("eventSource") != "aws:s3":
        return EventError(f"a record is not one of S3's; {expected}")
    name = record.get("eventName", "ObjectCreated")
    if not isinstance(name, str) or not name.removeprefix("s3:").startswith("ObjectCreated"):
        return EventError("a record's eventName is not that of a new object; expected ObjectCreated:...")
    return _locate(record.get("s3"), encoded=True)


def _read_detail(event: Mapping[str, Any]) -> Notice | EventError:
    if event.get("source") != "aws.s3" or event.get("detail-type") != "Object Created":
        return EventError(
            "the event is not one of S3's new objects; expected source aws.s3, detail-type Object Created"
        )
    return _locate(event.get("detail"), encoded=False)


def _locate(told: object, encoded: bool) -> Notice | EventError:
    bucket, thing = (told.get("bucket"), told.get("object")) if isinstance(told, dict) else (None, None)
    key = thing.get("key") if isinstance(thing, dict) else None
    if not isinstance(bucket, dict) or not isinstance(thing, dict) or not isinstance(key, str) or not key:
        return EventError("a record names no bucket or no object; expected bucket.name and object.key")
    try:
        key = unquote_plus(key, errors="strict") if encoded else key
        size = thing.get("size", 0)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            return EventError(f"Key {key[:60]!r} has a size that is none; expected a number of bytes")
        check_bucket(bucket.get("name"))
        return Notice(bucket["name"], key, size)
    except UnicodeError:
        return EventError(f"Key {key[:60]!r} is not URL-encoded UTF-8; expected it as S3 writes it")
    except InputError as error:
        return EventError(str(error))
