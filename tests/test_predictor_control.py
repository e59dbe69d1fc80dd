from pathlib import Path

import pytest

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.predictor.control import read_control_file, read_control_object

TEXT = "n_files=17\ntotal_mb=9.6\nDETECTOR=SBC\n"
KEYS = {"n_files": "17", "total_mb": "9.6", "DETECTOR": "SBC"}
BUCKET = "calcloud-processing"


def test_a_file_is_read(tmp_path):
    (tmp_path / "control.txt").write_text(TEXT)
    assert read_control_file(tmp_path / "control.txt") == KEYS


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=f"control file {path} cannot be read"):
            read_control_file(path)


def test_a_file_without_end_is_not_read_to_it(tmp_path):
    with pytest.raises(InputError, match="expected at most 65536"):
        read_control_file(Path("/dev/zero"))


def test_an_object_is_read_by_its_key_or_that_of_its_dataset(s3):
    s3.put_object(Bucket=BUCKET, Key="control/jabc03020/jabc03020_MemModelFeatures.txt", Body=TEXT.encode())
    s3.put_object(Bucket=BUCKET, Key="elsewhere", Body=b"n_files=1\ntotal_mb=2\n")
    assert read_control_object("jabc03020", BUCKET) == KEYS
    assert read_control_object("JABC03020", BUCKET) == KEYS
    assert read_control_object("jabc03020", BUCKET, "elsewhere") == {"n_files": "1", "total_mb": "2"}


def test_an_object_that_is_not_there_is_the_fault_of_who_asked(s3):
    with pytest.raises(InputError, match=rf"s3://{BUCKET}/none cannot be read \(NoSuchKey\)"):
        read_control_object("jabc03020", BUCKET, "none")
    with pytest.raises(InputError, match=r"s3://no-such-bucket/none cannot be read"):
        read_control_object("jabc03020", "no-such-bucket", "none")
    with pytest.raises(CalmlflowError, match=r"s3://not a bucket/none cannot be read"):
        read_control_object("jabc03020", "not a bucket", "none")


def test_an_object_that_is_no_control_file_is_told(s3):
    s3.put_object(Bucket=BUCKET, Key="picture", Body=b"\x89PNG\x0d\x0a\xff")
    s3.put_object(Bucket=BUCKET, Key="large", Body=b"#" * 70_000)
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_control_object("jabc03020", BUCKET, "picture")
    with pytest.raises(InputError, match="expected at most 65536"):
        read_control_object("jabc03020", BUCKET, "large")


def test_a_store_out_of_reach_is_nobodys_input(tracking, monkeypatch, ports):
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(
        CalmlflowError, match=rf"s3://{BUCKET}/any cannot be read \(EndpointConnectionError\)"
    ) as caught:
        read_control_object("jabc03020", BUCKET, "any")
    assert not isinstance(caught.value, InputError)


def test_a_refused_login_is_nobodys_input(tracking, monkeypatch):
    import boto3

    # Its default session keeps the credentials that it first found.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(CalmlflowError, match="cannot be read") as caught:
        read_control_object("jabc03020", BUCKET, "any")
    assert not isinstance(caught.value, InputError)
    assert "wrong" not in str(caught.value)
