"""Sources of job records by URI."""

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.open import read_jobs, read_table


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "some jobs.csv"
    jobs = draw_sample(30).assign(bin_pred=1)
    jobs.loc[3, "memory"] = 0.01
    jobs.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(("uri", "n"), [("sample", 20_000), ("sample:1", 1), ("sample:70", 70)])
def test_the_sample(uri, n):
    pd.testing.assert_frame_equal(read_jobs(uri, seed=5).valid, draw_sample(n, 5))


def test_a_path_is_read_and_checked(csv):
    checked = read_jobs(str(csv))
    pd.testing.assert_frame_equal(checked.valid, draw_sample(30).drop(index=3).reset_index(drop=True))
    assert checked.quarantine["ipst"].tolist() == [draw_sample(30)["ipst"][3]]
    assert checked.quarantine["bin_pred"].tolist() == [1]


@pytest.mark.parametrize("prefix", ["file://", "file:", "FILE://", "file://localhost"])
def test_a_file_uri(csv, prefix):
    uri = prefix + str(csv).replace(" ", "%20")
    pd.testing.assert_frame_equal(read_jobs(uri).valid, read_jobs(str(csv)).valid)


def test_a_folder_and_a_relative_path(csv, monkeypatch):
    monkeypatch.chdir(csv.parent)
    for uri in (".", str(csv.parent), csv.parent.as_uri(), csv.name):
        assert len(read_jobs(uri).valid) == 29


def test_a_table_as_it_is(csv):
    table = read_table(str(csv))
    assert (len(table), "bin_pred" in table) == (30, True)


def test_errors_of_records_name_the_source(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("ipst,n_files\nj8c601020,5\n")
    with pytest.raises(InputError, match=r"jobs\.csv has no column total_mb, "):
        read_jobs(str(path))


def test_an_unknown_scheme_is_named_and_its_password_is_not():
    with pytest.raises(InputError) as caught:
        read_jobs("gopher://me:secret@host/jobs")
    assert str(caught.value) == (
        "data source has the unknown scheme 'gopher'; expected a path, file://, sample, sample:N, sqlite://, "
        "postgresql://, dynamodb:// or s3://"
    )


@pytest.mark.parametrize("uri", ["sample:", "sample:many", "sample:-1", "sample:1.5", "sample:1_0", "sample:٣"])
def test_a_sample_size_that_is_no_number(uri):
    with pytest.raises(InputError, match=r"sample size is '.*'; expected sample:N with a whole number N"):
        read_jobs(uri)


def test_a_sample_of_nothing():
    with pytest.raises(InputError, match="a sample of 0 jobs was asked for"):
        read_jobs("sample:0")


@pytest.mark.parametrize("uri", ["", " "])
def test_an_empty_uri(uri):
    with pytest.raises(InputError, match=r"data source is '\s*'; expected a path, file://, sample, sample:N, sqlite:"):
        read_jobs(uri)


@pytest.mark.parametrize("uri", ["file://elsewhere/jobs.csv", "file:jobs.csv", "file://"])
def test_a_file_uri_without_a_local_file(uri):
    with pytest.raises(InputError, match=r"names no local file; expected file:///absolute/path"):
        read_jobs(uri)
