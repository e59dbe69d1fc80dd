"""The handler: an event that cannot be answered is answered with the reason; anything else is raised."""

from types import SimpleNamespace

import pytest
from predictor_samples import ALIASES, CONTROL, NO_ALIAS, STAGES, http_registry, keep_in_cache, staged

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.predictor import Predictor, aws_lambda
from calmlflow.predictor.registry_http import RegistryUnavailableError

BUCKET = "calcloud-processing"
JOB = "jabc07020"
KEY = f"control/{JOB}/{JOB}_MemModelFeatures.txt"


@pytest.fixture(autouse=True)
def cold():
    """Each test begins with a new Lambda instance."""
    aws_lambda._predictor.cache_clear()
    yield
    aws_lambda._predictor.cache_clear()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    monkeypatch.delenv("CALMLFLOW_STAGE", raising=False)
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", found.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        keep_in_cache(tmp_path, found.uri, "3")
        yield found


@pytest.fixture
def control_file(s3, registry):
    # `s3` points MLflow at its server; `registry` comes after it and points it elsewhere.
    body = "\n".join(f"{key}={value}" for key, value in CONTROL.items())
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=body.encode())


@pytest.mark.parametrize(
    "event",
    [
        {"Bucket": BUCKET, "Key": KEY, "Ipppssoot": JOB},
        {"Bucket": BUCKET, "Key": KEY, "Dataset": JOB},
        {"Bucket": BUCKET, "Key": "control", "Ipppssoot": JOB},
        {"Bucket": BUCKET, "Key": "", "Ipppssoot": JOB},
        {"Bucket": BUCKET, "Key": None, "Ipppssoot": JOB},
        {"Bucket": BUCKET, "Ipppssoot": JOB, "Dataset": "of no account"},
        {"Bucket": BUCKET, "Ipppssoot": JOB.upper(), "Other": 1},
    ],
)
def test_an_event_is_answered_as_the_predictor_does(control_file, event):
    assert aws_lambda.handler(event) == Predictor().predict(JOB, CONTROL)


def test_another_key_is_read(control_file, s3):
    s3.put_object(Bucket=BUCKET, Key="other", Body=b"n_files=900\ntotal_mb=90000")
    answer = aws_lambda.handler({"Bucket": BUCKET, "Key": "other", "Ipppssoot": JOB})
    assert answer == Predictor().predict(JOB, {"n_files": 900, "total_mb": 90000})


def test_the_stage_is_that_of_the_environment(control_file, registry, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_STAGE", "Staging")
    aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": JOB})
    assert registry.queries[-1][1]["stages"] == ["Staging"]


def test_a_warm_instance_asks_the_registry_anew_after_a_while(control_file, registry, monkeypatch):
    # Waiting for the clock would take minutes.
    asked = []
    for periods in (1000, 1000.9, 1001):
        clock = SimpleNamespace(monotonic=lambda periods=periods: periods * aws_lambda.REFRESH_S)
        monkeypatch.setattr(aws_lambda, "time", clock)
        aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": JOB})
        asked.append(len(registry.queries))
    assert asked == [1, 1, 2]


@pytest.mark.parametrize(
    "event", [{"Bucket": "any", "Ipppssoot": "acs_8ph_01"}, {"Bucket": "any", "Dataset": "skycell-p0797x14y06"}]
)
def test_a_mosaic_needs_neither_registry_nor_s3(event, monkeypatch, ports, tmp_path):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    answer = aws_lambda.handler(event)
    assert (answer["memBin"], answer["clockTime"], answer["killTime"], answer["source"]) == (
        1,
        43_200,
        259_200,
        "policy",
    )


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, "the event is a NoneType"),
        ([], "the event is a list"),
        ("jabc07020", "the event is a str"),
        ({}, "the event has no Ipppssoot"),
        ({"Ipppssoot": JOB}, "the event has no Bucket"),
        ({"Ipppssoot": JOB, "Bucket": ""}, "the event has no Bucket"),
        ({"Ipppssoot": JOB, "Bucket": 5}, "the event has no Bucket"),
        ({"Bucket": BUCKET}, "the event has no Ipppssoot"),
        ({"Bucket": BUCKET, "Ipppssoot": 5}, "the event has no Ipppssoot"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Key": 5}, "Key is 5"),
        ({"Bucket": BUCKET, "Ipppssoot": JOB, "Key": ["a"]}, "Key is"),
        ({"Bucket": BUCKET, "Ipppssoot": "zabc07020"}, "'z'"),
        ({"Bucket": BUCKET, "Ipppssoot": "../../etc"}, "is no dataset name"),
    ],
)
def test_an_event_that_cannot_be_answered_is_told_why(event, words):
    answer = aws_lambda.handler(event)
    assert set(answer) == {"errorType", "errorMessage"}
    assert answer["errorType"] == "InputError"
    assert words in answer["errorMessage"]


def test_a_control_file_that_is_not_there_or_is_none_is_told(control_file, s3):
    gone = aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": "jzzz88010"})
    assert "control/jzzz88010/jzzz88010_MemModelFeatures.txt" in gone["errorMessage"]
    s3.put_object(Bucket=BUCKET, Key="empty", Body=b"")
    empty = aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": JOB, "Key": "empty"})
    assert "n_files is missing" in empty["errorMessage"]


def test_a_registry_out_of_reach_is_raised(monkeypatch, ports, tmp_path):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    with pytest.raises(RegistryUnavailableError):
        aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": JOB})


def test_a_store_out_of_reach_is_raised(control_file, monkeypatch, ports):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CalmlflowError, match="EndpointConnectionError") as caught:
        aws_lambda.handler({"Bucket": BUCKET, "Ipppssoot": JOB})
    assert not isinstance(caught.value, InputError)
