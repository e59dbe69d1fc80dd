"""Job records in CSV and Parquet files, and in the folders of trainings."""

import csv
import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import HISTORY, JOBS, QUARANTINE
from calmlflow.jobs.stores.files import open_path
from calmlflow.jobs.stores.formats import write_whole
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.jobs.upsert import Batch, Counts, keep, write_back
from tests.samples.store_samples import RECORD, contents, frame, record

TEXT = "ipst,n_files\nj8c601020,5\n"


def write(path, text=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read_path(path) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(), *open_path(path).read(JOBS)])


def names(path) -> list[str]:
    return read_path(path)["ipst"].tolist()


def table_of(name: str) -> str:
    return f"ipst,n_files\n{name},5\n"


def test_a_csv_keeps_every_number(tmp_path):
    sample = draw_sample(200)
    sample.to_csv(tmp_path / "jobs.csv", index=False)
    pd.testing.assert_frame_equal(read_path(tmp_path / "jobs.csv"), sample, check_exact=True)


@pytest.mark.parametrize("column", ["ipst", "ipppssoot"])
def test_names_are_text(tmp_path, column):
    path = write(tmp_path / "jobs.csv", f"{column},n_files\n012345678,5\n1e5,6\n")
    assert read_path(path)[column].tolist() == ["012345678", "1e5"]


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write(tmp_path / "jobs.csv", b"\xef\xbb\xbfipst,n_files\r\nj8c601020,5\r\n")
    assert read_path(path).to_dict("list") == {"ipst": ["j8c601020"], "n_files": [5]}


def test_a_trainings_folder(tmp_path):
    write(tmp_path / "data" / "latest.csv", table_of("training"))
    write(tmp_path / "data" / "quarantine.csv", table_of("quarantine"))
    write(tmp_path / "other.csv", table_of("other"))
    assert names(tmp_path) == ["training"]
    assert names(tmp_path / "data") == ["training"]


def test_a_folder_with_latest_csv(tmp_path):
    write(tmp_path / "latest.csv", table_of("latest"))
    write(tmp_path / "a.csv", table_of("a"))
    assert names(tmp_path) == ["latest"]


def test_a_folder_with_one_csv(tmp_path):
    write(tmp_path / "Jobs.CSV", table_of("single"))
    write(tmp_path / "README.md", "about")
    assert names(tmp_path) == ["single"]


def test_a_folder_with_several(tmp_path):
    for name in ("b.csv", "a.csv"):
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"holds 2 CSV files \(a\.csv, b\.csv\); expected data/latest\.csv"):
        read_path(tmp_path)


def test_a_folder_with_a_multitude_is_not_listed_whole(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number:02}.csv")
    with pytest.raises(InputError, match=r"holds 12 CSV files \(00\.csv, .*, 09\.csv, \.\.\.\)"):
        read_path(tmp_path)


def test_a_folder_without_csv(tmp_path):
    with pytest.raises(InputError, match=r"holds no CSV or Parquet file; expected data/latest\.csv, latest\.csv, "):
        read_path(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"jobs\.csv does not exist; expected a file of job records"):
        read_path(tmp_path / "jobs.csv")


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        read_path(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "jobs.csv")
    path.chmod(0)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        read_path(path)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"PK\x03\x04\x00\x00", "is not text"),
        (b"ipst,n_files\nj8c601020,\xff\n", "is not UTF-8 text"),
        (b'ipst,n_files\n"j8c601020,5\n', "is no CSV table"),
        (b"ipst,n_files\nj8c601020,5\nj8c601020,5,6\n", r"is no CSV table \(.*line 3"),
        (b"ipst,n_files\nj8c601020,5,6\n", "has lines with more cells than its header"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, wrong):
    path = write(tmp_path / "jobs.csv", content)
    with pytest.raises(InputError, match=rf"jobs\.csv {wrong}.*; expected a header line and comma-separated records$"):
        read_path(path)


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=60) | st.text('ipst,"\n\r15.', max_size=60).map(str.encode))
def test_any_bytes_give_a_table_or_one_sentence(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("any") / "jobs.csv", content)
    try:
        table = read_path(path)
    except CalmlflowError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(table, pd.DataFrame)


# -- Stores in files ------------------------------------------------------------------------------------------------

SUFFIXES = pytest.mark.parametrize("suffix", ["csv", "parquet"])


def save(table: pd.DataFrame, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


def cells(path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@settings(max_examples=20, deadline=None)
@given(
    number=st.floats(allow_nan=False),
    whole=st.none() | st.integers(-(2**53), 2**53),
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40),
    suffix=st.sampled_from(["csv", "parquet"]),
)
def test_any_value_comes_back_to_the_last_bit(tmp_path_factory, number, whole, text, suffix):
    store = open_path(tmp_path_factory.mktemp("any") / f"jobs.{suffix}", create=True)
    rows = frame(HISTORY, [record(text, wallclock=number, crsplit=whole, digest="d", split=text)])
    store.put(HISTORY, rows)
    # Once more, with what was there before read and written again.
    store.put(HISTORY, frame(HISTORY, [record(text, digest="other")]))
    pd.testing.assert_frame_equal(store.get(HISTORY, [text])[:1], rows, check_exact=True)
    pd.testing.assert_frame_equal(contents(store, HISTORY)[:1], rows, check_exact=True)


@pytest.mark.parametrize("name", ["NA", "nan", "null", "007", "1e5", " ", "a,b", 'a"b', "a\nb", "a\r\nb", "\r"])
def test_words_that_csv_readers_take_for_something_else(tmp_path, name):
    store = open_path(tmp_path / "jobs.csv", create=True)
    store.put(QUARANTINE, frame(QUARANTINE, [{"ipst": name, "digest": name, "reason": name}]))
    assert contents(store, QUARANTINE)[["ipst", "digest", "reason"]].to_numpy().tolist() == [[name] * 3]


def test_a_users_file_keeps_whatever_is_its_own(tmp_path):
    """Columns and cells that nobody here knows, cells that are wrong, and names in capitals, to the letter."""
    names = ["ipst", *(name for name in RECORD if name != "ipst"), "note"]
    one = {**RECORD, "total_mb": "94.00", "note": "007"}
    bad = {**RECORD, "ipst": "j91jc4010", "n_files": "1_0", "note": "NA"}
    old = {**RECORD, "ipst": " J9BQ01010", "timestamp": "1e3", "note": ""}
    path = tmp_path / "jobs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *([row[name] for name in names] for row in (one, bad, old))])
    before = cells(path)
    with closing(open_path(path)) as store:
        assert keep(store, Batch(jobs=pd.DataFrame([record("lbny02010", instr=1)])), "test", now=10) == Counts(stored=1)
        assert [row[: len(names)] for row in cells(path)[:4]] == before
        assert cells(path)[0][len(names) :] == ["stored_at"]
        newer = record("j9bq01010", timestamp=5000, memory=1.5)
        assert keep(store, Batch(jobs=pd.DataFrame([newer])), "test", now=20) == Counts(updated=1)
        assert cells(path)[1][: len(names)] == before[1]
        assert store.get(JOBS, ["j91jc4010"]).empty
        assert contents(store, HISTORY)["timestamp"].tolist() == [1000]
    checked = read_jobs(str(path))
    assert sorted(checked.valid["ipst"]) == ["j8c601020", "j9bq01010", "lbny02010"]
    assert checked.quarantine["n_files"].tolist() == ["1_0"]
    assert checked.quarantine["note"].tolist() == ["NA"] or checked.quarantine["note"].isna().all()


@SUFFIXES
def test_columns_that_may_be_left_out_mean_the_same_after_a_change(tmp_path, suffix):
    sample = draw_sample(30)
    path = save(sample.drop(columns=["timestamp", "mem_bin"]), tmp_path / f"jobs.{suffix}")
    expected = read_jobs(str(path)).valid
    store = open_path(path)
    again = Batch(jobs=sample.assign(timestamp=0))
    assert keep(store, again, "test", now=5) == Counts(unchanged=30)
    assert write_back(store, expected.assign(bin_pred=2), 7) == (30, 0)
    pd.testing.assert_frame_equal(read_jobs(str(path)).valid, expected, check_exact=True)
    assert set(pd.concat(store.read(JOBS))["bin_pred"].astype(int)) == {2}


@SUFFIXES
def test_of_records_of_one_name_the_newest_counts_and_the_others_stay(tmp_path, suffix):
    rows = [record(timestamp=time, memory=memory) for time, memory in ((5, 1.5), (9, 1.9), (7, 1.7))]
    path = save(pd.DataFrame(rows), tmp_path / f"jobs.{suffix}")
    store = open_path(path)
    assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [1.9]
    store.put(JOBS, frame(JOBS, [record(timestamp=10, memory=2.0)]))
    assert sorted(pd.concat(store.read(JOBS))["memory"]) == [1.5, 1.7, 2.0]
    assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [2.0]


def test_the_other_tables_lie_beside_and_the_folder_is_still_one(tmp_path):
    path = tmp_path / "jobs.csv"
    keep(open_path(path, create=True), Batch(jobs=pd.DataFrame([record(), record("x")])), "test")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".jobs.csv.lock", "jobs.csv", "jobs.quarantine.csv"]
    assert names(tmp_path) == ["j8c601020"]


def test_what_can_only_be_read(tmp_path):
    draw_sample(30).to_csv(write(tmp_path / "data" / "latest.csv"), index=False)
    store = open_path(tmp_path)
    for act in (store.change, lambda: store.put(JOBS, frame(JOBS, [record()]))):
        with pytest.raises(InputError, match="can only be read; expected a database, or a file"):
            act()
    assert store.count(JOBS) == 30
    assert store.count(HISTORY) == 0


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(InputError, match=r"cannot be made; expected a name that ends in \.csv or \.parquet"):
        open_path(tmp_path / "jobs.txt", create=True)
    (tmp_path / "file").touch()
    with (
        pytest.raises(CalmlflowError, match=r"cannot be (written|read) .*; expected"),
        closing(open_path(tmp_path / "file" / "jobs.csv", create=True)) as store,
    ):
        store.put(JOBS, frame(JOBS, [record()]))


def test_processes_that_write_one_file_wait_for_one_another(tmp_path):
    """Three that add their own records to a file at the same time: without waiting, some would be lost."""
    path = tmp_path / "jobs.csv"
    script = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from store_samples import JOBS, frame, record\n"
        "from calmlflow.jobs.stores.open import open_store\n"
        "store = open_store(sys.argv[1], create=True)\n"
        "for number in range(5): store.put(JOBS, frame(JOBS, [record(f'j8c6{sys.argv[2]}{number:04d}')]))\n"
    )
    here = str(Path(__file__).parent)
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), letter, here]) for letter in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    expected = [f"j8c6{letter}{number:04d}" for letter in "abc" for number in range(5)]
    assert contents(open_path(path), JOBS)["ipst"].tolist() == expected


def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch):
    """A full disk while the second file is written."""
    path = tmp_path / "jobs.csv"
    store = open_path(path, create=True)
    store.put(JOBS, frame(JOBS, [record()]))
    written = []

    def fill(rows, place, as_parquet) -> None:
        written.append(place)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(rows, place, as_parquet)

    monkeypatch.setattr("calmlflow.jobs.stores.file_store.write_whole", fill)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(CalmlflowError, match=r"cannot be written \(No space left on device\); expected"):
        keep(store, Batch(jobs=pd.DataFrame([record(timestamp=2_000_000_000)])), "test")
    assert len(written) == 2
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_text_with_nul_is_told(tmp_path):
    store = open_path(tmp_path / "jobs.csv", create=True)
    with pytest.raises(InputError, match="a text holds a NUL character"):
        store.put(QUARANTINE, frame(QUARANTINE, [{"ipst": "a\0b", "digest": ""}]))


# -- Parquet --------------------------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files(tmp_path):
    sample = draw_sample(30)
    sample[:10].to_parquet(tmp_path / "a.parquet")
    (tmp_path / "below").mkdir()
    sample[10:].to_parquet(tmp_path / "below" / "b.parquet")
    pd.testing.assert_frame_equal(read_jobs(str(tmp_path)).valid, sample, check_exact=True)


def test_a_large_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("calmlflow.jobs.stores.formats.CHUNK_ROWS", 100)
    sample = draw_sample(1000)
    for path in (save(sample, tmp_path / "jobs.parquet"), save(sample, tmp_path / "jobs.csv")):
        parts = list(open_path(path).read(JOBS))
        assert [len(part) for part in parts] == [100] * 10
        pd.testing.assert_frame_equal(pd.concat(parts), sample, check_exact=True)


@pytest.mark.parametrize(
    "values", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"a", b"b"], pd.to_datetime(["2020-01-01", "2020-01-02"])]
)
def test_columns_of_strange_types(tmp_path, values):
    path = tmp_path / "jobs.parquet"
    pd.DataFrame({"ipst": ["a", "b"], "n_files": values}).to_parquet(path)
    with pytest.raises(InputError, match=r"jobs\.parquet, column n_files holds .*; expected numbers or text$"):
        read_path(path)
    pd.DataFrame([record(), record("j91jc4010")]).assign(own=values).to_parquet(path)
    open_path(path).put(JOBS, frame(JOBS, [record(memory=2.5)]))
    assert pq.read_table(path)["own"].to_pylist() == list(values)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_damaged_parquet_file_gives_a_table_or_one_sentence(tmp_path_factory, data):
    path = save(draw_sample(3), tmp_path_factory.mktemp("damaged") / "jobs.parquet")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        read_path(path)
    except CalmlflowError as error:
        assert "\n" not in str(error)
