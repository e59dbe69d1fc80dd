"""`calmlflow jobs status`, `quarantine` and `report`: what they print, and their exit statuses."""

import json
import subprocess
import sys
import time
from contextlib import closing

import pandas as pd
import pytest

from calmlflow.cli.jobs import parse_age
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, upsert
from tests.samples.console_command import run_here
from tests.samples.store_samples import record

HOUR, DAY = 3600, 86_400
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def uri(tmp_path):
    """A store that has one record of an hour ago."""
    uri = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_sql(uri, create=True)) as store:
        add(store, "j8c601020")
    return uri


def add(store, *names: str, age_s: int = HOUR) -> None:
    finished = int(time.time()) - age_s
    upsert(store, Batch(pd.DataFrame([record(name, timestamp=finished) for name in names])), "test")


def refuse(store, *names: str, kind: str = "a step failed") -> None:
    upsert(store, Batch(refused=pd.DataFrame({"ipst": names, "kind": kind, "reason": "exit status 1"})), "test")


def status(capsys, *words: str) -> tuple[int, str, str]:
    return run_here(capsys, "jobs", "status", "--no-log", *words)


# -- The command ----------------------------------------------------------------------------------------------------


def test_exit_statuses_are_what_a_scheduler_needs(uri, capsys):
    code, out, err = status(capsys, "--store", uri)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "healthy"

    code, out, err = status(capsys, "--store", uri, "--max-age", "30m")
    assert code == 1
    assert err.startswith(f"error: the newest record of {uri} is 60.")
    assert len(err.splitlines()) == 1
    assert out.splitlines()[-1] == "not healthy"

    with closing(open_sql(uri)) as store:
        refuse(store, "jbroken10")
    code, out, err = status(capsys, "--store", uri, "--max-age", "30m", "--json")
    assert code == 1
    told = json.loads(out)
    assert err.splitlines() == [f"error: {problem}" for problem in told["problems"]]
    assert [told["healthy"], len(told["problems"])] == [False, 2]


def test_the_store_of_the_environment_counts_and_else_the_one_at_home(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALMLFLOW_JOBS", uri)
    assert json.loads(status(capsys, "--json")[1])["store"] == uri
    monkeypatch.delenv("CALMLFLOW_JOBS")
    monkeypatch.setenv("CALMLFLOW_HOME", f"{tmp_path}/nowhere")
    expected = f"error: sqlite:///{tmp_path}/nowhere/jobs.db does not exist; expected a SQLite file of job records\n"
    assert status(capsys) == (1, "", expected)


@pytest.mark.parametrize("store", ["postgresql://me:hush-hush@127.0.0.1:1/jobs", "gopher://me:hush-hush@host/jobs"])
def test_a_store_that_cannot_be_opened_is_one_sentence_without_password(capsys, store):
    code, out, err = run_here(capsys, "jobs", "status", "--store", store, "--no-log")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("error: ")
    assert "expected" in err
    assert "hush" not in err


def test_a_file_is_a_store_too(capsys, tmp_path):
    pd.DataFrame([record(timestamp=int(time.time()) - 90)]).to_csv(tmp_path / "jobs.csv", index=False)
    code, out, err = run_here(capsys, "jobs", "status", "--store", str(tmp_path / "jobs.csv"), "--no-log", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["records_by_instrument"] == {"ACS": 1, "COS": 0, "STIS": 0, "WFC3": 0}


def test_a_table_for_people_is_readable_in_80_columns(capsys, uri, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with closing(open_sql(uri)) as store:
        refuse(store, "jbroken10", kind="[red]no features[/red] \x1b[31m")
    code, out, _ = run_here(capsys, "jobs", "status", "--store", uri, "--no-log")
    assert code == 1
    lines = out[out.index("records") :].splitlines()
    assert [line.split() for line in lines[:6]] == [
        ["records", "2g", "8g", "16g", "64g", "all"],
        ["ACS", "1", "0", "0", "0", "1"],
        ["COS", "0", "0", "0", "0", "0"],
        ["STIS", "0", "0", "0", "0", "0"],
        ["WFC3", "0", "0", "0", "0", "0"],
        ["all", "1", "0", "0", "0", "1"],
    ]
    assert max(map(len, lines)) <= 80
    assert "1  [red]no features[/red]" in out
    assert "\x1b" not in out


def test_without_log_mlflow_is_not_even_imported(uri, tmp_path):
    code = (
        "import sys; from calmlflow.cli.app import app; "
        f"app(['jobs', 'status', '--store', {uri!r}, '--no-log', '--json'], standalone_mode=False); "
        "print('mlflow' in sys.modules, 'tensorflow' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "False False\n"


# -- Ages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("36h", 129_600),
        ("90m", 5400),
        ("3600", 3600),
        ("45s", 45),
        ("1.5d", 129_600),
        (" 2D ", 172_800),
        ("Never", None),
    ],
)
def test_an_age_has_a_unit_or_is_in_seconds(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "2 days", "-1d", "1e3", "nan", "inf", "1_0", "\u0663d", "9" * 400])
def test_a_bad_age_ends_with_2(capsys, uri, text):
    code, out, err = run_here(capsys, "jobs", "status", "--store", uri, "--no-log", "--max-age", text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


# -- Without MLflow, and the quarantine -----------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "code"), [("2d", 0), ("30m", 1)])
def test_an_mlflow_that_is_away_changes_neither_figures_nor_status(uri, monkeypatch, capsys, age, code):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY.replace("//", "//me:hush-hush@"))
    words = ("jobs", "status", "--store", uri, "--json", "--max-age", age)
    without, out, errors = run_here(capsys, *words, "--no-log")
    away, out_away, err = run_here(capsys, *words)
    assert (without, away) == (code, code)
    moving = ("moment", "newest_age_s", "problems")
    one, other = (
        {name: value for name, value in json.loads(text).items() if name not in moving} for text in (out, out_away)
    )
    assert one == other
    warning, *rest = err.splitlines()
    assert warning.startswith("warning: not logged to MLflow: no MLflow server answers at http://***@127.0.0.1:1")
    assert len(rest) == len(errors.splitlines()) == code
    assert "hush" not in err


def test_the_quarantine_is_listed_and_dismissed(tmp_path, capsys):
    own = f"sqlite:///{tmp_path}/own.db"
    rows = [
        {"ipst": "j8c601020", "kind": "step failed", "reason": "j8c601020: process_metrics.txt says so; expected 0"},
        {"ipst": "x", "kind": "no dataset", "reason": "x is none"},
    ]
    with closing(open_sql(own, create=True)) as store:
        upsert(store, Batch(refused=pd.DataFrame(rows)), "test")

    def run(*words: str) -> tuple[int, str, str]:
        return run_here(capsys, "jobs", "quarantine", "--store", own, *words)

    assert run("--kind", "step failed") == (
        0,
        "j8c601020  step failed: process_metrics.txt says so; expected 0\n",
        "1 entries, open\n",
    )
    assert {json.loads(line)["ipst"] for line in run("--json")[1].splitlines()} == {"j8c601020", "x"}
    assert run("--kind", "step failed", "--dismiss")[2] == "1 entries dismissed\n"
    assert run()[1] == "x  no dataset: x is none\n"


def test_the_report_is_a_page_or_json(uri, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here(capsys, "jobs", "report", "--data", uri)
    assert (code, err) == (0, "written: realised.html\n")
    assert out.startswith("No prediction was recorded before the end of any of 1 jobs")
    assert out.strip() in (tmp_path / "realised.html").read_text()
    (tmp_path / "realised.html").unlink()
    code, out, err = run_here(capsys, "jobs", "report", "--data", uri, "--json")
    assert (code, err, json.loads(out)["ended"]) == (0, "", 1)
    assert not (tmp_path / "realised.html").exists()
    assert run_here(capsys, "jobs", "report", "--data", uri, "--json", "--output", "a/page.html")[0] == 0
    assert (tmp_path / "a" / "page.html").exists()
