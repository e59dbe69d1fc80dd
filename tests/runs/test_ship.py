"""A training goes to S3 and comes back."""

import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from calmlflow.errors import InputError
from calmlflow.runs.ship import _add_sums, fetch_training, ship_training
from calmlflow.storage.s3 import parse_s3


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "2021-11-04-1636048291"
    (tree / "models" / "mem clf").mkdir(parents=True)
    (tree / "models" / "mem clf" / "é.onnx").write_bytes(os.urandom(1000))
    (tree / "empty.txt").touch()
    return tree


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_training_goes_to_s3_and_comes_back(s3, tree, tmp_path):
    bucket = f"ship-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    lines = ship_training(str(tree), str(tmp_path / "out"), f"s3://{bucket}/some/prefix/")
    folder = f"some/prefix/{tree.name}"
    names = {f"{tree.name}.tar.gz", "models.zip", "models/mem clf/é.onnx", "empty.txt"}
    assert {line.partition(" sha256 ")[0] for line in lines} == {f"s3://{bucket}/{folder}/{name}" for name in names}

    copy = tmp_path / "copy"
    for item in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        path = copy / item["Key"].removeprefix(f"{folder}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=copy, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, len(names)), done.stderr

    address = f"s3://{bucket}/{folder}"
    back = fetch_training(f"{address}/{tree.name}.tar.gz", str(tmp_path / "back"))
    assert back == str(tmp_path / "back" / tree.name)
    assert content(tmp_path / "back" / tree.name) == content(tree)
    models = fetch_training(f"{address}/models.zip", str(tmp_path / "back"))
    assert content(tmp_path / "back" / "models") == content(tree / "models")
    # Again: what is there is kept.
    assert fetch_training(f"{address}/models.zip", str(tmp_path / "back")) == models


def test_two_who_ship_at_once_keep_the_lines_of_each_other(s3):
    bucket = f"ship-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    listing = parse_s3(f"s3://{bucket}/a/SHA256SUMS")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _add_sums(s3, listing, {f"file {n}": f"{n:064}"}), range(8)))
    text = s3.get_object(Bucket=bucket, Key="a/SHA256SUMS")["Body"].read().decode()
    assert text == "".join(f"{n:064}  file {n}\n" for n in range(8))


def test_a_training_is_packed_without_a_destination(tree, tmp_path):
    folder = tmp_path / "out" / tree.name
    assert ship_training(str(tree), str(tmp_path / "out"), "none") == [
        str(folder / f"{tree.name}.tar.gz"),
        str(folder / "models.zip"),
    ]


@pytest.mark.parametrize("name", ["SHA256SUMS", "a\nb"])
def test_a_name_that_does_not_fit_into_the_sums_is_refused(tree, tmp_path, name):
    (tree / name).touch()
    with pytest.raises(InputError, match="cannot be shipped"):
        ship_training(str(tree), str(tmp_path / "out"), "s3://bucket")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3://bucket/a/..", "s3://bucket/\0"])
def test_an_address_that_names_no_object_is_refused(tmp_path, uri):
    with pytest.raises(InputError, match="names no object"):
        fetch_training(uri, str(tmp_path))
