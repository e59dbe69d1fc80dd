"""Predictions are kept one by one, whole, by many processes at once; or the failure is told."""

import json
import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import calmlflow.storage.s3
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, Features
from calmlflow.predictor import emit
from calmlflow.predictor.emit import open_emitter, prediction_record

FEATURES_OF_JOB = Features(17, 10, 1, 0, 2, 0, 0, 1, 0)
ANSWER = {
    "memBin": 2,
    "memVal": 8.89,
    "clockTime": 149,
    "killTime": 465,
    "probabilities": [0.1, 0.2, 0.3, 0.4],
    "unseen": True,
    "version": "7",
    "source": "cache",
}
RECORD = prediction_record("J8C601020", FEATURES_OF_JOB, ANSWER, 1_700_000_000.5)
BUCKET = "calcloud-processing"


def test_a_record_has_the_columns_of_the_jobs_own():
    assert RECORD == {
        "ipst": "j8c601020",
        "timestamp": 1_700_000_000.5,
        **{"n_files": 17, "total_mb": 10, "drizcorr": 1, "pctecorr": 0, "crsplit": 2},
        **{"subarray": 0, "detector": 0, "dtype": 1, "instr": 0},
        **{"bin_pred": 2, "mem_pred": 8.89, "wall_pred": 149, "kill_time": 465},
        **{"prob_2g": 0.1, "prob_8g": 0.2, "prob_16g": 0.3, "prob_64g": 0.4},
        **{"unseen": True, "version": "7", "source": "cache"},
    }


def test_every_record_has_all_columns():
    mosaic = prediction_record("acs_8ph_01", None, {"memBin": 1, "source": "policy"}, 5)
    assert list(mosaic) == list(RECORD)
    assert {mosaic[name] for name in (*FEATURES, "prob_2g", "mem_pred", "version", "unseen")} == {None}
    assert (mosaic["ipst"], mosaic["bin_pred"], mosaic["source"]) == ("acs_8ph_01", 1, "policy")


# -- Lines ----------------------------------------------------------------------------------------------------------


def records_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_prediction_becomes_a_line(tmp_path):
    path = tmp_path / "not there yet" / "predictions.jsonl"
    keep = open_emitter(str(path))
    keep(RECORD)
    keep({**RECORD, "mem_pred": float("nan")})
    open_emitter(str(path))(RECORD)
    assert records_in(path) == [RECORD, {**RECORD, "mem_pred": None}, RECORD]


def _write_many(path: str, writer: int) -> None:
    keep = open_emitter(path)
    threads = [
        threading.Thread(target=lambda: [keep({"writer": writer, "text": "x" * 9000}) for _ in range(20)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_processes_write_whole_lines_to_one_file(tmp_path):
    path = tmp_path / "predictions.jsonl"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(str(path), number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = records_in(path)
    assert [sum(record["writer"] == number for record in found) for number in range(4)] == [40] * 4
    assert {len(record["text"]) for record in found} == {9000}


def test_half_a_line_of_a_killed_writer_spoils_no_other(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"ipst": "j8c6')
    open_emitter(str(path))(RECORD)
    assert path.read_text().startswith('{"ipst": "j8c6\n')
    assert json.loads(path.read_text().splitlines()[1]) == RECORD


def test_a_disk_that_is_full_leaves_no_half_line(tmp_path):
    # A limit on the size of files stands in for the disk: the first write comes short, the second fails.
    path = tmp_path / "predictions.jsonl"
    code = f"""
import resource, signal
from calmlflow.errors import CalmlflowError
from calmlflow.predictor.emit import open_emitter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
keep = open_emitter({str(path)!r})
keep({{"n": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    keep({{"text": "x" * 500}})
except CalmlflowError as error:
    print(error)
keep({{"n": 2}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path} cannot be written (File too large); expected a file of yours\n"
    assert records_in(path) == [{"n": 1}, {"n": 2}]


def test_what_is_in_the_way_of_the_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CalmlflowError, match="file cannot be made"):
        open_emitter(str(tmp_path / "file" / "predictions.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(CalmlflowError, match=r"folder.jsonl cannot be written \(Is a directory\)"):
        open_emitter(str(tmp_path / "folder.jsonl"))(RECORD)


# -- Objects --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_client_of_another_test():
    calmlflow.storage.s3._kept_client.cache_clear()
    yield
    calmlflow.storage.s3._kept_client.cache_clear()


@pytest.mark.parametrize(("prefix", "folder"), [("/kept/here", "kept/here/"), ("/kept/", "kept/"), ("", "")])
def test_each_prediction_becomes_an_object(s3, prefix, folder):
    record = {**RECORD, "ipst": f"j{abs(hash(prefix)) % 10**7:07d}0"}
    keep = open_emitter(f"s3://{BUCKET}{prefix}")
    keep(record)
    keep({**record, "bin_pred": 3})
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}{record['ipst']}/")["Contents"]
    bodies = [json.loads(s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()) for each in found]
    # Their names are in the order of time.
    assert bodies == [record, {**record, "bin_pred": 3}]
    assert all(each["Key"].endswith(".json") for each in found)


def test_a_store_that_refuses_is_told(tracking, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with pytest.raises(CalmlflowError, match=rf"s3://{BUCKET}/a/j8c601020/.* cannot be written \(") as caught:
        open_emitter(f"s3://{BUCKET}/a")(RECORD)
    assert "hidden" not in str(caught.value)


def test_a_store_out_of_reach_is_told(monkeypatch, ports):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{ports[0]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CalmlflowError, match="EndpointConnectionError"):
        open_emitter("s3://bucket")(RECORD)


# -- Other URIs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "predictions.csv",
        "predictions.jsonl.gz",
        "ftp://host/a.jsonl",
        "sqlite:///a.db",
        "a\0.jsonl",
        "S3://bucket/a",
    ],
)
def test_anything_else_is_told_what_is_accepted(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"expected a path that ends in \.jsonl, or s3://bucket/prefix"):
        open_emitter(uri)
    assert not list(tmp_path.iterdir())


def test_a_password_in_a_uri_is_not_told():
    with pytest.raises(InputError) as caught:
        open_emitter("postgresql://me:hidden@host/db")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://", "s3://B/a", "s3://bucket/../other", "s3://bucket/a\nb"])
def test_no_object_is_written_where_s3_has_no_room(uri):
    with pytest.raises(InputError, match="expected"):
        open_emitter(uri)


def test_a_store_may_be_added_for_a_scheme(monkeypatch):
    kept = []
    monkeypatch.setitem(emit.OPENERS, "list", lambda uri: lambda record: kept.append((uri, record)))
    open_emitter("list://here")(RECORD)
    assert kept == [("list://here", RECORD)]
