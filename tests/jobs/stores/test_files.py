"""Job records in files, folders, archives and S3: one contract for reading, and files that are written whole."""

import io
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores import files
from calmlflow.jobs.stores.base import HISTORY, JOBS, KILLED, TABLES, conform
from calmlflow.jobs.stores.files import FileSource, write_file
from calmlflow.jobs.stores.open import open_source, open_store, read_jobs, read_table
from calmlflow.storage.s3 import DeniedError
from tests.samples.store_samples import ANSWER, ROWS, contents, frame, record

SAMPLE = draw_sample(30)
LOCAL = ("jobs.csv", "jobs.parquet", "training", "folder", "jobs.zip", "jobs.tgz", "jobs.tar.gz")
IN_S3 = ("s3/jobs.csv", "s3/jobs.parquet", "s3/jobs.zip", "s3/jobs.db", "s3/prefix/")


def pack(archive: Path, members: dict[str, bytes]) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as made:
            for name, content in members.items():
                made.writestr(name, content)
    else:
        with tarfile.open(archive, "w:gz") as made:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return archive


def local_place(folder: Path, kind: str, jobs: pd.DataFrame) -> Path:
    """A place of a kind that holds job records."""
    place = folder / kind
    text = jobs.to_csv(index=False).encode()
    if kind == "training":
        (place / "data").mkdir(parents=True)
        (place / "data" / "latest.csv").write_bytes(text)
        (place / "data" / "quarantine.csv").write_bytes(b"ipst\nother\n")
    elif kind == "folder":
        (place / "below").mkdir(parents=True)
        jobs.iloc[:10].to_parquet(place / "a.parquet")
        jobs.iloc[10:].to_parquet(place / "below" / "b.parquet")
    elif kind.endswith(".csv"):
        place.write_bytes(text)
    elif kind.endswith(".parquet"):
        jobs.to_parquet(place)
    elif kind.endswith(".db"):
        with closing(open_store(f"sqlite:///{place}", create=True)) as store:
            store.put(JOBS, jobs)
    else:
        pack(place, {"2021-11-04-1636048291/data/latest.csv": text, "2021-11-04-1636048291/other.csv": b"ipst\nx\n"})
    return place


@pytest.fixture
def place(request, tmp_path):
    """Gives the URI of a place of a kind that holds job records."""

    def make(kind: str, jobs: pd.DataFrame) -> str:
        if not kind.startswith("s3/"):
            return str(local_place(tmp_path, kind, jobs))
        s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
        name = kind.removeprefix("s3/")
        if not name.endswith("/"):
            s3.upload_file(str(local_place(tmp_path, name, jobs)), bucket, name)
        else:
            for part in local_place(tmp_path, "folder", jobs).rglob("*.parquet"):
                s3.upload_file(str(part), bucket, name + part.name)
        return f"s3://{bucket}/{name}"

    return make


# -- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*LOCAL, *IN_S3])
def test_every_place_gives_the_same_records(place, kind):
    uri = place(kind, SAMPLE)
    checked = read_jobs(uri)
    pd.testing.assert_frame_equal(checked.valid, SAMPLE, check_dtype=False, check_exact=True)
    assert checked.quarantine.empty
    with closing(open_source(uri)) as source:
        assert source.name == uri
        assert source.count(JOBS) == len(SAMPLE)
        assert pd.concat(source.read(JOBS, ["n_files", "ipst"])).columns.tolist() == ["n_files", "ipst"]
        assert [source.count(table) for table in TABLES if table is not JOBS] == [0] * 5
    with pytest.raises(InputError, match=r"is no database; expected sqlite:///FILE, .*written as a whole by `copy`"):
        open_store(uri, create=True)


def test_jobs_can_be_read_where_a_missing_key_is_denied(place, monkeypatch, capsys):
    """AWS answers 403 for a missing key to those who may not list the bucket; the server of the tests does not."""
    whole = files.open_table

    def refuse(uri, *words):
        if "killed_jobs" in str(uri):
            raise DeniedError(f"{uri} cannot be read (AccessDenied); expected a bucket that can be read")
        return whole(uri, *words)

    monkeypatch.setattr(files, "open_table", refuse)
    uri = place("s3/jobs.csv", SAMPLE)
    assert len(read_jobs(uri).valid) == len(SAMPLE)
    assert read_killed(uri).empty
    assert "without it no killed jobs count" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jobs.csv", "jobs.parquet"])
def test_cells_stay_as_they_are_until_they_are_checked(place, kind):
    jobs = SAMPLE.astype({"memory": "str"}).assign(bin_pred=1)
    jobs.loc[3, "memory"] = "much"
    jobs.loc[4, "ipst"] = "007"
    checked = read_jobs(place(kind, jobs))
    sound = SAMPLE.drop(index=[3, 4]).reset_index(drop=True)
    pd.testing.assert_frame_equal(checked.valid, sound, check_dtype=False, check_exact=True)
    assert checked.quarantine[["ipst", "memory"]].iloc[0].tolist() == [SAMPLE["ipst"][3], "much"]
    assert checked.quarantine["ipst"].iloc[1] == "007"
    assert checked.quarantine["bin_pred"].tolist() == [1, 1]


def folder_of(folder: Path, names) -> str:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"ipst,n_files\n{name},5\n")
    return str(folder)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        (("latest.csv", "a.csv"), "latest.csv"),
        (("Jobs.CSV", "README.md"), "Jobs.CSV"),
        (("data/latest.csv", "latest.csv"), "data/latest.csv"),
        (("latest.csv", ".hidden.csv", "._latest.csv"), "latest.csv"),
    ],
)
def test_the_table_of_a_folder(tmp_path, members, wanted):
    assert read_table(folder_of(tmp_path, members))["ipst"].tolist() == [wanted]


@pytest.mark.parametrize(
    ("members", "found"),
    [
        (("a.csv", "b.csv"), r"2 CSV files \(a\.csv, b\.csv\)"),
        ([f"{number:02}.csv" for number in range(12)], r"12 CSV files \(00\.csv, .*09\.csv, \.\.\.\)"),
        (("README.md",), "no CSV or Parquet file"),
    ],
)
def test_a_folder_without_one_table(tmp_path, members, found):
    with pytest.raises(InputError, match=rf"holds {found}; expected data/latest\.csv"):
        open_source(folder_of(tmp_path, members))


def test_a_table_that_is_damaged_is_named_by_archive_and_member(place, s3, bucket, tmp_path):
    archive = pack(tmp_path / "jobs.zip", {"data/latest.csv": b"\x80\x02X\0\0"})
    with pytest.raises(InputError, match=rf"{archive}, member data/latest\.csv is not text; expected"):
        read_table(str(archive))
    s3.put_object(Bucket=bucket, Key="broken.tgz", Body=b"x")
    with pytest.raises(InputError, match=rf"^archive s3://{bucket}/broken\.tgz cannot be unpacked"):
        read_table(f"s3://{bucket}/broken.tgz")


def test_temporary_copies_are_removed(place, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for kind in ("jobs.tgz", "s3/jobs.zip", "s3/jobs.db", "s3/jobs.csv"):
        assert len(read_table(place(kind, SAMPLE))) == len(SAMPLE)
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(CalmlflowError):
        open_source(str(tmp_path / "broken.zip"))
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere.csv", "nowhere.csv does not exist; expected a file of job records"),
        ("nowhere.zip", "nowhere.zip does not exist; expected a file of job records"),
        ("x" * 5000, r"cannot be read \(File name too long\); expected a file of job records"),
        ("s3://BUCKET/none.csv", r"s3://.*/none.csv cannot be .*; expected"),
        ("s3://BUCKET/none.db", r"s3://.*/none.db cannot be .*; expected"),
        ("s3://BUCKET/none/", "there is no Parquet file under s3://.*/none/; expected some"),
        ("s3://BUCKET/jobs.txt", r"is of no known kind; expected a key in \.csv, "),
        ("s3://BUCKET/broken.db", "broken.db is no SQLite database of job records; expected"),
    ],
)
def test_places_without_records(s3, bucket, uri, message):
    s3.put_object(Bucket=bucket, Key="broken.db", Body=b"x" * 10_000)
    with pytest.raises(InputError, match=message):
        read_table(uri.replace("BUCKET", bucket))


# -- Writing --------------------------------------------------------------------------------------------------------


def write(uri: str, *parts: pd.DataFrame) -> int:
    return write_file(uri, FileSource("test", lambda table: iter(parts)), lambda done, total: None)


@pytest.mark.parametrize("kind", ["jobs.csv", "jobs.parquet", "s3/jobs.csv", "s3/jobs.parquet"])
def test_a_file_is_written_whole_and_replaces_the_one_before(place, kind, tmp_path):
    uri = place(kind, SAMPLE)
    rows = frame(JOBS, [record(**ANSWER, split="train"), record("j91jc4010", wallclock=0.1 + 0.2)])
    assert write(uri, rows.iloc[:1], rows.iloc[1:]) == 2
    with closing(open_source(uri)) as source:
        pd.testing.assert_frame_equal(conform(contents(source, JOBS), JOBS), rows, check_exact=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["jobs.csv", "jobs.parquet", "s3/jobs.csv", "s3/jobs.parquet"])
def test_killed_jobs_lie_beside_a_file(place, kind):
    uri, kills = place(kind, SAMPLE), frame(KILLED, ROWS[KILLED])
    tables = {JOBS: SAMPLE, KILLED: kills}
    for expected in (kills, kills[:0]):
        tables[KILLED] = expected
        source = FileSource("test", lambda table: iter([tables[table]]))
        assert write_file(uri, source, lambda done, total: None) == len(SAMPLE)
        found = read_killed(uri)
        pd.testing.assert_frame_equal(found.sort_values(["ipst", "timestamp"], ignore_index=True), expected)
    # The folder still has one table of jobs.
    if kind == "jobs.csv":
        assert len(read_jobs(str(Path(uri).parent)).valid) == len(SAMPLE)


@pytest.mark.parametrize("is_there", [True, False])
def test_an_object_that_changes_meanwhile_is_not_overwritten(s3, bucket, is_there):
    if is_there:
        s3.put_object(Bucket=bucket, Key="jobs.csv", Body=b"before")

    def parts(table):
        yield frame(JOBS, [record()])
        s3.put_object(Bucket=bucket, Key="jobs.csv", Body=b"meanwhile")

    with pytest.raises(CalmlflowError, match=r"jobs\.csv cannot be written \(PreconditionFailed\); expected an object"):
        write_file(f"s3://{bucket}/jobs.csv", FileSource("test", parts), lambda done, total: None)
    assert s3.get_object(Bucket=bucket, Key="jobs.csv")["Body"].read() == b"meanwhile"


def test_columns_that_a_source_has_not_are_left_out(tmp_path):
    uri = str(tmp_path / "jobs.csv")
    assert write(uri, SAMPLE.drop(columns=["timestamp", "mem_bin"]).assign(note="own")) == len(SAMPLE)
    assert read_table(uri).columns.tolist() == [name for name in SAMPLE if name not in ("timestamp", "mem_bin")]
    assert len(read_jobs(uri).valid) == len(SAMPLE)
    assert write(uri) == 0
    assert read_table(uri).columns.tolist() == list(JOBS.columns)


@pytest.mark.parametrize("uri", ["jobs.zip", "folder", "sample:5", "s3://some-bucket/prefix/", "jobs.txt"])
def test_a_name_that_cannot_be_written(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written; expected a database, or a file or an object of S3 in"):
        write(uri, SAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_history_of_a_sqlite_file_in_s3_is_read(s3, bucket, tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/jobs.db", create=True)) as store:
        store.put(HISTORY, frame(HISTORY, [{**record(), "digest": "a"}]))
    s3.upload_file(f"{tmp_path}/jobs.db", bucket, "jobs.sqlite")
    with closing(open_source(f"s3://{bucket}/jobs.sqlite")) as source:
        assert contents(source, HISTORY)["digest"].tolist() == ["a"]
