"""Job records in S3, on a real server."""

import tarfile
import threading
import uuid
import zipfile

import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import HISTORY, JOBS
from calmlflow.jobs.stores.open import open_store, read_jobs
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.storage.s3 import NoSuchObjectError
from tests.samples.store_samples import contents, frame, record


@pytest.fixture
def prefix(s3) -> str:
    if "stores" not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket="stores")
    return uuid.uuid4().hex


@pytest.fixture
def put(s3, prefix):
    """Upload a file; gives its URI."""

    def upload(path, key: str) -> str:
        s3.upload_file(str(path), "stores", f"{prefix}/{key}")
        return f"s3://stores/{prefix}/{key}"

    return upload


def test_every_kind_of_object_is_read(tmp_path, put):
    sample = draw_sample(30)
    csv = tmp_path / "jobs.csv"
    sample.to_csv(csv, index=False)
    sample.to_parquet(tmp_path / "jobs.parquet")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(csv, "2021-11-04-1636048291/data/latest.csv")
    for name in ("a.tgz", "a.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            archive.add(csv, "2021-11-04-1636048291/data/latest.csv")
    database = open_sql(f"sqlite:///{tmp_path}/jobs.db", create=True)
    database.put(JOBS, sample)
    database.close()
    for name in ("jobs.csv", "jobs.parquet", "a.zip", "a.tgz", "a.tar.gz", "jobs.db"):
        found = read_jobs(put(tmp_path / name, name)).valid
        pd.testing.assert_frame_equal(found, sample, check_exact=True, obj=name)


def test_a_prefix_of_parquet_files(tmp_path, put, prefix):
    sample = draw_sample(30)
    sample[:10].to_parquet(tmp_path / "a.parquet")
    sample[10:].to_parquet(tmp_path / "b.parquet")
    put(tmp_path / "a.parquet", "many/a.parquet")
    put(tmp_path / "b.parquet", "many/below/b.parquet")
    pd.testing.assert_frame_equal(read_jobs(f"s3://stores/{prefix}/many/").valid, sample, check_exact=True)
    with pytest.raises(InputError, match="holds no Parquet file"):
        open_store(f"s3://stores/{prefix}/none/")


def test_what_is_not_there_or_of_no_known_kind(prefix):
    for key in ("jobs.csv", "a.zip", "jobs.db"):
        with pytest.raises(NoSuchObjectError, match=f"{prefix}/{key} .*; expected"):
            open_store(f"s3://stores/{prefix}/{key}")
    with pytest.raises(InputError, match=r"no known kind; expected a key in \.csv, \.parquet"):
        open_store(f"s3://stores/{prefix}/jobs.txt")
    with pytest.raises(InputError, match="no bucket's name; expected"):
        open_store(f"s3://No_Bucket/{prefix}.csv", create=True)


def test_damaged_objects_are_told_by_their_address(tmp_path, put):
    bad = tmp_path / "bad"
    bad.write_bytes(b"PK\x03\x04 and \0 more")
    for name, reason in {
        "bad.zip": "is damaged",
        "bad.tgz": "is damaged",
        "bad.db": "no SQLite",
        "bad.csv": "is not text",
        "bad.parquet": "is no Parquet file",
    }.items():
        uri = put(bad, name)
        with pytest.raises(InputError, match=f"{uri} .*{reason}.*; expected") as caught:
            read_jobs(uri)
        assert "/tmp" not in str(caught.value)


def test_nothing_of_two_writers_at_the_same_time_is_lost(prefix):
    """Each adds its own records, all at once: S3 has no lock, so who comes second does it again."""
    uri = f"s3://stores/{prefix}/jobs.csv"
    barrier = threading.Barrier(4)
    failed = []

    def write(letter: str) -> None:
        store = open_store(uri, create=True)
        try:
            for number in range(4):
                barrier.wait(30)
                store.put(JOBS, frame(JOBS, [record(f"j8c6{letter}{number:04d}")]))
        except Exception as error:
            failed.append(error)
            barrier.abort()
        finally:
            store.close()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = [f"j8c6{letter}{number:04d}" for letter in "abcd" for number in range(4)]
    assert contents(open_store(uri), JOBS)["ipst"].tolist() == expected


@pytest.mark.parametrize("new", [True, False])
def test_a_change_that_stands_on_other_records_by_now_is_not_written(prefix, new):
    uri = f"s3://stores/{prefix}/jobs.parquet"
    one, other = open_store(uri, create=True), open_store(uri, create=True)
    if not new:
        one.put(JOBS, frame(JOBS, [record()]))
    with (
        pytest.raises(CalmlflowError, match="got other records of the same datasets meanwhile; expected"),
        one.change(),
    ):
        one.get(JOBS, ["j8c601020"])
        other.put(JOBS, frame(JOBS, [record(memory=2.5)]))
        one.put(JOBS, frame(JOBS, [record(memory=1.5)]))
    assert one.get(JOBS, ["j8c601020"])["memory"].tolist() == [2.5]
    with one.change():
        one.get(JOBS, ["j8c601020"])
        other.put(JOBS, frame(JOBS, [record("j91jc4010")]))
        one.put(JOBS, frame(JOBS, [record(memory=1.5)]))
        one.put(HISTORY, frame(HISTORY, [record(digest="a")]))
    assert sorted(other.get(JOBS, ["j8c601020", "j91jc4010"])["memory"]) == [1.17, 1.5]
    assert other.count(HISTORY) == 1


def test_temporary_files_go(prefix, tmp_path, put, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    draw_sample(30).to_csv(tmp_path / "latest.csv", index=False)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "latest.csv", "latest.csv")
    for uri in (put(tmp_path / "latest.csv", "jobs.csv"), put(tmp_path / "a.zip", "a.zip")):
        assert len(read_jobs(uri).valid) == 30
        assert not list((tmp_path / "temporary").iterdir())
