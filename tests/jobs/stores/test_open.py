"""Sources of job records by URI."""

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.open import read_jobs


@pytest.mark.parametrize(("uri", "n"), [("sample", 20_000), ("sample:1", 1), ("sample:70", 70)])
def test_the_sample(uri, n):
    pd.testing.assert_frame_equal(read_jobs(uri, seed=5).valid, draw_sample(n, 5), check_dtype=False)


def test_paths_and_file_uris(tmp_path, monkeypatch):
    path = tmp_path / "some jobs.csv"
    draw_sample(30).to_csv(path, index=False)
    monkeypatch.chdir(tmp_path)
    quoted = str(path).replace(" ", "%20")
    uris = [f"{prefix}{quoted}" for prefix in ("file://", "file:", "FILE://", "file://localhost")]
    for uri in (*uris, str(path), path.name, ".", str(tmp_path), tmp_path.as_uri()):
        pd.testing.assert_frame_equal(read_jobs(uri).valid, draw_sample(30), check_dtype=False)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        *((f"sample:{n}", "sample size is '.*'; expected sample:N") for n in ("", "many", "-1", "1.5", "\u0663")),
        *((uri, r"data source is '\s*'; expected a path, file://, sample, sample:N, sqlite:") for uri in ("", " ")),
        *((uri, "names no local file") for uri in ("file://elsewhere/jobs.csv", "file:jobs.csv", "file://")),
        ("gopher://me:hunter2@host/jobs", "has the unknown scheme 'gopher'; expected a path, file://, sample"),
    ],
)
def test_a_uri_of_no_kind(uri, message):
    with pytest.raises(InputError, match=message) as caught:
        read_jobs(uri)
    assert "hunter2" not in str(caught.value)
