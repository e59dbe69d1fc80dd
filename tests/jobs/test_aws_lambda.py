"""The Lambda handler of ingest, on a real S3 server and a real store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.jobs import aws_lambda
from calmlflow.jobs.aws_lambda import handler
from calmlflow.jobs.ingest import STEP_FAILED
from calmlflow.jobs.stores.base import JOBS, KILLED, QUARANTINE
from calmlflow.jobs.stores.open import open_store
from calmlflow.storage.s3_events import EventError
from tests.samples.event_samples import BUCKET, batch_event, s3_record, sns, sns_event, sqs_event
from tests.samples.ingest_samples import bad_line, metrics, put_job
from tests.samples.store_samples import contents

JOB, OTHER, FAILED = "j8c601020", "lbny02010", "obxf07010"


@pytest.fixture
def uri(tmp_path, monkeypatch) -> Iterator[str]:
    """The store that CALMLFLOW_JOBS names; a handler keeps its store, and each test has its own."""
    address = f"sqlite:///{tmp_path}/jobs/jobs.db"
    monkeypatch.setenv("CALMLFLOW_JOBS", address)
    yield address
    aws_lambda._store.cache_clear()


@pytest.fixture
def buckets(s3, bucket) -> list[str]:
    """Two buckets: one with three jobs, of which one failed, and one with a single job."""
    names = [bucket, f"{bucket}-ops"]
    s3.create_bucket(Bucket=names[1])
    put_job(s3, names[0], JOB)
    put_job(s3, names[0], FAILED, process=metrics(status=1))
    put_job(s3, names[1], OTHER)
    return names


def trigger(name: str) -> str:
    return f"messages/processed-{name}.trigger"


def stored(uri: str, table=JOBS) -> list[str]:
    with closing(open_store(uri)) as store:
        return contents(store, table)["ipst"].tolist()


TEST_EVENT = {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}
NOTHING = {
    **dict.fromkeys(("datasets", "stored", "updated", "unchanged", "older", "quarantined"), 0),
    **{"reasons": {}, "killed": {}},
}


def test_finished_jobs_of_several_buckets_are_stored(uri, buckets):
    event = {
        "Records": [
            s3_record(trigger(JOB), buckets[0]),
            s3_record(trigger(FAILED), buckets[0]),
            s3_record(trigger(OTHER), buckets[1]),
            s3_record("messages/error-x.trigger", buckets[0]),
        ]
    }
    answer = handler(event)
    (refusal,) = answer.pop("refused")
    assert "is no trigger's; expected" in refusal
    kinds = {"reasons": {STEP_FAILED: 1}, "killed": {"failed": 1}}
    assert answer == {**NOTHING, "datasets": 3, "stored": 2, "quarantined": 1, **kinds}
    assert stored(uri) == [JOB, OTHER]
    assert stored(uri, QUARANTINE) == [FAILED]
    # The same event again, as S3 may send it.
    answer = handler(event)
    assert [answer[name] for name in ("stored", "unchanged", "quarantined")] == [0, 2, 1]
    assert stored(uri) == [JOB, OTHER]
    json.dumps(answer)


def test_a_job_that_batch_gave_up_is_kept_once_or_quarantined(uri, buckets):
    timeout = "Job attempt duration exceeded timeout"
    event = json.loads(json.dumps(batch_event(JOB, reason=timeout)).replace(BUCKET, buckets[0]))
    unknown = json.loads(json.dumps(batch_event("lunknown0", reason=timeout)).replace(BUCKET, buckets[0]))
    for _ in range(2):
        assert handler(event) == {**NOTHING, "killed": {"time": 1}, "refused": []}
        assert handler(unknown)["reasons"] == {STEP_FAILED: 1}
    with closing(open_store(uri)) as store:
        (killed,) = contents(store, KILLED).to_dict("records")
        (entry,) = contents(store, QUARANTINE).to_dict("records")
    assert (killed["ipst"], killed["kind"], killed["wallclock"], killed["n_files"]) == (JOB, "time", 100.0, 17)
    assert entry["reason"].startswith(f"lunknown0: Batch: {timeout}; expected")
    assert stored(uri) == []


def test_messages_of_a_queue_are_stored_and_those_that_are_not_understood_come_back(uri, buckets):
    finished = {"Records": [s3_record(trigger(JOB), buckets[0]), s3_record("messages/error-x.trigger")]}
    gave_up = json.loads(json.dumps(batch_event(FAILED)).replace(BUCKET, buckets[0]))
    answer = handler(sqs_event(TEST_EVENT, "no JSON", sns(finished), gave_up, {"x": 1}))
    assert answer["batchItemFailures"] == [{"itemIdentifier": "1"}, {"itemIdentifier": "4"}]
    assert (answer["stored"], answer["killed"], len(answer["refused"])) == (1, {"failed": 1}, 1)
    assert stored(uri) == [JOB]
    # What SNS hands to Lambda itself has no way back but the whole call.
    with pytest.raises(EventError, match="has no Ipppssoot; expected"):
        handler(sns_event({"x": 1}, {"Bucket": buckets[1], "Ipppssoot": OTHER}))
    assert stored(uri) == [JOB, OTHER]


def test_a_record_that_is_not_understood_fails_the_call_after_the_others_are_stored(uri, buckets):
    with pytest.raises(CalmlflowError, match="a record is not one of S3's"):
        handler({"Records": [{"eventSource": "aws:kinesis"}, s3_record(trigger(JOB), buckets[0])]})
    assert stored(uri) == [JOB]


def test_an_event_without_finished_jobs_makes_no_store(uri, tmp_path):
    assert handler(TEST_EVENT) == {**NOTHING, "refused": []}
    assert len(handler({"Bucket": "b", "Ipppssoot": JOB})["refused"]) == 1
    for event in (None, {"x": 1}, {"Records": 5}):
        with pytest.raises(EventError, match="expected"):
            handler(event)
    assert list(tmp_path.iterdir()) == []


def test_s3_is_away_and_comes_back(server, uri, buckets, monkeypatch):
    event = {"Bucket": buckets[0], "Ipppssoot": JOB}
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        with pytest.raises(CalmlflowError, match=rf"s3://{buckets[0]}/.* cannot be read .*; this call is safe"):
            handler(event)
    # A single file cannot be read.
    with (
        monkeypatch.context() as bad,
        bad_line(server.s3_endpoint, lambda _, request: "503" if b"control" in request else "") as line,
    ):
        bad.setenv("AWS_ENDPOINT_URL_S3", line.uri)
        with pytest.raises(CalmlflowError, match=r"not all of 1 finished jobs were read: .*control.*; this call is"):
            handler(event)
    assert stored(uri) == []
    assert stored(uri, QUARANTINE) == []
    assert handler(event)["stored"] == 1
    assert stored(uri) == [JOB]


def test_a_bucket_that_is_gone_costs_no_job_of_another(uri, buckets):
    records = [s3_record(trigger(JOB), "aaa-gone"), s3_record(trigger(OTHER), buckets[1])]
    with pytest.raises(CalmlflowError, match=r"s3://aaa-gone/.* cannot be read"):
        handler({"Records": records})
    assert stored(uri) == [OTHER]


def test_a_fresh_process_answers_and_loads_no_mlflow(server, uri, buckets):
    """As Lambda starts it, twice, with nothing between but the store."""
    code = """
import json, sys
from calmlflow.jobs.aws_lambda import handler
print(json.dumps(handler(json.loads(sys.argv[1]))))
print(*sorted({"mlflow", "tensorflow", "keras", "sklearn", "matplotlib"} & set(sys.modules)))
"""
    event = json.dumps({"Bucket": buckets[0], "Ipppssoot": JOB})
    environment = {**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    for expected in ("stored", "unchanged"):
        done = subprocess.run([sys.executable, "-c", code, event], env=environment, capture_output=True, text=True)
        answer, loaded = done.stdout.splitlines()
        assert json.loads(answer)[expected] == 1, done.stderr
        assert loaded == ""
