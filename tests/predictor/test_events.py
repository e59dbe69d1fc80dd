"""Events of AWS Lambda: calcloud's own, S3's and EventBridge's; nothing but the documented error for the rest."""

from urllib.parse import quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.predictor.events import read_job, read_message
from calmlflow.storage.s3_events import is_notification
from tests.samples.event_samples import BUCKET, EVENTS, EXTREMES, FOLDER, JOB, JOB_EVENT, KEY, eventbridge, s3_record

# -- One job --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        JOB_EVENT,
        {"Bucket": BUCKET, "Key": KEY, "Ipppssoot": "", "Dataset": JOB},
        {"Bucket": BUCKET, "Key": "control", "Ipppssoot": JOB, "Dataset": None},
        {"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": JOB.upper()},
    ],
)
def test_a_job_is_read(event):
    assert not is_notification(event)
    job = read_job(event)
    assert (job.dataset.name, job.bucket, job.key) == (JOB, BUCKET, KEY)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, "the event is a NoneType"),
        ({"Ipppssoot": JOB}, "the event has no Bucket"),
        ({"Ipppssoot": JOB, "Bucket": ""}, "the event has no Bucket"),
        ({"Ipppssoot": JOB, "Bucket": "No Bucket"}, "Bucket 'No Bucket' is no bucket's name"),
        ({"Bucket": BUCKET}, "the event has no Ipppssoot"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Key": "control/jabc07010/f"}, "is not that of a file of jabc07020"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": "jabc07010"}, "Ipppssoot 'jabc07020' and Dataset 'jabc07010'"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": 5}, "5 is no dataset name"),
    ],
)
def test_an_event_that_is_no_job_is_told_why(event, words):
    with pytest.raises(InputError, match=words):
        read_job(event)


# -- Notifications --------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_notification_are_read_in_order():
    event = {"Records": [s3_record(), s3_record("control/acs_8ph_01/x"), s3_record(bucket="other-bucket")]}
    assert is_notification(event)
    found = [(job.dataset.name, job.bucket, job.key) for job in read_message(event)]
    assert found == [
        (JOB, BUCKET, KEY),
        ("acs_8ph_01", BUCKET, "control/acs_8ph_01/acs_8ph_01_MemModelFeatures.txt"),
        (JOB, "other-bucket", KEY),
    ]


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=50).map(lambda text: f"{text} +%2B"))
@example("a b+c%20é")
def test_keys_are_url_encoded_by_s3_and_plain_by_eventbridge(name):
    if {".", ".."} & set(name.split("/")):
        return
    key = FOLDER + name.strip("/")
    (encoded,) = read_message({"Records": [s3_record(quote_plus(key, safe="/"))]})
    (plain,) = read_message(eventbridge(key))
    assert encoded == plain
    assert plain.key == key


def test_a_test_of_s3s_holds_no_job():
    event = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET, "RequestId": "1"}
    assert is_notification(event)
    assert read_message(event) == []


@pytest.mark.parametrize(
    "record",
    [
        # Records that are no notice of an object at all are tested in tests/storage/test_s3_events.py.
        {"eventSource": "aws:sqs", "body": "{}"},
        s3_record("outputs/jabc07020/process_metrics.txt"),
        s3_record("control"),
        s3_record("control/jabc07020"),
        s3_record("control/zabc07020/file"),
        s3_record("control/jabc07020/..%2F..%2Ffile"),
        s3_record(s3={"bucket": {"name": BUCKET}, "object": {"key": KEY, "size": 65_537}}),
    ],
)
def test_a_record_that_is_no_job_is_told_in_its_place(record):
    before, error, after = read_message({"Records": [s3_record(), record, s3_record()]})
    assert isinstance(error, InputError)
    assert before == after


# -- Anything else --------------------------------------------------------------------------------------------------


def check(event: object) -> None:
    """It is read, or refused with a message that quotes nothing longer than a name and can be printed."""
    try:
        found = read_message(event)
    except InputError as error:
        found = [error]
    for one in found:
        if isinstance(one, InputError):
            assert len(str(one)) < 900
            assert str(one).isprintable()
        else:
            assert one.key.startswith(f"control/{one.dataset.name}/")


@pytest.mark.parametrize("event", EXTREMES.values(), ids=EXTREMES)
def test_an_extreme_event_is_refused_with_the_documented_error(event):
    check(event)


@settings(max_examples=50)
@given(EVENTS)
def test_any_event_is_read_or_refused_with_the_documented_error(event):
    check(event)
