"""Predictions that are kept in a store, and recorded predictions that are read."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.jobs import predictions as module
from calmlflow.jobs.predictions import open_store_emitter, read_recorded, store_predictions
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.jobs.stores.open import open_store
from calmlflow.predictor.emit import prediction_record
from calmlflow.storage.s3 import list_objects
from tests.samples.commands import run

FEATURES = (17, 10, 1, 0, 0, 0, 0, 1, 0)
ANSWER = {
    **{"memBin": 2, "memVal": 7.25, "clockTime": 100, "killTime": 360, "probabilities": [0.1, 0.2, 0.6, 0.1]},
    **{"unseen": True, "version": "7", "source": "registry"},
}


def kept(uri: str) -> list[dict]:
    with closing(open_store(uri)) as store:
        return pd.concat(store.read(PREDICTIONS)).sort_values(["ipst", "timestamp"]).to_dict("records")


def test_each_prediction_is_a_row(uri):
    emit = open_store_emitter(uri)
    emit(prediction_record("j8c601020", FEATURES, ANSWER, 1_700_000_000.25))
    emit(prediction_record("acs_8ph_01", None, {"memBin": 1, "source": "policy"}, 5.0))
    mosaic, job = kept(uri)
    expected = {
        **{"ipst": "j8c601020", "timestamp": 1_700_000_000.25, "n_files": 17, "total_mb": 10, "instr": 0},
        **{"bin_pred": 2, "mem_pred": 7.25, "wall_pred": 100, "kill_time": 360, "prob_2g": 0.1, "prob_64g": 0.1},
        **{"unseen": 1, "version": "7", "source": "registry"},
    }
    assert {name: job[name] for name in expected} == expected
    assert (mosaic["ipst"], mosaic["bin_pred"], mosaic["source"]) == ("acs_8ph_01", 1, "policy")
    assert pd.isna(mosaic["n_files"]) and pd.isna(mosaic["unseen"])


def test_threads_share_an_emitter(uri):
    emit = open_store_emitter(uri)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda moment: emit(prediction_record("j8c601020", FEATURES, ANSWER, float(moment))), range(40)))
    assert [row["timestamp"] for row in kept(uri)] == [float(number) for number in range(40)]


def test_an_answer_is_kept_while_a_shadow_answer_is_not(uri, monkeypatch):
    hanging, go = threading.Event(), threading.Event()
    put = module._put

    def put_late(store, rows):
        if rows["source"].eq("shadow").any():
            hanging.set()
            assert go.wait(60)
        put(store, rows)

    monkeypatch.setattr(module, "_put", put_late)
    emit = open_store_emitter(uri)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(emit, prediction_record("j8c601020", FEATURES, {**ANSWER, "source": "shadow"}, 2.0))
        assert hanging.wait(60)
        emit(prediction_record("j8c601020", FEATURES, ANSWER, 1.0))
        assert [row["source"] for row in kept(uri)] == ["registry"]
        go.set()
        late.result(60)
    assert [row["source"] for row in kept(uri)] == ["registry", "shadow"]


def test_a_file_of_many_predictions(uri, tmp_path):
    rows = pd.DataFrame({"ipst": ["j8c601020", "jother010", "j8c601020"], "bin_pred": [1, 0, 3]})
    rows.to_parquet(tmp_path / "p.parquet")
    assert store_predictions(tmp_path / "p.parquet", uri, "7") == 3
    found = [(row["ipst"], row["bin_pred"], row["version"]) for row in kept(uri)]
    assert found == [("j8c601020", 3, "7"), ("jother010", 0, "7")]


def test_predictions_of_some_datasets_are_read_from_a_store(uri):
    emit = open_store_emitter(uri)
    for moment, name in enumerate(("j8c601020", "j8c601020", "jother010")):
        emit(prediction_record(name, FEATURES, ANSWER, float(moment)))
    found = read_recorded(uri, ["j8c601020", "jnone0010"])
    assert found.predictions["ipst"].tolist() == ["j8c601020"] * 2
    assert found.predictions["kill_time"].tolist() == [360.0] * 2
    assert found.unreadable == 0


@pytest.mark.parametrize("prefix", ["some/where/", "some/where", ""])
def test_predictions_of_some_datasets_are_read_from_s3(s3, bucket, prefix):
    good = json.dumps({**prediction_record("j8c601020", FEATURES, ANSWER, 5.0), "mem_pred": "much", "own": 1})
    untimed = json.dumps(prediction_record("j8c601020", FEATURES, ANSWER, None))
    files = [("j8c601020/1", good), ("j8c601020/2", '{"half'), ("j8c601020/3", "[1]"), ("jother010/1", good)]
    files += [("j8c601020/4", untimed), ("j8c601020/5", good + " " * (1 << 20))]
    for name, text in files:
        s3.put_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/{name}.json".lstrip("/"), Body=text.encode())
    found = read_recorded(f"s3://{bucket}/{prefix}", ["j8c601020"])
    (row,) = found.predictions.to_dict("records")
    assert (row["ipst"], row["timestamp"], row["version"], row["unseen"]) == ("j8c601020", 5.0, "7", 1.0)
    assert pd.isna(row["mem_pred"])
    assert found.unreadable == 4
    with pytest.raises(CalmlflowError, match="cannot be listed"):
        read_recorded("s3://no-such-bucket/x", ["j8c601020"])


def test_an_object_that_vanishes_while_all_are_read_is_counted(s3, bucket, monkeypatch, caplog):
    record = json.dumps(prediction_record("j8c601020", FEATURES, ANSWER, 5.0)).encode()
    for number in range(2):
        s3.put_object(Bucket=bucket, Key=f"j8c601020/{number}.json", Body=record)

    def listed(*words):
        yield from list(list_objects(*words))
        s3.delete_object(Bucket=bucket, Key="j8c601020/0.json")

    monkeypatch.setattr("calmlflow.jobs.predictions.list_objects", listed)
    found = read_recorded(f"s3://{bucket}", ["j8c601020"])
    assert (len(found.predictions), found.unreadable) == (1, 1)
    assert "a prediction is left out: " in caplog.text


def test_a_store_that_is_away_costs_no_answer(server, tmp_path):
    uri = "postgresql://postgres@127.0.0.1:1/jobs"
    done = run(server, "calmlflow", "predict", "acs_8ph_01", "--emit", uri)
    assert (done.returncode, json.loads(done.stdout)["source"]) == (0, "policy")
    assert "was not kept" in done.stderr
