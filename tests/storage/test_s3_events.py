"""Records of S3 about new objects, whatever the handler: their place and size, and the faults of a record."""

from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.storage.s3_events import MAX_RECORDS, Notice, is_notification, read_notices
from tests.samples.event_samples import ANYTHING, BUCKET, EXTREMES, damaged, eventbridge, s3_record

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
    assert isinstance(error, InputError)
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
    assert isinstance(error, InputError)


@pytest.mark.parametrize("event", [None, 5, "Records", ["Records"], {}, {"Bucket": BUCKET}, {"Event": "other"}])
def test_anything_else_is_no_notification(event):
    assert not is_notification(event)


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
