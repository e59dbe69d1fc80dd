"""Search: scored on training jobs alone, resumed wherever it was killed."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.config import DEFAULTS, Searched, TrainingConfig, read_config, read_found_on
from calmlflow.runs.data import load_training_data
from calmlflow.runs.tune import KEPT, TuneRequest, ended_trials, objective_of, search_space, tune
from calmlflow.server.processes import wait_until
from calmlflow.storage.files import locked
from tests.samples.commands import environment, started
from tests.samples.dask_cluster import dask_cluster

ROOT = Path(__file__).parents[2]
TINY = {name: {"epochs": 45, "refit_epochs": 0, "members": 2} for name in ("mem_clf", "mem_reg", "wall_reg")}
TRIALS = 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


# The first call imports TensorFlow.
@settings(deadline=None)
@given(
    network=st.sampled_from(["mem_clf", "mem_reg", "wall_reg"]),
    epochs=st.integers(1, 100_000),
    refit_epochs=st.integers(0, 100_000),
    members=st.integers(2, 16),
    learning_rate=st.floats(1e-7, 1.0),
    weight_decay=st.sampled_from([0.0, 1e-322]) | st.floats(1e-9, 1.0),
    linear_share=st.floats(0.0, 1.0),
)
def test_whatever_is_searched_is_a_config_and_the_start_lies_inside(network, **given_values):
    start = TrainingConfig(**given_values)
    for name, (low, high, log) in search_space(network, start).items():
        assert low <= getattr(start, name) <= high
        assert not log or low > 0
        # A config that is out of range, or not a whole number where one is due, cannot be made.
        replace(start, **{name: low})
        replace(start, **{name: high})


def test_objectives():
    assert objective_of("mem_clf", {"log_loss": 0.3, "accuracy": 0.9}) == 0.3
    value = objective_of("wall_reg", {"rmse": 8.0, "mae": 4.0, "log_mae": 2.0})
    assert value == pytest.approx(4.0)


def command(output: Path, config: Path, **more: object) -> list[str]:
    options = {"data": "sample:400", "network": "mem_clf", "trials": TRIALS, "config": config, "output": output, **more}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "entrypoints.tune", *words]


def trials_in(output: Path) -> list[tuple[int, str]]:
    try:
        with sqlite3.connect(f"file:{output / 'study.db'}?mode=ro", uri=True) as database:
            return database.execute("SELECT number, state FROM trials ORDER BY number").fetchall()
    except sqlite3.Error:
        return []


def ended(output: Path) -> list:
    """Values and state of the trials that count, in order."""
    import optuna

    study = optuna.load_study(study_name="mem_clf", storage=f"sqlite:///{output / 'study.db'}")
    return [(trial.params, trial.value, trial.state) for trial in ended_trials(study)]


def runs_of(server) -> dict:
    """The trials' runs by name, and the searches' by number."""
    from mlflow import MlflowClient

    api = MlflowClient(server.tracking_uri)
    experiment = api.get_experiment_by_name("tune-killed")
    found = api.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]) if experiment else []
    searches = [run for run in found if run.info.run_name == "tune"]
    return dict(enumerate(searches)) | {run.info.run_name: run for run in found if run not in searches}


@pytest.fixture(scope="module")
def killed(server, tiny, tmp_path_factory) -> tuple[Path, list[tuple[int, str]]]:
    """A search that was killed amid the folds of its trials and then asked for again; its folder, and what it held."""
    output = tmp_path_factory.mktemp("killed")
    env = environment(server, MLFLOW_EXPERIMENT_NAME="tune-killed")
    with started(command(output, tiny), cwd=ROOT, env=env, stderr=subprocess.PIPE) as first:
        assert wait_until(lambda: first.poll() is not None or list((output / KEPT).glob("*.npz")), 120)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate(timeout=120)
    assert first.returncode == -signal.SIGKILL
    before = trials_in(output)
    again = subprocess.run(command(output, tiny), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert (again.returncode, again.stderr) == (0, "")
    return output, before


def search(output: Path, tiny: Path, **change):
    given_values = {"network": "mem_clf", "trials": TRIALS, "config": str(tiny), "output": str(output), **change}
    return tune(TuneRequest(**{"data": "sample:400", **given_values}))


@pytest.mark.slow
def test_a_killed_search_ends_as_one_on_a_cluster_that_nothing_happened_to(server, killed, tiny, tmp_path):
    output, before = killed
    # What was under way was drawn again once.
    assert before == [(number, "RUNNING") for number in range(TRIALS)]
    after = trials_in(output)
    assert len(after) == 2 * TRIALS
    assert {state for _, state in after[:TRIALS]} == {"FAIL"}
    assert not (output / KEPT).exists()
    env = environment(server, MLFLOW_EXPERIMENT_NAME="tune-cluster")
    with dask_cluster(tmp_path / "dask", env) as cluster:
        words = command(tmp_path, tiny, scheduler=cluster.address)
        for _ in range(2):
            found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
            assert (found.returncode, found.stderr) == (0, "")
    # Asked for once more, a search that is done does nothing.
    assert len(trials_in(tmp_path)) == TRIALS
    assert ended(output) == ended(tmp_path)
    assert json.loads((output / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


@pytest.mark.slow
def test_trials_are_child_runs(server, killed):
    from mlflow import MlflowClient

    runs = runs_of(server)
    trials = {name: run for name, run in runs.items() if isinstance(name, str)}
    assert sorted(trials) == [f"mem_clf-trial-{number:03d}" for number in range(TRIALS, 2 * TRIALS)]
    # The killed search no longer claims to run.
    assert [run.info.status for run in (runs[0], runs[1])] == ["KILLED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {runs[1].info.run_id}
    for run in trials.values():
        assert run.info.status == "FINISHED"
        assert run.data.params["learning_rate"]
        assert run.data.tags["trial_state"] in ("complete", "pruned")
        assert run.data.metrics["log_loss"] > 0
    artifacts = MlflowClient(server.tracking_uri).list_artifacts(runs[1].info.run_id)
    assert [artifact.path for artifact in artifacts] == ["config.json"]
    assert [found.tags[0].value for found in runs[1].inputs.dataset_inputs] == ["tuning"]
    counts = [runs[1].data.metrics[f"trials_mem_clf_{state}"] for state in ("complete", "pruned", "failed")]
    assert sum(counts) == TRIALS


@pytest.mark.slow
def test_the_winner_is_a_config_and_the_best_trial(killed):
    output, _ = killed
    configs = read_config(str(output / "config.json"))
    complete = [(value, params) for params, value, state in ended(output) if state.name == "COMPLETE"]
    value, params = min(complete, key=lambda found: found[0])
    assert math.isfinite(value)
    assert {name: found for name, found in asdict(configs["mem_clf"]).items() if name in params} == params
    # More members are always better and slower: nothing to search for.
    assert "members" not in params
    assert configs["mem_clf"].members == 2
    assert configs["mem_reg"] == DEFAULTS["mem_reg"]
    found_on = read_found_on(str(output / "config.json"))
    data = load_training_data("sample:400", 0, 0.2, "programme")
    newest = data.jobs["timestamp"].iloc[data.train].max()
    assert found_on == {"mem_clf": Searched("sample:400", "programme", 0, 0.2, newest)}
    # The first trial is the config that the search set out from.
    first, *_ = ended(output)
    assert first[0]["epochs"] == 45
    assert first[0]["learning_rate"] == DEFAULTS["mem_clf"].learning_rate


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trials": 0}, "trials is 0; expected"),
        ({"network": "forest"}, "'forest' does not exist"),
        ({"split": "job"}, "holds a search for mem_clf with split programme, not job"),
        ({"seed": 1}, "holds a search for mem_clf with seed 0, not 1"),
        ({"data": "sample:401"}, "holds a search for mem_clf with data sample:400, not sample:401"),
        ({"config": "default"}, "holds a search for mem_clf with config"),
    ],
)
@pytest.mark.slow
def test_a_bad_value_is_one_sentence(killed, tiny, tracking, change, words):
    before = trials_in(killed[0])
    with pytest.raises(InputError, match=words):
        search(killed[0], tiny, **change)
    assert trials_in(killed[0]) == before


def test_a_search_that_ends_while_it_logs_a_generation_goes_on_as_if_it_had_not(tiny, tracking, tmp_path, monkeypatch):
    import mlflow

    from calmlflow.runs import tune as module

    def score(trials, *_):
        for trial in trials:
            trial.scores.append({"log_loss": trial.config.learning_rate})
        return []

    monkeypatch.setattr(module, "_score", score)
    search(tmp_path / "whole", tiny, trials=16)
    set_tag, logged = mlflow.set_tag, []

    def killed(key, value):
        logged.append(key)
        if logged.count("trial_state") == 13:
            raise KeyboardInterrupt
        set_tag(key, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow, "set_tag", killed)
        search(tmp_path / "killed", tiny, trials=16)
    search(tmp_path / "killed", tiny, trials=16)
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")


def test_one_search_at_a_time(tiny, tracking, tmp_path):
    with locked(tmp_path / ".study.lock"), pytest.raises(CalmlflowError, match="another search runs in"):
        search(tmp_path, tiny)


def test_a_database_that_cannot_be_used_is_named(tiny, tracking, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    for output, words in ((tmp_path, "not a database"), (tmp_path / "study.db", "File exists")):
        with pytest.raises(CalmlflowError, match=rf"study.db cannot be used .*{words}"):
            search(output, tiny)
