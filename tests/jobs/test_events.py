"""What tells ingest of finished jobs: trigger files, names, and anything else that a Lambda may be called with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.jobs.events import FinishedJob, read_event
from tests.samples.event_samples import ANYTHING, BUCKET, damaged, eventbridge, s3_record

JOB = "j8c601020"
MOSAICS = ("acs_8ph_01", "wfc3_8ph_01", "skycell-p0797x14y06")
# A rule of its own: letter of an instrument, eight letters or digits.
NAMES = st.from_regex(r"[jloi][a-z0-9]{8}", fullmatch=True) | st.sampled_from(MOSAICS)
BUCKETS = st.sampled_from([BUCKET, "other-bucket"])


def trigger(name: str) -> str:
    return f"messages/processed-{name}.trigger"


@pytest.mark.parametrize("name", [JOB, *MOSAICS])
@pytest.mark.parametrize("key", ["Ipppssoot", "Dataset"])
def test_a_job_is_told_by_its_name(key, name):
    assert read_event({"Bucket": BUCKET, key: name}) == ([(BUCKET, name)], [])


@pytest.mark.parametrize("more", [{"Dataset": JOB.upper()}, {"Dataset": ""}, {"Dataset": None}, {"Key": 5}])
def test_what_says_the_same_or_nothing_changes_nothing(more):
    assert read_event({"Bucket": BUCKET, "Ipppssoot": JOB, **more}) == ([(BUCKET, JOB)], [])


@given(st.lists(st.tuples(BUCKETS, NAMES), min_size=1, max_size=8))
def test_each_job_of_a_notification_is_told_once_in_order(jobs):
    event = {"Records": [s3_record(trigger(name), bucket) for bucket, name in jobs]}
    assert read_event(event) == ([job for at, job in enumerate(jobs) if job not in jobs[:at]], [])
    assert read_event(eventbridge(trigger(jobs[0][1]))) == ([(BUCKET, jobs[0][1])], [])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (s3_record(f"messages/error-{JOB}.trigger"), "is no trigger's; expected"),
        (s3_record(f"messages/processed-{JOB}.trigger2"), "is no trigger's; expected"),
        (s3_record(f"old/messages/processed-{JOB}.trigger"), "is no trigger's; expected"),
        (s3_record(trigger(f"{JOB}%0A")), "is no trigger's; expected"),
        (s3_record(trigger("..%2F..%2Fsecret")), "is no dataset name"),
    ],
)
def test_a_bad_record_is_told_and_costs_no_job(record, words):
    jobs, (error,) = read_event({"Records": [s3_record(trigger(JOB)), record, s3_record(trigger("lbny02010"))]})
    assert jobs == [(BUCKET, JOB), (BUCKET, "lbny02010")]
    assert isinstance(error, InputError)
    assert words in str(error)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, "the event is a NoneType; expected"),
        ([], "the event is a list; expected"),
        ({}, "the event has no Ipppssoot; expected"),
        ({"Ipppssoot": JOB}, "Bucket is missing; expected"),
        ({"Bucket": BUCKET, "Ipppssoot": 5}, "5 is no dataset name"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": "lbny02010"}, f"'{JOB}' and Dataset 'lbny02010'; expected"),
        ({"Records": []}, "Records are no list"),
    ],
)
def test_an_event_that_tells_of_no_job_is_refused(event, words):
    with pytest.raises(InputError, match=words):
        read_event(event)


@given(ANYTHING | damaged({"Bucket": BUCKET, "Ipppssoot": JOB}) | damaged({"Records": [s3_record(trigger(JOB))]}))
def test_any_event_is_read_or_refused_with_the_documented_error(event):
    try:
        jobs, errors = read_event(event)
    except InputError as error:
        jobs, errors = [], [error]
    for job in jobs:
        assert isinstance(job, FinishedJob)
        assert job.bucket
        assert job.name == job.name.lower()
    for error in errors:
        assert len(str(error)) < 900
        assert str(error).isprintable()
