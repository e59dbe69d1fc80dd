"""Two versions of the real server side by side, whatever of them can still be read."""

import json

import mlflow
import numpy as np
import pandas as pd

from calmlflow.registry.diff import as_text, compare_versions
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import log_model, register
from calmlflow.registry.tracking import lineage as dataset
from tests.registry.conftest import add
from tests.samples.console_command import run_here
from tests.samples.predictor_samples import NETWORKS, write_bundle, write_network


def new_run(params=(), metrics=(), jobs=None) -> str:
    with mlflow.start_run(nested=True) as run:
        mlflow.log_params(dict(params))
        mlflow.log_metrics(dict(metrics))
        if jobs is not None:
            mlflow.log_input(dataset(pd.DataFrame({"memory": jobs}), "sample", "training"), context="training")
        return run.info.run_id


def trained(client, model, seed: str, epochs: str, jobs: list[float], tags=()) -> None:
    """A version of a run with a child run for one network, which says again what jobs it saw."""
    child = new_run({"seed": seed, "epochs": epochs, "batch": "all"})
    parent = new_run({"seed": seed, "risk": "0.0"}, {"test_memory_rmse": 0.5}, jobs)
    add(client, model, run_id=parent, tags={"run.mem_reg": child, **dict(tags)})


# -- Parameters, scores, data, gate -----------------------------------------------------------------------------------


def test_parameters_that_differ_are_told_once(client, model):
    trained(client, model, "0", "100", [1.0])
    trained(client, model, "1", "200", [1.0])
    assert compare_versions("1", "2", model)["params"] == {"seed": ("0", "1"), "mem_reg.epochs": ("100", "200")}
    assert compare_versions("2", "2", model)["params"] == {}
    # As with main -P only=...: the network's run is another training's, with a seed of its own.
    client.set_model_version_tag(model, "2", "run.mem_reg", new_run({"seed": "7", "epochs": "100", "batch": "all"}))
    found = compare_versions("1", "2", model)["params"]
    assert found == {"seed": ("0", "1"), "mem_reg.seed": ("0", "7")}
    # A network that was trained alone is the whole run.
    for epochs in ("100", "200"):
        run_id = new_run({"epochs": epochs})
        add(client, model, run_id=run_id, tags={"run.mem_reg": run_id})
    assert compare_versions("3", "4", model)["params"] == {"epochs": ("100", "200")}


def test_scores_stand_side_by_side_from_tags_or_else_from_the_run(client, model):
    tags = Lineage("sample", 800, 0, None, {"memory": {"rmse": 0.25, "mae": 0.125}}, {}).tags(["mem_reg"])
    add(client, model, tags=tags)
    metrics = {"test_memory_rmse": 0.5, "floor_memory_rmse": 0.1, "test_memory_r2": 0.9, "test_mem_bin_accuracy": 0.75}
    run_id = new_run((), metrics)
    add(client, model, run_id=run_id)
    # Tags go before what a run says.
    add(client, model, run_id=run_id, tags={"score.memory.rmse": "0.75"})
    assert compare_versions("1", "2", model)["scores"] == {
        "memory.rmse": ("0.25", "0.5"),
        "memory.mae": ("0.125", None),
        "mem_bin.accuracy": (None, "0.75"),
    }
    found = compare_versions("1", "3", model)["scores"]
    assert found == {"memory.rmse": ("0.25", "0.75"), "memory.mae": ("0.125", None)}


def test_data_is_told_by_uri_counts_dates_and_digests(client, model):
    for source, newest, jobs in (("a.csv", 1_700_000_000, [1.0]), ("b.csv", 0, [2.0])):
        tags = Lineage(source, 800, newest, None, {}, {}).tags([])
        add(client, model, run_id=new_run(jobs=jobs), tags=tags)
    found = compare_versions("1", "2", model)["data"]
    digests = found.pop("digest of training jobs")
    assert None not in digests
    assert digests[0] != digests[1]
    assert found == {"data": ("a.csv", "b.csv"), "jobs": ("800", "800"), "newest job": ("2023-11-14", None)}


def test_the_gate_is_told_where_it_differs(client, model):
    add(client, model, tags={"gate": "passed", "gate.memory.mae": "passed: 0.1 (<= 0.2)", "gate.serving": "passed: x"})
    add(client, model, tags={"gate": "refused", "gate.memory.mae": "failed: 0.3 (<= 0.2)", "gate.serving": "passed: x"})
    assert compare_versions("1", "2", model)["gate"] == {
        "gate": ("passed", "refused"),
        "memory.mae": ("passed: 0.1 (<= 0.2)", "failed: 0.3 (<= 0.2)"),
    }


def test_files_are_told_by_their_sha256(client, model, tmp_path):
    one = write_bundle(tmp_path / "one")
    two = write_bundle(tmp_path / "two")
    write_network(two / "mem_reg" / "mem_reg.onnx", 1, seed=99)
    (two / "wall_reg" / "wall_reg.keras").write_bytes(b"of a test")
    (one / "decision.json").write_text(json.dumps({"risk": 0.0, "wallclock_ratio": np.ones((1, 4)).tolist()}))
    with mlflow.start_run():
        for folder in (one, two):
            register({model: log_model(folder, NETWORKS, model, {})}, Lineage("sample", 0, 0, None, {}, {}))
    found = compare_versions("1", "2", model)
    assert found["a"]["problems"] == found["b"]["problems"] == []
    assert found["files"] == {
        "decision.json": "only in A",
        "killtime.json": "same",
        "ladder.json": "same",
        "mem_clf/mem_clf.onnx": "same",
        "mem_reg/mem_reg.onnx": "changed",
        "tx_data.json": "same",
        "wall_reg/wall_reg.keras": "only in B",
        "wall_reg/wall_reg.onnx": "same",
    }
    text = as_text(found)
    assert "\nfiles of the bundle: 1 only in A, 5 same, 1 changed, 1 only in B\n" in text
    assert "  changed    mem_reg/mem_reg.onnx" in text.splitlines()
    assert "tx_data.json" not in text


# -- What cannot be read ----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_a_sentence_and_the_rest_is_told(client, model):
    add(client, model, run_id=new_run({"seed": "0"}), tags={"run.mem_clf": "0" * 32, "score.memory.rmse": "1"})
    add(client, model, run_id=new_run({"seed": "1"}))
    # A deleted run is read as long as it is there.
    client.delete_run(client.get_model_version(model, "2").run_id)
    found = compare_versions("1", "2", model)
    assert (found["params"], found["scores"], found["files"]) == (
        {"seed": ("0", "1")},
        {"memory.rmse": ("1", None)},
        {},
    )
    runs, files = found["a"]["problems"]
    assert runs == f"run {'0' * 32} cannot be read (RESOURCE_DOES_NOT_EXIST)"
    assert files.startswith(f"bundle.json of version 1 of {model} cannot be read (")
    assert len(found["b"]["problems"]) == 1
    assert f"not known of A: {runs}" in as_text(found).splitlines()


def test_a_damaged_list_of_files_is_a_sentence(client, model, tmp_path):
    folder = tmp_path / "artifacts" / "bundle"
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text('{"format": 1, "networks": ["x"], "sha256": {}}')
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path), "model")
    client.create_model_version(model, f"{run.info.artifact_uri}/model", run.info.run_id, await_creation_for=0)
    (problem,) = compare_versions("1", "1", model)["a"]["problems"]
    assert problem.startswith(f"version 1 of {model}")
    assert "bundle.json is damaged; expected format" in problem


def test_text_of_the_registry_neither_ends_a_line_nor_speaks_to_the_terminal(client, model):
    add(client, model, tags={"data": "a\nb\x1b[2J"})
    add(client, model, run_id=new_run({"config": "one\ntwo"}))
    lines = [line.split() for line in as_text(compare_versions("1", "2", model)).splitlines()]
    assert ["data", "a", "b", "[2J", "-"] in lines
    assert ["config", "-", "one", "two"] in lines


# -- The command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_text_or_json(capsys, client, model):
    trained(client, model, "0", "100", [1.0], {"data": "a.csv"})
    trained(client, model, "1", "100", [2.0], {"data": "b.csv"})
    status, out, err = run_here(capsys, "diff", "1", "@none-such", "--model", model)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"error: version @none-such of {model} does not exist in the registry; expected a stage")
    assert run_here(capsys, "diff", "1")[0] == 2

    status, out, err = run_here(capsys, "diff", "1", f"models:/{model}/2", "--model", model)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [f"A: version 1 of {model}", f"B: version 2 of {model}"]
    for words in (["seed", "0", "1"], ["data", "a.csv", "b.csv"], ["memory.rmse", "0.5", "0.5"]):
        assert words in [line.split() for line in lines], words

    status, out, err = run_here(capsys, "diff", "1", "2", "--model", model, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(found[side]["model"], found[side]["version"]) for side in "ab"] == [(model, 1), (model, 2)]
    assert (found["params"], found["data"]["data"]) == ({"seed": ["0", "1"]}, ["a.csv", "b.csv"])
    assert (found["scores"], found["files"], found["gate"]) == ({"memory.rmse": ["0.5", "0.5"]}, {}, {})
