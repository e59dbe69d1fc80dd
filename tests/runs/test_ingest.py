"""Ingest and copy as commands and as MLflow runs, and the option ``datasets``."""

import json
import uuid
from contextlib import closing

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.copy import copy
from calmlflow.jobs.ingest import STEP_FAILED, Ingested
from calmlflow.jobs.stores.base import JOBS, QUARANTINE
from calmlflow.jobs.stores.open import open_source, open_store
from calmlflow.jobs.upsert import Counts
from calmlflow.runs.ingest import check_complete, parse_datasets
from tests.samples.commands import FAST, mlflow_run, run
from tests.samples.console_command import run_here
from tests.samples.event_samples import eventbridge, s3_record
from tests.samples.ingest_samples import metrics, name_of, put_job
from tests.samples.store_samples import contents, frame, record

JOB = "j8c601020"


@pytest.fixture
def bucket(s3) -> str:
    """Five sound jobs, and one that failed."""
    name = f"jobs-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    for number in range(5):
        put_job(s3, name, name_of(number))
    put_job(s3, name, name_of(5), process=metrics(status=1))
    return name


def stored(uri: str, table=JOBS) -> list[str]:
    with closing(open_source(uri)) as source:
        return contents(source, table)["ipst"].tolist()


# -- Which datasets -------------------------------------------------------------------------------------------------

NAMES = st.lists(st.integers(0, 9_999_999).map(name_of), min_size=1, max_size=200)


@given(NAMES, st.sampled_from([",", " , ", ",,", ",\n"]))
def test_names_with_commas(names, comma):
    assert parse_datasets(comma.join(names).upper(), "bucket") == names


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \n"])
def test_a_file_of_names(tmp_path, start, end):
    names = [name_of(number) for number in range(1000)]
    path = tmp_path / "names.txt"
    path.write_bytes((start + "".join(name + end for name in [*names, "acs_8ph_01"])).encode())
    assert parse_datasets(str(path), "bucket") == [*names, "acs_8ph_01"]


@pytest.mark.parametrize("event", [{"Records": [s3_record("messages/processed-j8c601020.trigger")]}, eventbridge()])
def test_a_file_with_a_notification(tmp_path, event):
    path = tmp_path / "event.json"
    if "detail" in event:
        event["detail"]["object"]["key"] = f"messages/processed-{JOB}.trigger"
    path.write_text(json.dumps(event, indent=2))
    assert parse_datasets(str(path), "calcloud-processing") == [JOB]
    with pytest.raises(InputError, match="names bucket calcloud-processing; expected other"):
        parse_datasets(str(path), "other")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "cannot be read; expected names"),
        (b"{", "cannot be read; expected names"),
        (b"{" + b'"a":{' * 100_000, "cannot be read; expected names"),
        (b"{}", "the event has no Ipppssoot; expected"),
        (b"j8c601020\nnot-a-name\n", "'not-a-name' is no dataset name; expected"),
        (b"j8c601020,j8c601010", "is no dataset name; expected"),
        (b'{"Records": [{}]}', "a record is not one of S3's; expected"),
    ],
)
def test_a_file_of_anything_else_is_told(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=words):
        parse_datasets(str(tmp_path / "file"), "bucket")


@pytest.mark.parametrize("text", ["", " , ", "a\0b", "NEW", "x" * 10_000, "~/names.txt"])
def test_no_names_are_told(text):
    with pytest.raises(InputError, match="; expected "):
        parse_datasets(text, "bucket")


def test_what_is_pending_is_told_and_how_much_more():
    pending = {name_of(number): f"s3://b/{number} cannot be read" for number in range(5)}
    with pytest.raises(CalmlflowError, match=r"^5 of 7 datasets are pending: (s3://b/\d [^;]*; ){2}.* and 2 more; the"):
        check_complete(Ingested(counts=Counts(stored=2), pending=pending))
    check_complete(Ingested(counts=Counts(stored=2)))


# -- Commands -------------------------------------------------------------------------------------------------------


def test_ingest_as_a_command(server, bucket, tmp_path):
    uri = f"sqlite:///{tmp_path}/jobs.db"
    done = run(server, "calmlflow", "jobs", "ingest", f"s3://{bucket}/", "--json", CALMLFLOW_JOBS=uri)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    expected = {"datasets": 6, "stored": 5, "quarantined": 1, "known": 0, "pending": 0, "reasons": {STEP_FAILED: 1}}
    assert {name: figures[name] for name in expected} == expected
    assert stored(uri) == [name_of(number) for number in range(5)]
    assert stored(uri, QUARANTINE) == [name_of(5)]


def test_ingest_and_copy_for_people(server, bucket, tmp_path, tracking, capsys):
    uri = f"sqlite:///{tmp_path}/jobs.db"
    names = f"{name_of(1)},{name_of(2)}"
    assert run_here(capsys, "jobs", "ingest", bucket, "--store", uri, "--datasets", names)[0] == 0
    code, out, _ = run_here(capsys, "jobs", "ingest", bucket, "--store", uri, "--retry-quarantine")
    assert code == 0
    assert out.startswith("6 datasets in ")
    assert out.endswith(f" s: 3 stored, 1 quarantined, 2 known (1 x {STEP_FAILED}); killed: 1 x failed\n")
    code, out, _ = run_here(capsys, "jobs", "copy", uri, f"{tmp_path}/jobs.csv", "--json")
    figures = json.loads(out)
    assert (code, figures["read"], figures["stored"], figures["there"]) == (0, 5, 5, 5)
    assert stored(f"{tmp_path}/jobs.csv") == stored(uri)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ingest", "No Bucket"], 1, "No Bucket"),
        (["ingest", "no-such-bucket-here"], 1, "s3://no-such-bucket-here/"),
        (["ingest", "some-bucket", "--datasets", "nothing"], 1, "'nothing' is no dataset name"),
        (["ingest", "some-bucket", "--store", "gopher://me:hush-hush@h/x"], 1, "unknown scheme"),
        (["copy", "nowhere.csv", "there.csv"], 1, "nowhere.csv does not exist"),
        (["copy", "sample:3", "postgresql://me:hush-hush@127.0.0.1:1/x"], 1, "cannot be opened"),
        (["copy", "sample:3", "jobs.zip"], 1, "'jobs.zip' cannot be written"),
        (["copy", "sample:3"], 2, "'target'"),
        (["ingest", "some-bucket", "--store", "jobs.csv"], 1, "'jobs.csv' is no database"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tracking, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALMLFLOW_JOBS", "sqlite:///jobs.db")
    found, out, err = run_here(capsys, "jobs", *words)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert "hush" not in err


# -- Entry points ---------------------------------------------------------------------------------------------------


def test_ingest_and_copy_as_entry_points(server, bucket, tmp_path, tracking):
    import mlflow

    uri = f"sqlite:///{tmp_path}/jobs.db"
    done = mlflow_run(server, "ingest", bucket=bucket, store=uri)
    assert done.returncode == 0, done.stderr[-2000:]
    done = mlflow_run(server, "copy", source=uri, target=f"{tmp_path}/jobs.csv")
    assert done.returncode == 0, done.stderr[-2000:]
    assert stored(f"{tmp_path}/jobs.csv") == [name_of(number) for number in range(5)]
    found = mlflow.search_runs(search_all_experiments=True, filter_string=f"params.store_uri = '{uri}'")
    assert found["metrics.stored"].tolist() == [5]
    assert found["metrics.quarantined"].tolist() == [1]
    assert found["status"].tolist() == ["FINISHED"]
    found = mlflow.search_runs(search_all_experiments=True, filter_string=f"params.source = '{uri}'")
    assert (found["metrics.read"].tolist(), found["metrics.there"].tolist()) == ([5], [5])


@pytest.mark.slow
def test_a_training_writes_back_where_it_was_asked(server, tmp_path):
    uri = f"sqlite:///{tmp_path}/jobs.db"
    copy("sample:600", uri)
    with closing(open_store(uri)) as store:
        store.put(JOBS, frame(JOBS, [record(memory=0.1)]))
    done = mlflow_run(server, "main", data=uri, output=tmp_path / "out", config=FAST, writeback="true")
    assert done.returncode == 0, done.stderr[-3000:]
    (tree,) = (tmp_path / "out").iterdir()
    latest = pd.read_csv(tree / "data" / "latest.csv", float_precision="round_trip").set_index("ipst").sort_index()
    with closing(open_store(uri)) as store:
        found = contents(store, JOBS).set_index("ipst")
    assert pd.isna(found.loc["j8c601020", "trained_at"])
    found = found.drop(index="j8c601020").sort_index()
    assert found["trained_at"].unique().tolist() == [int(tree.name.rpartition("-")[2])]
    assert found.index.tolist() == latest.index.tolist()
    for name in ("bin_pred", "mem_pred", "wall_pred", "wc_mean", "wc_std", "wc_err", "split", "total_mb"):
        assert found[name].tolist() == latest[name].tolist(), name
