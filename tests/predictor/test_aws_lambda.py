"""The handler: what cannot be answered is told; what is not the event's fault is raised; nothing of the data leaks."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import calmlflow.storage.s3
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor import Predictor, aws_lambda
from calmlflow.predictor.answers import fallback_policy, mosaic_policy
from calmlflow.server.processes import wait_until
from calmlflow.storage.s3_events import EventError
from tests.samples.commands import started
from tests.samples.event_samples import BUCKET, FOLDER, JOB, KEY, s3_record, sns, sns_event, sqs_event
from tests.samples.predictor_samples import (
    ALIASES,
    CONTROL,
    FILES,
    NO_ALIAS,
    STAGES,
    files_of,
    http_registry,
    keep_in_cache,
    staged,
    write_bundle,
)

EVENT = {"Bucket": BUCKET, "Key": KEY, "Ipppssoot": JOB}
MOSAIC = {"Bucket": "any", "Ipppssoot": "acs_8ph_01"}
BODY = "\n".join(f"{key}={value}" for key, value in CONTROL.items()).encode()


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Each test begins with a new Lambda instance."""
    for name in ("STAGE", "BUNDLE", "POLICY_FALLBACK", "EMIT", "SHADOW_STAGE"):
        monkeypatch.delenv(f"CALMLFLOW_{name}", raising=False)
    kept = (aws_lambda._predictor, aws_lambda._emitter, calmlflow.storage.s3._kept_client)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", found.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        keep_in_cache(tmp_path / "cache", found.uri, "3")
        yield found


@pytest.fixture
def control_file(s3, registry):
    # `s3` points MLflow at its server; `registry` comes after it and points it elsewhere.
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=BODY)
    s3.put_object(Bucket=BUCKET, Key=f"{FOLDER}much", Body=b"n_files=900\ntotal_mb=90000")


@pytest.fixture
def no_s3(monkeypatch, ports):
    """A store that nobody answers for."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports[0]}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


# -- One job --------------------------------------------------------------------------------------------------------


def test_an_event_is_answered_as_the_predictor_does(control_file):
    assert aws_lambda.handler(EVENT, object()) == Predictor().predict(JOB, CONTROL)
    much = aws_lambda.handler({**EVENT, "Key": f"{FOLDER}much"})
    assert much == Predictor().predict(JOB, {"n_files": 900, "total_mb": 90000})


def test_a_warm_instance_has_one_predictor_of_the_stage_of_the_environment(control_file, registry, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_STAGE", "Staging")
    for _ in range(3):
        aws_lambda.handler(EVENT)
    assert [query["stages"] for path, query in registry.queries if path == STAGES] == [["Staging"]]


def test_a_mosaic_needs_neither_registry_nor_s3(no_s3, monkeypatch, ports, tmp_path):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    assert aws_lambda.handler({"Bucket": "any", "Dataset": "acs_8ph_01"}) == mosaic_policy()


@pytest.mark.parametrize(
    ("event", "words"),
    [({"Ipppssoot": JOB}, "the event has no Bucket"), ({"Bucket": BUCKET}, "the event has no Ipppssoot")],
)
def test_an_event_that_cannot_be_answered_is_told_why(event, words):
    answer = aws_lambda.handler(event)
    assert answer.keys() == {"errorType", "errorMessage"}
    assert answer["errorType"] == "InputError"
    assert words in answer["errorMessage"]


# -- What is not the event's fault ----------------------------------------------------------------------------------


def test_the_policy_answers_without_a_bundle_where_it_is_wanted(s3, monkeypatch, ports, tmp_path):
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=BODY)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    monkeypatch.setenv("CALMLFLOW_POLICY_FALLBACK", "true")
    # The control file may be warned of.
    assert {**aws_lambda.handler(EVENT), "warnings": []} == fallback_policy()


@pytest.mark.parametrize(("name", "value"), [("STAGE", "Prod"), ("POLICY_FALLBACK", "perhaps"), ("TIMEOUT", "soon")])
def test_a_wrong_setting_is_not_the_events_fault(registry, no_s3, monkeypatch, name, value):
    monkeypatch.setenv(f"CALMLFLOW_{name}", value)
    with pytest.raises(CalmlflowError, match=value) as caught:
        aws_lambda.handler(EVENT)
    assert not isinstance(caught.value, InputError)


def test_of_a_bug_the_place_is_told_and_nothing_of_the_data(registry, monkeypatch, caplog):
    monkeypatch.setattr(aws_lambda, "read_control_object", lambda *words: int("secret data"))
    with pytest.raises(CalmlflowError) as caught:
        aws_lambda.handler(EVENT)
    assert "internal error (ValueError at test_aws_lambda.py:" in str(caught.value)
    assert type(caught.value) is CalmlflowError
    assert "ValueError at test_aws_lambda.py:" in caplog.text
    assert "secret" not in str(caught.value) + caplog.text


# -- A frozen instance ----------------------------------------------------------------------------------------------


def test_an_instance_that_was_frozen_answers_with_the_version_that_came_meanwhile(registry, tmp_path):
    code = f"""
import json, sys
from calmlflow.predictor import aws_lambda
aws_lambda.Predictor.__init__.__kwdefaults__["refresh"] = 0.2
aws_lambda.read_control_object = lambda *words: {CONTROL}
for line in sys.stdin:
    print(json.dumps(aws_lambda.handler(json.loads(line))), flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started([sys.executable, "-c", code], cwd=Path(__file__).parents[2], **pipes) as instance:

        def call() -> str:
            print(json.dumps(EVENT), file=instance.stdin, flush=True)
            return json.loads(instance.stdout.readline())["version"]

        try:
            assert call() == "3"
            instance.send_signal(signal.SIGSTOP)
            registry.answers[FILES] = files_of(write_bundle(tmp_path / "4", 4))
            registry.answers[STAGES] = staged("4")
            # Frozen for longer than a version is trusted to be the last.
            time.sleep(0.3)
            instance.send_signal(signal.SIGCONT)
            assert call() == "4"
        finally:
            instance.kill()


def test_a_look_takes_half_of_the_time_of_a_call_at_most(registry, monkeypatch):
    class Context:
        def get_remaining_time_in_millis(self):
            return 400

    monkeypatch.setitem(Predictor.__init__.__kwdefaults__, "refresh", 0)
    aws_lambda._predictor()
    registry.answers[STAGES] = None
    began = time.monotonic()
    assert aws_lambda.handler(MOSAIC, Context()) == mosaic_policy()
    assert 0.2 <= time.monotonic() - began < 1


# -- Notifications --------------------------------------------------------------------------------------------------


def test_a_notification_is_answered_record_by_record(control_file):
    keys = [KEY, "control/jzzz88010/file", "control/acs_8ph_01/file", "outputs/file", f"{FOLDER}much"]
    answers = aws_lambda.handler({"Records": [s3_record(key) for key in keys]})["answers"]
    predictor = Predictor()
    assert [answer.pop("dataset") for answer in answers] == [JOB, "jzzz88010", "acs_8ph_01", None, JOB]
    assert answers[0] == predictor.predict(JOB, CONTROL)
    assert (answers[1]["errorType"], answers[3]["errorType"]) == ("InputError", "InputError")
    assert answers[2] == mosaic_policy()
    assert answers[4] == predictor.predict(JOB, {"n_files": 900, "total_mb": 90000})


def test_a_fault_costs_no_other_records_answer(registry, no_s3, caplog):
    answers = aws_lambda.handler({"Records": [s3_record(), s3_record("control/acs_8ph_01/file")]})["answers"]
    assert answers[0]["errorType"] == "CalmlflowError"
    assert "EndpointConnectionError" in answers[0]["errorMessage"]
    assert answers[1] == {"dataset": "acs_8ph_01", **mosaic_policy()}
    assert "was not answered: s3://calcloud-processing/control/jabc07020" in caplog.text


@pytest.mark.parametrize("event", [EVENT, {"Records": [s3_record(), s3_record("outputs/file")]}])
def test_a_fault_is_raised_where_a_second_try_loses_nothing(registry, no_s3, event):
    with pytest.raises(CalmlflowError, match="EndpointConnectionError") as caught:
        aws_lambda.handler(event)
    assert not isinstance(caught.value, InputError)


def test_messages_of_a_queue_are_answered_and_those_that_are_not_understood_come_back(control_file):
    event = sqs_event(EVENT, "no JSON", sns({"Records": [s3_record()]}), sns({"Records": [s3_record(), {}]}))
    told = aws_lambda.handler(event)
    assert told["batchItemFailures"] == [{"itemIdentifier": "1"}, {"itemIdentifier": "3"}]
    assert told["answers"] == [{"dataset": JOB, **Predictor().predict(JOB, CONTROL)}] * 2


@pytest.mark.parametrize("event", [None, {}, {"x": 1}, {"Records": 5}, sns_event("x"), {"Records": [s3_record(), {}]}])
def test_an_event_that_is_not_understood_fails_the_call(control_file, event):
    with pytest.raises(EventError):
        aws_lambda.handler(event)


# -- What is kept and told ------------------------------------------------------------------------------------------


def test_every_answer_is_kept_and_logged(control_file, s3, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "calmlflow.answers")
    monkeypatch.setenv("CALMLFLOW_EMIT", f"s3://{BUCKET}/kept-by-lambda")
    answer = aws_lambda.handler(EVENT)
    aws_lambda.handler(MOSAIC)
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix="kept-by-lambda/")["Contents"]
    records = [json.loads(s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()) for each in found]
    mosaic, job = sorted(records, key=lambda record: record["ipst"])
    assert (job["ipst"], job["n_files"], job["bin_pred"], job["version"]) == (JOB, 17, answer["memBin"], "3")
    assert (mosaic["ipst"], mosaic["n_files"], mosaic["bin_pred"]) == ("acs_8ph_01", None, 1)
    assert [record.dataset for record in caplog.records if record.name == "calmlflow.answers"] == [JOB, "acs_8ph_01"]


def test_the_challenger_answers_too_and_both_are_kept(control_file, registry, s3, monkeypatch, tmp_path):
    registry.answers[STAGES] = lambda query: staged("4" if query["stages"] == ["Staging"] else "3")
    registry.answers[FILES] = files_of(write_bundle(tmp_path / "4", seed=4))
    expected = aws_lambda.handler(EVENT)
    aws_lambda._predictor.cache_clear(), aws_lambda._emitter.cache_clear()
    monkeypatch.setenv("CALMLFLOW_EMIT", f"s3://{BUCKET}/kept-with-shadow")
    monkeypatch.setenv("CALMLFLOW_SHADOW_STAGE", "Staging")
    assert aws_lambda.handler(EVENT) == expected

    def kept() -> dict[str, str]:
        found = s3.list_objects_v2(Bucket=BUCKET, Prefix="kept-with-shadow/").get("Contents", ())
        records = [json.loads(s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()) for each in found]
        return {record["source"]: record["version"] for record in records}

    assert wait_until(lambda: len(kept()) == 2, 60)
    assert kept() == {"registry": "3", "shadow": "4"}


def test_on_lambda_the_line_of_an_answer_holds_its_metrics(tmp_path):
    code = f"from calmlflow.predictor import aws_lambda; aws_lambda.handler({MOSAIC})"
    environment = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "CALMLFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "calmlflow"
    assert directive["Dimensions"] == [["Stage"], ["Stage", "Source"]]
    assert {metric["Name"] for metric in directive["Metrics"]} == {"Answers", "Unseen", "Milliseconds"}
    assert (line["Stage"], line["Source"], line["Answers"], line["Unseen"]) == ("Production", "policy", 1, 0)
    assert line["Milliseconds"] == line["ms"] > 0
    assert line["dataset"] == "acs_8ph_01"


def test_a_wrong_place_for_predictions_costs_no_answer(registry, monkeypatch, caplog):
    monkeypatch.setenv("CALMLFLOW_EMIT", "ftp://me:hidden@host/a")
    assert aws_lambda.handler(MOSAIC) == mosaic_policy()
    assert "predictions are not kept" in caplog.text
    assert "hidden" not in caplog.text


def test_a_warm_call_loads_nothing_heavy_and_boto3_only_to_read_s3(tmp_path):
    write_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "version.json").write_text('{"version": "3"}')
    code = """
import sys
from calmlflow.predictor import aws_lambda
heavy = {"tensorflow", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "pyarrow", "boto3", "botocore"}
assert aws_lambda.handler({"Bucket": "any", "Ipppssoot": "acs_8ph_01"})["memBin"] == 1
assert aws_lambda.handler({"Bucket": "any"})["errorType"] == "InputError"
assert aws_lambda._predictor().predict("jabc07020", {"n_files": 1, "total_mb": 2})["version"] == "3"
print(*sorted(heavy & set(sys.modules)))
"""
    environment = {"CALMLFLOW_BUNDLE": str(tmp_path / "bundle"), "CALMLFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
