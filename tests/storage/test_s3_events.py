"""Records of S3 about new objects, whatever the handler: their place and size, and the faults of a record."""

from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.storage.s3_events import (
    MAX_RECORDS,
    EventError,
    Notice,
    handle_messages,
    is_notification,
    read_notices,
)
from tests.samples.event_samples import (
    ANYTHING,
    BUCKET,
    EXTREMES,
    damaged,
    eventbridge,
    s3_record,
    sns,
    sns_event,
    sqs_event,
)

EXPECTED = "expected what this handler takes"
TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET}
# Any key that UTF-8 can hold: S3 forbids no letter.
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def located(key: object, **more) -> dict:
    return s3_record(s3={"bucket": {"name": BUCKET}, "object": {"key": key, **more}})


@given(st.lists(st.tuples(KEYS, st.integers(0, 2**53)), min_size=1, max_size=5))
@example([("a b+c%20\u00e9", 0)])
def test_every_record_is_read_in_its_place_with_its_key_decoded(objects):
    event = {"Records": [located(quote_plus(key, safe="/"), size=size) for key, size in objects]}
    assert is_notification(event)
    assert read_notices(event, EXPECTED) == [Notice(BUCKET, key, size) for key, size in objects]


@given(KEYS)
@example("a+b%2Bc")
def test_eventbridge_writes_keys_plainly(key):
    assert read_notices(eventbridge(key), EXPECTED) == [Notice(BUCKET, key, 120)]


def test_an_object_whose_size_nobody_said_has_none():
    assert read_notices({"Records": [located("a")]}, EXPECTED) == [Notice(BUCKET, "a", 0)]


def test_any_way_to_make_an_object_counts_and_a_try_of_the_connection_does_not():
    for name in ("ObjectCreated:Copy", "s3:ObjectCreated:CompleteMultipartUpload"):
        assert read_notices({"Records": [s3_record("a", eventName=name)]}, EXPECTED) == [Notice(BUCKET, "a", 120)]
    assert is_notification(TEST_EVENT)
    assert read_notices(TEST_EVENT, EXPECTED) == []


@pytest.mark.parametrize(
    ("record", "words"),
    [
        *((other, EXPECTED) for other in (None, 5, "x", [], {}, {"eventSource": "aws:sqs"})),
        *((s3_record(eventName=name), "expected ObjectCreated") for name in ("ObjectRemoved:Delete", None, 5)),
        *((s3_record(key), "expected bucket.name and object.key") for key in (None, "", 5, ["a"])),
        *((s3_record(s3=told), "expected bucket.name and object.key") for told in (None, [], {}, {"object": {}})),
        *((located("a", size=size), "expected a number of bytes") for size in (-1, "5", 1.5, True, None)),
        *((s3_record(bucket=bucket), "as S3 allows") for bucket in (None, 5, "No Bucket", "192.168.5.4")),
        *((s3_record(key), "URL-encoded UTF-8") for key in ("%ff", "a%C3")),
    ],
)
def test_a_bad_record_is_told_and_costs_no_other_one(record, words):
    before, error, after = read_notices({"Records": [s3_record("a"), record, s3_record("b")]}, EXPECTED)
    assert (before, after) == (Notice(BUCKET, "a", 120), Notice(BUCKET, "b", 120))
    assert isinstance(error, EventError)
    assert words in str(error)


@pytest.mark.parametrize("records", [None, {}, "x", 5, [], [s3_record()] * (MAX_RECORDS + 1)])
def test_records_that_are_none_or_too_many_are_refused(records):
    with pytest.raises(InputError, match=f"Records are no list of 1 to {MAX_RECORDS}; {EXPECTED}"):
        read_notices({"Records": records}, EXPECTED)
    assert len(read_notices({"Records": [s3_record("a")] * MAX_RECORDS}, EXPECTED)) == MAX_RECORDS


@pytest.mark.parametrize(
    "event", [eventbridge(source="aws.ec2"), {**eventbridge(), "detail-type": "Object Deleted"}, eventbridge(detail=[])]
)
def test_what_eventbridge_tells_of_other_things_is_refused(event):
    (error,) = read_notices(event, EXPECTED)
    assert isinstance(error, EventError)


@pytest.mark.parametrize("event", [None, 5, "Records", ["Records"], {}, {"Bucket": BUCKET}, {"Event": "other"}])
def test_anything_else_is_no_notification(event):
    assert not is_notification(event)


# -- Messages of SQS and SNS ----------------------------------------------------------------------------------------

PLAIN = {"Records": [s3_record("a")]}


def read(event: object) -> list[Notice]:
    if not is_notification(event):
        raise EventError("no notification")
    found = read_notices(event, EXPECTED)
    for one in found:
        if isinstance(one, InputError):
            raise one
    return found


@pytest.mark.parametrize("event", [PLAIN, eventbridge("a")], ids=["s3", "eventbridge"])
@pytest.mark.parametrize("wrap", [
    lambda event: event, sns, sns_event, sqs_event, lambda event: sqs_event(sns(event)),
    lambda event: sqs_event(sns(sns(event))),
])  # fmt: skip
def test_an_event_is_found_in_any_envelope(event, wrap):
    wrapped = wrap(event)
    failures = {"batchItemFailures": []} if "body" in str(wrapped) else {}
    assert handle_messages(wrapped, read) == ([[Notice(BUCKET, "a", 120)]], failures)
    assert handle_messages(wrap(TEST_EVENT), read)[0] == [[]]


@pytest.mark.parametrize("bad", ["no JSON", "5", "[" * 100_000, sns(5), {**sns(PLAIN), "Message": 5}, sns_event(5)])
def test_a_message_that_is_not_understood_fails_alone_in_a_queue_and_with_its_call_elsewhere(bad):
    tried = []

    def look(event: object) -> list[Notice]:
        tried.append(event)
        return read(event)

    results, told = handle_messages(sqs_event(TEST_EVENT, bad, PLAIN), look)
    assert (results, told) == ([[], read(PLAIN)], {"batchItemFailures": [{"itemIdentifier": "1"}]})
    nameless = {"Records": [{**record, "messageId": None} for record in sqs_event(bad, PLAIN)["Records"]]}
    for event in (sqs_event(bad), sns_event(bad, PLAIN), nameless):
        tried.clear()
        with pytest.raises(EventError):
            handle_messages(event, look)
        assert (PLAIN in tried) == (len(event["Records"]) == 2)


@given(st.one_of(ANYTHING, damaged(sqs_event(PLAIN)), damaged(sns_event(PLAIN)), damaged(sns(PLAIN))))
def test_any_message_is_read_or_refused_with_the_documented_error(event):
    try:
        handle_messages(event, read)
    except InputError as error:
        assert str(error).isprintable()


@given(st.one_of(ANYTHING, damaged({"Records": [s3_record()]}), damaged(eventbridge()), damaged(TEST_EVENT)))
def test_any_event_is_read_or_refused_with_the_documented_error(event):
    check(event)


@pytest.mark.parametrize("event", EXTREMES.values(), ids=EXTREMES)
def test_an_extreme_event_is_read_or_refused_too(event):
    check(event)


def check(event: object) -> None:
    if not is_notification(event):
        return
    try:
        found = read_notices(event, EXPECTED)
    except InputError as error:
        found = [error]
    for one in found:
        if isinstance(one, InputError):
            assert len(str(one)) < 400
            assert str(one).isprintable()
        else:
            assert one.bucket
            assert one.key
            assert one.size >= 0
