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
from calmlflow.runs.tune import TuneRequest, ended_trials, objective_of, search_space, tune
from calmlflow.server.processes import wait_until
from tests.samples.commands import environment, started

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
    assert objective_of("mem_clf", {"log_loss": 0.3, "accuracy": 0.9}) == ("log_loss", 0.3)
    name, value = objective_of("wall_reg", {"rmse": 8.0, "mae": 4.0, "log_mae": 2.0})
    assert (name, value) == ("error", pytest.approx(4.0))


def command(output: Path, config: Path, **more: object) -> list[str]:
    options = {"data": "sample:400", "network": "mem_clf", "trials": TRIALS, "config": config, "output": output, **more}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "entrypoints.tune", *words]


def trials_in(output: Path, condition: str = "") -> list[tuple[int, str]]:
    try:
        with sqlite3.connect(f"file:{output / 'study.db'}?mode=ro", uri=True) as database:
            return database.execute(f"SELECT number, state FROM trials {condition} ORDER BY number").fetchall()
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
    """A search that was killed in the middle of a trial and then asked for again; its folder, and what it held then."""
    output = tmp_path_factory.mktemp("killed")
    env = environment(server, MLFLOW_EXPERIMENT_NAME="tune-killed")

    def is_amid() -> bool:
        # The trial must know its run: a search that is killed before has no run to end.
        known = trials_in(output, "JOIN trial_user_attributes USING (trial_id) WHERE key = 'run_id'")
        return dict(known).get(2) == "RUNNING"

    with started(command(output, tiny), cwd=ROOT, env=env, stderr=subprocess.PIPE) as search:
        assert wait_until(lambda: search.poll() is not None or is_amid(), 120)
        os.kill(search.pid, signal.SIGKILL)
        search.communicate(timeout=120)
    assert search.returncode == -signal.SIGKILL
    before = trials_in(output)
    # The killed trial counts as killed after a second instead of a minute.
    code = f"""
from calmlflow.runs import tune
tune.GRACE_S = 1
tune.tune(tune.TuneRequest("sample:400", "mem_clf", {TRIALS}, output={str(output)!r}, config={str(tiny)!r}))
"""
    again = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert (again.returncode, again.stderr) == (0, "")
    return output, before


def search(output: Path, tiny: Path, **change):
    given_values = {"network": "mem_clf", "trials": TRIALS, "config": str(tiny), "output": str(output), **change}
    return tune(TuneRequest(**{"data": "sample:400", **given_values}))


@pytest.mark.slow
def test_a_killed_search_does_what_is_left_and_ends_as_if_nothing_had_happened(killed, tiny, tracking, tmp_path):
    output, before = killed
    after = trials_in(output)
    # Nothing that had ended was done again, and what was under way was begun again once.
    assert [trial for trial in after if trial in before] == [trial for trial in before if trial[1] != "RUNNING"]
    assert dict(after)[2] == "FAIL"
    assert len(after) == TRIALS + 1
    outcome = search(tmp_path, tiny)
    # Asked for once more, a search that is done does nothing.
    done = trials_in(tmp_path)
    search(tmp_path, tiny)
    assert trials_in(tmp_path) == done
    resumed, uninterrupted = ended(output), ended(tmp_path)
    assert [(params, state) for params, _, state in resumed] == [(params, state) for params, _, state in uninterrupted]
    # This process has its own memory layout, and with it its own last bits.
    assert [value for _, value, _ in resumed] == pytest.approx([value for _, value, _ in uninterrupted], rel=1e-3)
    assert json.loads((output / "config.json").read_text()) == json.loads(outcome.config.read_text())


@pytest.mark.slow
def test_trials_are_child_runs(server, killed):
    from mlflow import MlflowClient

    runs = runs_of(server)
    trials = {name: run for name, run in runs.items() if isinstance(name, str)}
    assert sorted(trials) == [f"mem_clf-trial-{number:03d}" for number in range(TRIALS + 1)]
    # The killed search and its trial no longer claim to run.
    dead = trials.pop("mem_clf-trial-002")
    assert [run.info.status for run in (runs[0], dead, runs[1])] == ["KILLED", "KILLED", "FINISHED"]
    parents = [run.data.tags["mlflow.parentRunId"] for _, run in sorted(trials.items())]
    assert parents == [runs[number].info.run_id for number in (0, 0, *[1] * (TRIALS - 2))]
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


def test_a_database_that_cannot_be_used_is_named(tiny, tracking, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database at all" * 100)
    for output, words in ((tmp_path, "not a database"), (tmp_path / "study.db", "File exists")):
        with pytest.raises(CalmlflowError, match=rf"study.db cannot be used .*{words}"):
            search(output, tiny)
