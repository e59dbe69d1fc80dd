"""Predictions are kept one by one as objects in S3, or the failure is told."""

import json

import pytest

import calmlflow.storage.s3
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, Features
from calmlflow.predictor.emit import open_emitter, prediction_record

FEATURES_OF_JOB = Features(17, 10, 1, 0, 2, 0, 0, 1, 0)
TIMES = {"clockTime": 149, "killTime": 465, "version": "7", "source": "cache"}
ANSWER = {"memBin": 2, "memVal": 8.89, "probabilities": [0.1, 0.2, 0.3, 0.4], "unseen": True, **TIMES}
RECORD = prediction_record("J8C601020", FEATURES_OF_JOB, ANSWER, 1_700_000_000.5)
BUCKET = "calcloud-processing"


def test_a_record_has_the_columns_of_the_job_record():
    assert RECORD == {
        "ipst": "j8c601020",
        "timestamp": 1_700_000_000.5,
        **{"n_files": 17, "total_mb": 10, "drizcorr": 1, "pctecorr": 0, "crsplit": 2},
        **{"subarray": 0, "detector": 0, "dtype": 1, "instr": 0},
        **{"bin_pred": 2, "mem_pred": 8.89, "wall_pred": 149, "kill_time": 465},
        **{"prob_2g": 0.1, "prob_8g": 0.2, "prob_16g": 0.3, "prob_64g": 0.4},
        **{"unseen": True, "version": "7", "source": "cache"},
    }


def test_every_record_has_all_columns():
    mosaic = prediction_record("acs_8ph_01", None, {"memBin": 1, "source": "policy"}, 5)
    assert list(mosaic) == list(RECORD)
    assert {mosaic[name] for name in (*FEATURES, "prob_2g", "mem_pred", "version", "unseen")} == {None}
    assert (mosaic["ipst"], mosaic["bin_pred"], mosaic["source"]) == ("acs_8ph_01", 1, "policy")


@pytest.fixture(autouse=True)
def _no_client_of_another_test():
    calmlflow.storage.s3._kept_client.cache_clear()
    yield
    calmlflow.storage.s3._kept_client.cache_clear()


@pytest.mark.parametrize(
    ("prefix", "folder", "ipst"),
    [("/kept/here", "kept/here/", "jaaa00010"), ("/kept/", "kept/", "jaaa00020"), ("", "", "jaaa00030")],
)
def test_each_prediction_becomes_an_object_and_names_are_in_the_order_of_time(s3, prefix, folder, ipst):
    record = {**RECORD, "ipst": ipst}
    keep = open_emitter(f"s3://{BUCKET}{prefix}")
    keep({**record, "mem_pred": float("nan")})
    keep({**record, "bin_pred": 3})
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}{ipst}/")["Contents"]
    bodies = [json.loads(s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()) for each in found]
    assert bodies == [{**record, "mem_pred": None}, {**record, "bin_pred": 3}]
    assert all(each["Key"].endswith(".json") for each in found)


def test_a_store_that_refuses_is_told(tracking, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with pytest.raises(CalmlflowError, match=rf"s3://{BUCKET}/a/j8c601020/.* cannot be written \(") as caught:
        open_emitter(f"s3://{BUCKET}/a")(RECORD)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["", "postgresql://me:hidden@host/db", "s3://B/a", "s3://bucket/../b", "s3://bucket/a\nb"]
)
def test_an_address_that_is_no_prefix_in_s3_is_refused(uri):
    with pytest.raises(InputError, match="expected") as caught:
        open_emitter(uri)
    assert "hidden" not in str(caught.value)
