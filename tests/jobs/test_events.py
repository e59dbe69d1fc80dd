"""Events that tell ingest of finished jobs: trigger files, names, and anything else that a Lambda may be given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.jobs.events import FinishedJob, read_event, read_failure
from tests.samples.event_samples import ANYTHING, BUCKET, batch_event, damaged, eventbridge, s3_record

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


# -- Failed jobs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "kind", "status"), [
    ({"reason": "Job attempt duration exceeded timeout"}, "time", None),
    ({"reason": "Host EC2 (instance i-0abc) terminated."}, "machine", None),
    ({"reason": "Operator cancelled"}, "failed", None),
    ({}, None, 1),
])  # fmt: skip
def test_what_batch_says_tells_what_killed_a_job(more, kind, status):
    failed = read_failure(batch_event(JOB, **more))
    assert (failed.bucket, failed.name) == (BUCKET, JOB)
    (kill,) = failed.kills
    assert (kill.get("kind"), kill.get("exit_status")) == (kind, status)
    assert (kill["ipst"], kill["timestamp"], kill["wallclock"]) == (JOB, 1_700_000_100, 100.0)
    assert kill["reason"] == f"Batch: {more.get('reason', 'Essential container in task exited')}"


def test_a_container_that_was_killed_for_its_memory_needs_more_than_it_had():
    attempt = {"startedAt": 1_700_000_000_000, "stoppedAt": 1_700_000_100_000}
    reason = "OutOfMemoryError: Container killed due to memory usage"
    (kill,) = read_failure(batch_event(attempts=[{**attempt, "container": {"exitCode": 137, "reason": reason}}])).kills
    assert (kill["kind"], kill["memory"], kill["reason"]) == ("memory", 1792 * 2**20 / 1e9, f"Batch: {reason}")


def test_each_attempt_that_ran_is_a_kill():
    times = [{"startedAt": 1000 * start, "stoppedAt": 1000 * (start + 50)} for start in (1000, 3000)]
    attempts = [{**times[0], "statusReason": "Host EC2 (instance i-0abc) terminated."}, {"startedAt": 5}, times[1]]
    kills = read_failure(batch_event(attempts=attempts, reason="Job attempt duration exceeded timeout")).kills
    assert [(kill["timestamp"], kill["kind"], kill["wallclock"]) for kill in kills] == [
        (1050, "machine", 50.0),
        (3050, "time", 50.0),
    ]


def test_a_job_without_a_command_is_told_by_its_name():
    failed = read_failure(batch_event(JOB, container={}))
    assert (failed.bucket, failed.name) == ("", JOB)


@pytest.mark.parametrize(("more", "words"), [
    ({"status": "SUCCEEDED"}, "is none of a failed job; expected Batch"),
    ({"attempts": [], "startedAt": None}, "has no attempt with a beginning and an end; expected Batch"),
    ({"container": {}, "jobName": "rebuild"}, "is no dataset name"),
    ({"container": {"command": [JOB, "s3://UPPER/x"]}}, "is no bucket's name"),
])  # fmt: skip
def test_an_event_of_batch_that_tells_of_no_kill_is_refused(more, words):
    with pytest.raises(InputError, match=words):
        read_failure(batch_event(JOB, **more))


@given(damaged(batch_event(JOB)).filter(lambda event: isinstance(event, dict)))
def test_any_event_of_batch_is_read_or_refused(event):
    try:
        failed = read_failure(event)
    except InputError as error:
        assert len(str(error)) < 900
        return
    assert failed.kills
