"""Objects of a real S3 store: addresses, whole transfers that are checked, and errors in one sentence."""

import hashlib
import os
import uuid
from pathlib import Path

import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.s3 import (
    NoSuchBucketError,
    NoSuchObjectError,
    S3Object,
    check_bucket,
    download,
    new_client,
    parse_s3,
    read_object,
    upload,
)

LARGE_BYTES = (8 << 20) + 1
"""boto3 sends it in parts."""


class InterruptedTransferError(Exception):
    """A failure that comes from outside, in the middle."""


@pytest.fixture
def target(s3) -> S3Object:
    bucket = f"s3-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    return S3Object(bucket, "some/é+&#? name")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def interrupt(size: int) -> None:
    raise InterruptedTransferError


# -- Addresses ------------------------------------------------------------------------------------------------------


def test_addresses_of_objects():
    assert parse_s3("s3://bucket/a/b") == ("bucket", "a/b")
    assert parse_s3("s3://my.bucket-1") == ("my.bucket-1", "")
    assert str(S3Object("bucket", "a/b")) == "s3://bucket/a/b"


@pytest.mark.parametrize("uri", ["", "bucket", "s3:/bucket/x", "http://bucket/x", "s3:///x", "s3://b/x", "s3://a b/x"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(InputError, match=r"expected (s3://bucket/key|3 to 63 lower-case letters)"):
        parse_s3(uri)
    with pytest.raises(InputError) as caught:
        parse_s3("s3://KEYID:se+cr/et@bucket/prefix")
    assert not any(word in str(caught.value) for word in ("KEYID", "se+cr", "et@"))


def test_names_of_buckets_are_those_that_s3_allows():
    for bucket in ("abc", "a.b", "calcloud-processing-ops", "0ab-c9", "1.2.3.4.5", "x" * 63):
        check_bucket(bucket)
    for bad in (None, "ab", "x" * 64, "Calcloud", "a_b", "-ab", "ab.", "a..b", "192.168.5.4", "ab\n"):
        with pytest.raises(InputError, match="expected 3 to 63"):
            check_bucket(bad)


# -- Transfers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES])
def test_files_of_every_size_come_back(s3, target, tmp_path, size):
    content = os.urandom(size)
    sent, fetched = [], []
    sha256 = upload(write(tmp_path / "f", content), target, advance=sent.append)
    assert sha256 == hashlib.sha256(content).hexdigest()
    assert s3.head_object(Bucket=target.bucket, Key=target.key)["Metadata"] == {"sha256": sha256}
    download(target, tmp_path / "new" / "f", "a file", advance=fetched.append)
    assert (tmp_path / "new" / "f").read_bytes() == content
    assert (sum(sent), sum(fetched)) == (size, size)


def test_an_interrupted_transfer_leaves_what_was_there(s3, target, tmp_path):
    upload(write(tmp_path / "f", b"old"), target)
    with pytest.raises(InterruptedTransferError):
        upload(write(tmp_path / "f", os.urandom(LARGE_BYTES)), target, advance=interrupt)
    assert read_object(s3, target, 10, "a file") == b"old"
    assert not s3.list_multipart_uploads(Bucket=target.bucket).get("Uploads")
    with pytest.raises(InterruptedTransferError):
        download(target, write(tmp_path / "g", b"mine"), "a file", advance=interrupt)
    assert (tmp_path / "g").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"twO", b"tw"])
def test_content_of_another_sha256_is_refused(s3, target, tmp_path, content):
    sha256 = upload(write(tmp_path / "f", b"two"), target)
    s3.put_object(Bucket=target.bucket, Key=target.key, Body=content, Metadata={"sha256": sha256})
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(CalmlflowError, match=f"came with SHA-256 {found}; expected {sha256}"):
        download(target, tmp_path / "g", "a file")
    assert not (tmp_path / "g").exists()


def test_an_object_of_somebody_else_has_no_sha256(s3, target, tmp_path):
    s3.put_object(Bucket=target.bucket, Key=target.key, Body=b"content")
    download(target, tmp_path / "f", "a file")
    assert (tmp_path / "f").read_bytes() == b"content"
    with pytest.raises(InputError, match="has 7 bytes; expected a file, at most 6"):
        read_object(s3, target, 6, "a file")


# -- Errors ---------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_named(s3, target, tmp_path):
    for act in (lambda one: download(one, tmp_path / "f", "a file"), lambda one: read_object(s3, one, 10, "a file")):
        with pytest.raises(NoSuchObjectError, match=f"s3://{target.bucket}/x cannot be read .*; expected a file"):
            act(target._replace(key="x"))
    with pytest.raises(NoSuchBucketError, match=r"s3://no-such-bucket/f cannot be read \(NoSuchBucket\)"):
        read_object(s3, S3Object("no-such-bucket", "f"), 10, "a file")
    with pytest.raises(CalmlflowError, match="nothing cannot be read"):
        upload(tmp_path / "nothing", target)
    upload(write(tmp_path / "f", b"1"), target)
    with pytest.raises(CalmlflowError, match=r"f/f cannot be written \(File exists\)"):
        download(target, tmp_path / "f" / "f", "a file")


def test_refused_credentials_are_told_without_the_secret(target, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WRONGKEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for act in (lambda: upload(write(tmp_path / "f", b"1"), target), lambda: download(target, tmp_path / "f", "f")):
        with pytest.raises(CalmlflowError, match=r"cannot be (written|read) \((403|\w*Access\w*)\)") as caught:
            act()
        assert "WRONGKEYID" not in str(caught.value)
        assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [("http://user:pass-word@127.0.0.1:{}", "EndpointConnectionError"), ("user:pass-word@nonsense", "ValueError")],
)
def test_a_store_that_does_not_answer_is_told(target, tmp_path, monkeypatch, ports, endpoint, reason):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint.format(ports[0]))
    with pytest.raises(CalmlflowError, match=reason) as caught:
        download(target, tmp_path / "f", "a file")
    assert "pass-word" not in str(caught.value)


def test_the_address_for_mlflow_counts_if_boto3_has_none(s3, tracking, target, monkeypatch):
    s3.put_object(Bucket=target.bucket, Key=target.key, Body=b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert read_object(new_client(), target, 9, "a letter") == b"x"
    monkeypatch.setenv("AWS_ENDPOINT_URL", tracking.s3_endpoint)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://nowhere.invalid")
    assert read_object(new_client(), target, 9, "a letter") == b"x"
