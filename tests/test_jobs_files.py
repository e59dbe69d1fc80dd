"""Job records in CSV files and in the folders of trainings."""

import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.jobs.files import open_path
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.store import JOBS

TEXT = "ipst,n_files\nj8c601020,5\n"


def write(path, text=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read_path(path) -> pd.DataFrame:
    return pd.concat(open_path(path).read(JOBS))


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
