"""Files to a real S3 store and back: checked, and taken up where they were interrupted, however that came."""

import fcntl
import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage import shipping_parts
from calmlflow.storage.archive import pack, unpack
from calmlflow.storage.shipping import Shipped, fetch, ship
from calmlflow.storage.shipping_parts import PART_BYTES


class InterruptedTransferError(Exception):
    """A failure that comes from outside, in the middle."""


@pytest.fixture
def bucket(s3) -> str:
    name = f"ship-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def operations(caplog):
    """Requests that boto3 made since the last call, as (operation, headers), retries aside."""
    caplog.set_level(logging.DEBUG, logger="botocore.endpoint")

    def told() -> list[tuple[str, str]]:
        pattern = r"Making request for OperationModel\(name=(\w+)\) with params: (.*)"
        found = [re.match(pattern, record.getMessage(), re.DOTALL) for record in caplog.records]
        caplog.clear()
        return [(match[1], match[2]) for match in found if match]

    return told


def counts(told: list[tuple[str, str]], operation: str) -> int:
    return [name for name, _ in told].count(operation)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def body(s3, bucket: str, key: str) -> bytes:
    return s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def keys(s3, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def uploads(s3, bucket: str) -> list[str]:
    return [item["UploadId"] for item in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


def stop_at(done_bytes: int):
    """A callback that fails once so many bytes are done."""

    def on_progress(done: int, total: int) -> None:
        if done >= done_bytes:
            raise InterruptedTransferError

    return on_progress


# -- Upload ---------------------------------------------------------------------------------------------------------


def test_shipped_files_check_with_sha256sum(s3, bucket, tmp_path):
    contents = {"a.txt": b"one", "empty": b"", "mit Leerzeichen é+&#?.bin": os.urandom(1000)}
    files = [write(tmp_path / name, content) for name, content in contents.items()]
    seen = []
    shipped = ship(files, f"s3://{bucket}/some/prefix/", lambda done, total: seen.append((done, total)))
    assert shipped == tuple(
        Shipped(f"s3://{bucket}/some/prefix/{name}", len(content), sha256(content), len(content))
        for name, content in contents.items()
    )
    assert seen == [(3, 1003), (3, 1003), (1003, 1003)]
    copy = tmp_path / "copy"
    copy.mkdir()
    for key in keys(s3, bucket):
        write(copy / key.removeprefix("some/prefix/"), body(s3, bucket, key))
    assert {path.name for path in copy.iterdir()} == {*contents, "SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=copy, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 3), done.stderr
    for name, content in contents.items():
        assert s3.head_object(Bucket=bucket, Key=f"some/prefix/{name}")["Metadata"] == {"sha256": sha256(content)}


def test_shipping_again_sends_nothing(s3, bucket, tmp_path, operations):
    files = [write(tmp_path / "a", b"one"), write(tmp_path / "big", os.urandom(PART_BYTES + 1))]
    assert [item.sent_bytes for item in ship(files, f"s3://{bucket}")] == [3, PART_BYTES + 1]
    operations()
    seen = []
    again = ship(files, f"s3://{bucket}", lambda done, total: seen.append((done, total)))
    assert [item.sent_bytes for item in again] == [0, 0]
    assert seen == [(3, PART_BYTES + 4), (PART_BYTES + 4, PART_BYTES + 4)]
    assert {name for name, _ in operations()} == {"HeadObject", "GetObject", "DeleteObject"}


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES])
def test_files_of_every_size_come_back(s3, bucket, tmp_path, size):
    content = os.urandom(size)
    seen = []
    ship([write(tmp_path / "f", content)], f"s3://{bucket}/p", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (size, size)
    assert body(s3, bucket, "p/f") == content
    assert s3.head_object(Bucket=bucket, Key="p/f")["Metadata"] == {"sha256": sha256(content)}
    assert sorted(keys(s3, bucket)) == ["p/SHA256SUMS", "p/f"]
    assert fetch(f"s3://{bucket}/p/f", tmp_path / "back").read_bytes() == content


def test_a_second_shipping_keeps_the_sums_of_the_first(s3, bucket, tmp_path):
    ship([write(tmp_path / "a", b"1"), write(tmp_path / "b", b"1")], f"s3://{bucket}/p")
    ship([write(tmp_path / "b", b"2"), write(tmp_path / "c", b"3")], f"s3://{bucket}/p")
    expected = "".join(f"{sha256(content)}  {name}\n" for name, content in (("a", b"1"), ("b", b"2"), ("c", b"3")))
    assert body(s3, bucket, "p/SHA256SUMS").decode() == expected
    assert body(s3, bucket, "p/b") == b"2"


@pytest.mark.parametrize("spoil", [{"Body": b"twO"}, {"Body": b"tw"}, {"Body": b"two", "Metadata": {}}])
def test_an_object_that_is_not_the_file_is_replaced(s3, bucket, tmp_path, spoil):
    path = write(tmp_path / "f", b"two")
    ship([path], f"s3://{bucket}")
    # S3 keeps the object's own SHA-256 where it is asked to.
    usual = {"Metadata": {"sha256": sha256(b"two")}, "ChecksumAlgorithm": "SHA256"}
    s3.put_object(**{"Bucket": bucket, "Key": "f", **usual, **spoil})
    assert ship([path], f"s3://{bucket}")[0].sent_bytes == 3
    assert body(s3, bucket, "f") == b"two"


def test_an_upload_killed_midway_sends_only_what_is_missing(s3, bucket, tmp_path, operations):
    content = os.urandom(3 * PART_BYTES + 1000)
    path = write(tmp_path / "f.tar.gz", content)
    script = (
        "import os, signal, sys; from pathlib import Path; from calmlflow.storage.shipping import ship\n"
        "ship([Path(sys.argv[1])], sys.argv[2],"
        " lambda done, total: done < 2 * int(sys.argv[3]) or os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", script, str(path), f"s3://{bucket}/p", str(PART_BYTES)]
    assert subprocess.run(command).returncode == -9
    (upload,) = uploads(s3, bucket)
    parts = s3.list_parts(Bucket=bucket, Key="p/f.tar.gz", UploadId=upload)["Parts"]
    assert [part["Size"] for part in parts] == [PART_BYTES] * 2
    assert keys(s3, bucket) == ["p/f.tar.gz.upload"]

    (shipped,) = ship([path], f"s3://{bucket}/p")
    assert counts(operations(), "UploadPart") == 2
    assert shipped.sent_bytes == PART_BYTES + 1000
    assert body(s3, bucket, "p/f.tar.gz") == content
    assert sorted(keys(s3, bucket)) == ["p/SHA256SUMS", "p/f.tar.gz"]
    assert uploads(s3, bucket) == []


def test_an_upload_that_only_lacks_its_end_is_completed(s3, bucket, tmp_path, operations):
    content = os.urandom(PART_BYTES + 1)
    path = write(tmp_path / "f", content)
    with pytest.raises(InterruptedTransferError):
        ship([path], f"s3://{bucket}", stop_at(len(content)))
    assert keys(s3, bucket) == ["f.upload"]
    operations()
    assert ship([path], f"s3://{bucket}")[0].sent_bytes == 0
    assert counts(operations(), "UploadPart") == 0
    assert body(s3, bucket, "f") == content


def test_an_interrupted_upload_of_other_content_is_aborted(s3, bucket, tmp_path, operations):
    # Alike up to the last byte, so that every part sent before looks right.
    start = os.urandom(2 * PART_BYTES)
    path = write(tmp_path / "f", start + b"1")
    with pytest.raises(InterruptedTransferError):
        ship([path], f"s3://{bucket}", stop_at(2 * PART_BYTES))
    (stale,) = uploads(s3, bucket)
    write(path, start + b"2")
    operations()
    ship([path], f"s3://{bucket}")
    told = operations()
    assert (counts(told, "AbortMultipartUpload"), counts(told, "UploadPart")) == (1, 3)
    assert body(s3, bucket, "f") == start + b"2"
    assert s3.head_object(Bucket=bucket, Key="f")["Metadata"] == {"sha256": sha256(start + b"2")}
    assert uploads(s3, bucket) == []
    with pytest.raises(s3.exceptions.NoSuchUpload):
        s3.list_parts(Bucket=bucket, Key="f", UploadId=stale)


def test_uploads_of_other_keys_are_left_alone(s3, bucket, tmp_path):
    other = s3.create_multipart_upload(Bucket=bucket, Key="f2")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="f2", UploadId=other, PartNumber=1, Body=b"1")
    ship([write(tmp_path / "f", bytes(PART_BYTES + 1))], f"s3://{bucket}")
    assert uploads(s3, bucket) == [other]


def test_parts_of_another_size_are_not_taken_up(s3, bucket, tmp_path, monkeypatch):
    # Cut at 16 MiB, the second part of these is as long as the second of 8 MiB each, and another.
    content = os.urandom(3 * PART_BYTES)
    path = write(tmp_path / "f", content)
    with monkeypatch.context() as patch, pytest.raises(InterruptedTransferError):
        patch.setattr(shipping_parts, "PART_BYTES", 2 * PART_BYTES)
        ship([path], f"s3://{bucket}", stop_at(len(content)))
    ship([path], f"s3://{bucket}")
    assert body(s3, bucket, "f") == content


def test_a_file_that_changes_meanwhile_is_told(s3, bucket, tmp_path):
    path = write(tmp_path / "f", bytes(2 * PART_BYTES))

    def change(done: int, total: int) -> None:
        write(path, bytes(PART_BYTES) + b"1" * PART_BYTES)

    with pytest.raises(CalmlflowError, match="f changed while it was shipped"):
        ship([path], f"s3://{bucket}", change)
    assert "f" not in keys(s3, bucket)


@pytest.mark.parametrize("other", [b"other", b"12345678", b"1234567"])
def test_an_object_that_is_not_what_was_sent_is_told(s3, bucket, tmp_path, other):
    # Somebody writes to the same key between the upload and its verification.
    path = write(tmp_path / "f", b"1234567")
    metadata = {"sha256": sha256(b"other" if other == b"1234567" else b"1234567")}

    def replace(done: int, total: int) -> None:
        s3.put_object(Bucket=bucket, Key="f", Body=other, Metadata=metadata)

    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/f holds .*expected 7 bytes with SHA-256"):
        ship([path], f"s3://{bucket}", replace)
    assert keys(s3, bucket) == ["f"]


# -- Download -------------------------------------------------------------------------------------------------------


def test_a_training_goes_to_s3_and_comes_back(bucket, tmp_path):
    tree = tmp_path / "2021-11-04-1636048291"
    (tree / "models" / "mem_clf").mkdir(parents=True)
    content = write(tree / "models" / "mem_clf" / "mem_clf.onnx", os.urandom(1000)).read_bytes()
    ship(pack(tree, tmp_path / "out"), f"s3://{bucket}/trainings/{tree.name}")
    address = f"s3://{bucket}/trainings/{tree.name}"
    whole = unpack(fetch(f"{address}/{tree.name}.tar.gz", tmp_path / "in"), tmp_path / "back")
    models = unpack(fetch(f"{address}/models.zip", tmp_path / "in"), tmp_path / "back")
    assert (whole / "models" / "mem_clf" / "mem_clf.onnx").read_bytes() == content
    assert (models / "mem_clf" / "mem_clf.onnx").read_bytes() == content


def test_fetching_again_keeps_the_file(bucket, tmp_path, operations):
    ship([write(tmp_path / "f", b"one")], f"s3://{bucket}")
    path = fetch(f"s3://{bucket}/f", tmp_path / "in")
    before = path.stat().st_ino
    operations()
    assert fetch(f"s3://{bucket}/f", tmp_path / "in") == path
    assert path.stat().st_ino == before
    assert [name for name, _ in operations()] == ["HeadObject"]


def test_another_file_of_that_name_is_kept(bucket, tmp_path):
    ship([write(tmp_path / "f", b"one")], f"s3://{bucket}")
    write(tmp_path / "f", b"two")
    with pytest.raises(InputError, match=f"f is there with SHA-256 {sha256(b'two')}; expected {sha256(b'one')}"):
        fetch(f"s3://{bucket}/f", tmp_path)
    assert (tmp_path / "f").read_bytes() == b"two"


def interrupted_download(bucket: str, tmp_path: Path, content: bytes) -> Path:
    """Ship content as f, break its download off in the middle; gives the partial file."""
    ship([write(tmp_path / "f", content)], f"s3://{bucket}")
    with pytest.raises(InterruptedTransferError):
        fetch(f"s3://{bucket}/f", tmp_path / "in", stop_at(len(content) // 2))
    (part,) = (tmp_path / "in").iterdir()
    assert part.name.startswith(".f.")
    assert part.name.endswith(".part")
    assert len(content) // 2 <= part.stat().st_size < len(content)
    return part


def test_an_interrupted_download_goes_on(bucket, tmp_path, operations):
    content = os.urandom(4 << 20)
    offset = interrupted_download(bucket, tmp_path, content).stat().st_size
    operations()
    seen = []
    path = fetch(f"s3://{bucket}/f", tmp_path / "in", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == content
    assert list((tmp_path / "in").iterdir()) == [path]
    (request,) = (text for name, text in operations() if name == "GetObject")
    assert f"'bytes={offset}-'" in request
    assert offset < seen[0][0] < seen[-1][0]
    assert seen[-1] == (len(content), len(content))


def test_what_was_downloaded_of_another_object_is_not_continued(bucket, tmp_path):
    interrupted_download(bucket, tmp_path, os.urandom(4 << 20))
    content = os.urandom(4 << 20)
    ship([write(tmp_path / "f", content)], f"s3://{bucket}")
    assert fetch(f"s3://{bucket}/f", tmp_path / "in").read_bytes() == content


def damaged(part: bytes) -> bytes:
    return bytes([part[0] ^ 1]) + part[1:]


def test_a_partial_file_that_was_damaged_is_found_out_once(bucket, tmp_path):
    content = os.urandom(4 << 20)
    part = interrupted_download(bucket, tmp_path, content)
    write(part, damaged(part.read_bytes()))
    found = sha256(damaged(content))
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/f came with SHA-256 {found}; expected {sha256(content)}"):
        fetch(f"s3://{bucket}/f", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
    assert fetch(f"s3://{bucket}/f", tmp_path / "in").read_bytes() == content


def test_a_partial_file_that_is_too_long_is_begun_again(bucket, tmp_path):
    content = os.urandom(4 << 20)
    part = interrupted_download(bucket, tmp_path, content)
    write(part, content + b"1")
    assert fetch(f"s3://{bucket}/f", tmp_path / "in").read_bytes() == content


def test_a_partial_file_that_is_whole_needs_no_request(bucket, tmp_path, operations):
    content = os.urandom(4 << 20)
    write(interrupted_download(bucket, tmp_path, content), content)
    operations()
    assert fetch(f"s3://{bucket}/f", tmp_path / "in").read_bytes() == content
    assert counts(operations(), "GetObject") == 0


def test_two_downloads_of_one_file_do_not_mix(bucket, tmp_path):
    content = os.urandom(4 << 20)
    part = interrupted_download(bucket, tmp_path, content)
    before = part.read_bytes()
    with part.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CalmlflowError, match="is being downloaded by another process"):
            fetch(f"s3://{bucket}/f", tmp_path / "in")
    assert part.read_bytes() == before


@pytest.mark.parametrize("size", [100, 2 << 20])
def test_a_corrupted_object_is_told(s3, bucket, tmp_path, size):
    content = os.urandom(size)
    ship([write(tmp_path / "f", content)], f"s3://{bucket}")
    s3.put_object(Bucket=bucket, Key="f", Body=damaged(content), Metadata={"sha256": sha256(content)})
    found = sha256(damaged(content))
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/f came with SHA-256 {found}; expected {sha256(content)}"):
        fetch(f"s3://{bucket}/f", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_an_object_replaced_during_the_download_is_not_mixed(tracking, s3, bucket, tmp_path, monkeypatch):
    content = os.urandom(4 << 20)
    ship([write(tmp_path / "f", content)], f"s3://{bucket}")
    replaced: list[bool] = []

    def replace_once(done: int, total: int) -> None:
        if not replaced:
            replaced.append(True)
            s3.put_object(Bucket=bucket, Key="f", Body=damaged(content), Metadata={"sha256": sha256(content)})

    # The connection breaks after the first bytes, and by the time of the second one the object is another.
    with breaking_proxy(tracking.s3_endpoint, [1 << 20]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        with pytest.raises(CalmlflowError, match=rf"s3://{bucket}/f cannot be downloaded \(PreconditionFailed\)"):
            fetch(f"s3://{bucket}/f", tmp_path / "in", replace_once)
    (part,) = (tmp_path / "in").iterdir()
    assert content.startswith(part.read_bytes())


def test_the_sums_serve_where_an_object_has_no_metadata(s3, bucket, tmp_path):
    s3.put_object(Bucket=bucket, Key="p/f", Body=b"one")
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/p/f has no SHA-256"):
        fetch(f"s3://{bucket}/p/f", tmp_path)
    s3.put_object(Bucket=bucket, Key="p/SHA256SUMS", Body=f"{sha256(b'x')}  e\n{sha256(b'one')} *f\nnonsense".encode())
    assert fetch(f"s3://{bucket}/p/f", tmp_path).read_bytes() == b"one"
    s3.put_object(Bucket=bucket, Key="p/f", Body=b"two")
    with pytest.raises(CalmlflowError, match=f"came with SHA-256 {sha256(b'two')}"):
        fetch(f"s3://{bucket}/p/f", tmp_path / "in")


def test_sums_of_absurd_length_are_refused(s3, bucket, tmp_path):
    s3.put_object(Bucket=bucket, Key="SHA256SUMS", Body=bytes(1 << 21))
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/SHA256SUMS has {1 << 21} bytes"):
        ship([write(tmp_path / "f", b"1")], f"s3://{bucket}")


@contextmanager
def breaking_proxy(address: str, limits: list[int]) -> Iterator[str]:
    """A TCP proxy that ends its n-th connection after ``limits[n]`` bytes of answer, and no later one."""
    host, port = address.removeprefix("http://").split(":")

    def pump(source: socket.socket, sink: socket.socket, limit: float) -> None:
        with suppress(OSError):
            while limit > 0 and (data := source.recv(1 << 14)):
                sink.sendall(data)
                limit -= len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                store = socket.create_connection((host, int(port)))
                limit = limits.pop(0) if limits else float("inf")
                threading.Thread(target=pump, args=(client, store, float("inf")), daemon=True).start()
                threading.Thread(target=pump, args=(store, client, limit), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_breaks_is_made_again(tracking, bucket, tmp_path, monkeypatch, operations):
    content = os.urandom(8 << 20)
    ship([write(tmp_path / "f", content)], f"s3://{bucket}")
    operations()
    with breaking_proxy(tracking.s3_endpoint, [3 << 20, 2 << 20]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        assert fetch(f"s3://{bucket}/f", tmp_path / "in").read_bytes() == content
    assert counts(operations(), "GetObject") == 3


# -- What a user can get wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["", "bucket", "s3:/bucket/x", "http://bucket/x", "s3://", "s3:///x", "s3://b/x", "s3://a b/x"]
)
def test_what_is_no_s3_uri_is_refused(tmp_path, uri):
    with pytest.raises(InputError, match="is no S3 URI; expected s3://bucket/prefix"):
        ship([], uri)
    with pytest.raises(InputError, match="is no S3 URI; expected s3://bucket/prefix"):
        fetch(uri, tmp_path)


@settings(max_examples=30)
@given(st.text("abc/+", min_size=8, max_size=30))
def test_a_secret_in_a_uri_is_not_told(secret):
    with pytest.raises(InputError) as caught:
        ship([], f"s3://KEYID:{secret}@bucket/prefix")
    assert secret not in str(caught.value)
    assert "KEYID" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3://bucket/a/..", "s3://bucket/\0"])
def test_a_uri_that_names_no_object_is_refused(tmp_path, uri):
    with pytest.raises(InputError, match="names no object"):
        fetch(uri, tmp_path)


@pytest.mark.parametrize("names", [["SHA256SUMS"], ["a\nb"], ["a\\b"], ["x", "y/x"], ["not-\udcff-text"]])
def test_names_that_do_not_fit_into_the_sums_are_refused(tmp_path, names):
    with pytest.raises(InputError, match="cannot be shipped"):
        ship([tmp_path / name for name in names], "s3://bucket")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing cannot be read"):
        ship([tmp_path / "nothing"], "s3://bucket")
    with pytest.raises(InputError, match=f"{tmp_path.name} cannot be read"):
        ship([tmp_path], "s3://bucket")


def test_what_is_not_there_is_named(s3, bucket, tmp_path):
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/nothing does not exist"):
        fetch(f"s3://{bucket}/nothing", tmp_path)
    with pytest.raises(CalmlflowError, match=r"s3://no-such-bucket/f cannot be uploaded \(NoSuchBucket\)"):
        ship([write(tmp_path / "f", bytes(PART_BYTES + 1))], "s3://no-such-bucket")


def test_refused_credentials_are_told_without_the_secret(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WRONGKEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for act in (
        lambda: ship([write(tmp_path / "f", b"1")], f"s3://{bucket}"),
        lambda: fetch(f"s3://{bucket}/f", tmp_path),
    ):
        with pytest.raises(CalmlflowError, match=rf"s3://{bucket}/f cannot be looked up \(403\)") as caught:
            act()
        assert "WRONGKEYID" not in str(caught.value)
        assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://user:pass-word@127.0.0.1:{}", "user:pass-word@nonsense"])
def test_a_store_that_does_not_answer_is_told(bucket, tmp_path, monkeypatch, ports, endpoint):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint.format(ports[0]))
    with pytest.raises(CalmlflowError) as caught:
        fetch(f"s3://{bucket}/f", tmp_path)
    assert re.search(r"EndpointConnectionError|ValueError", str(caught.value))
    assert "pass-word" not in str(caught.value)


def test_an_output_that_is_a_file_is_named(bucket, tmp_path):
    ship([write(tmp_path / "f", b"1")], f"s3://{bucket}")
    with pytest.raises(CalmlflowError, match=r"f/f cannot be written \(File exists\)"):
        fetch(f"s3://{bucket}/f", tmp_path / "f")
