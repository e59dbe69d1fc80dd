"""Cross-validation: folds that do not depend on one another, in processes of which any may die."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from scipy import stats

from calmlflow import load_results
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.runs import folds
from calmlflow.runs.crossval import KEPT, CrossvalRequest, cross_validate, spread
from calmlflow.runs.data import load_training_data
from calmlflow.server.processes import wait_until
from tests.samples.commands import environment, run, started
from tests.samples.dask_cluster import dask_cluster

ROOT = Path(__file__).parents[2]
TARGETS = ("mem_bin", "memory", "wallclock")
TINY = {name: {"epochs": 40, "refit_epochs": 0, "members": 2} for name in ("mem_clf", "mem_reg", "wall_reg")}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """Worker processes of a process; the helper that multiprocessing starts as well is none."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            try:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
            except OSError:
                continue
    return found


def test_the_interval_is_students():
    values = [0.91, 0.94, 0.97, 0.93]
    found = spread(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert spread([0.5]) == (0.5, None, None, None)


# -- The entry point ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def command(output: Path, config: Path, **more: object) -> list[str]:
    options = {"data": "sample:400", "folds": 3, "config": config, "output": output, **more}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "entrypoints.crossval", *words]


def runs_of(server, experiment: str) -> list:
    from mlflow import MlflowClient

    api = MlflowClient(server.tracking_uri)
    return api.search_runs([api.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.run_name"])


@pytest.fixture(scope="module")
def done(server, tiny, tmp_path_factory) -> Path:
    """A cross-validation by two workers; gives the folder it left."""
    output = tmp_path_factory.mktemp("crossval")
    found = run(server, *command(output, tiny, workers=2), MLFLOW_EXPERIMENT_NAME="crossval")
    assert (found.returncode, found.stderr) == (0, "")
    (tree,) = output.iterdir()
    return tree


@pytest.mark.slow
def test_one_parent_with_a_child_per_fold_and_summaries(server, done):
    *_, parent = sorted(runs_of(server, "crossval"), key=lambda run: run.info.run_name == "crossval")
    children = [run for run in runs_of(server, "crossval") if run.info.run_name != "crossval"]
    assert [run.info.run_name for run in children] == ["fold-01", "fold-02", "fold-03"]
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.data.params["folds"] == "3"
    assert parent.data.params["mem_clf_epochs"] == "40"
    pictures = {
        one.path for one in mlflow.MlflowClient(server.tracking_uri).list_artifacts(parent.info.run_id, "plots/mem_bin")
    }
    assert pictures >= {"plots/mem_bin/confusion.png", "plots/mem_bin/confusion_decided.png"}
    assert [found.tags[0].value for found in parent.inputs.dataset_inputs] == ["cross-validation"]
    for score in ("mem_bin_accuracy", "memory_rmse", "wallclock_log_mae"):
        values = [run.data.metrics[f"test_{score}"] for run in children]
        mean, sd, low, high = (parent.data.metrics[f"kfold_{score}_{part}"] for part in ("mean", "sd", "low", "high"))
        assert (mean, sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        # The 97.5 % point of Student's t with two degrees of freedom is 4.303.
        assert high - mean == pytest.approx(mean - low) == pytest.approx(4.303 * sd / math.sqrt(3), rel=1e-3)


@pytest.mark.slow
def test_spacekit_loads_the_standard_files_of_every_job_held_out_once(done):
    from spacekit.extractor.load import load_multitype_data

    jobs, results = load_training_data("sample:400", 0, 0.2).jobs, load_results(done)
    for target in TARGETS:
        split = getattr(results, target).test_idx
        assert split.index.tolist() == jobs["ipst"].tolist()
        np.testing.assert_allclose(split.to_numpy(), jobs[target].to_numpy())
        kfold = load_multitype_data(str(done / "results" / target))["kfold"]
        assert set(kfold) >= {"results", "score", "time"}
        assert len(kfold["results"]) == 3
        mean = np.mean(kfold["results"])
        # As it computes the score itself.
        assert kfold["score"] == pytest.approx(mean if target == "mem_bin" else np.sqrt(np.abs(mean)))


def scores_in(tree: Path, target: str) -> dict:
    scores = json.loads((tree / "results" / target / "kfold.json").read_text())["scores"]
    return {name: found["folds"] for name, found in scores.items()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_workers_change_no_number(server, done, tiny, tmp_path):
    env = environment(server, MLFLOW_EXPERIMENT_NAME="crossval-killed")
    with started(
        command(tmp_path, tiny, workers=1, networks="mem_clf,mem_reg"), cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert wait_until(lambda: parent.poll() is not None or children_of(parent.pid), 120)
        os.kill(children_of(parent.pid)[0], signal.SIGKILL)
        _, stderr = parent.communicate(timeout=300)
    assert (parent.returncode, stderr) == (0, "")
    assert {run.info.status for run in runs_of(server, "crossval-killed")} == {"FINISHED"}
    (tree,) = tmp_path.iterdir()
    for target in ("mem_bin", "memory"):
        assert scores_in(tree, target) == scores_in(done, target)


@pytest.mark.slow
def test_on_a_cluster_numbers_are_the_same_when_a_worker_is_killed(server, done, tiny, tmp_path):
    env = environment(server, MLFLOW_EXPERIMENT_NAME="crossval-cluster")
    with dask_cluster(tmp_path / "dask", env) as cluster, started(
        command(tmp_path / "out", tiny, scheduler=cluster.address), cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        kept = tmp_path / "out" / KEPT
        assert wait_until(lambda: parent.poll() is not None or list(kept.glob("*.npz")), 120)
        assert parent.poll() is None
        cluster.workers[0].kill()
        _, stderr = parent.communicate(timeout=300)
    assert (parent.returncode, stderr) == (0, "")
    (tree,) = (tmp_path / "out").iterdir()
    for target in TARGETS:
        assert scores_in(tree, target) == scores_in(done, target)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_ended_run_leaves_no_worker(server, tiny, tmp_path, number, status):
    env = environment(server, MLFLOW_EXPERIMENT_NAME=f"crossval-ended-{number}")
    with started(command(tmp_path, tiny, workers=2), cwd=ROOT, env=env, stderr=subprocess.PIPE) as parent:
        assert wait_until(lambda: parent.poll() is not None or len(children_of(parent.pid)) == 2, 300)
        workers = children_of(parent.pid)
        parent.send_signal(number)
        parent.wait(120)
    assert parent.returncode == status
    assert wait_until(lambda: not any(map(is_alive, workers)), 60)
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []
        statuses = {run.info.run_name: run.info.status for run in runs_of(server, f"crossval-ended-{number}")}
        assert statuses["crossval"] == "FAILED"


def failing(task):
    """Run a fold of the classifier, raise for one of mem_reg, and end the process for one of wall_reg."""
    if task["network"] == "mem_clf":
        return folds.run_fold(task)
    if task["network"] == "mem_reg":
        raise ValueError("no\nluck")
    os._exit(7)


@pytest.mark.slow
def test_a_network_without_any_fold_fails_the_run_and_keeps_the_others(tracking, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folds, "run_fold", failing)
    with pytest.raises(CalmlflowError, match=r"no fold of memory and wallclock succeeded.*no luck"):
        cross_validate(CrossvalRequest("sample:400", str(tmp_path), 0, 2, "all", str(tiny)))
    (tree,) = tmp_path.iterdir()
    assert [path.name for path in (tree / "results").iterdir()] == ["mem_bin"]
    warnings = capsys.readouterr().err.splitlines()
    assert {line for line in warnings if "wallclock" in line} == {
        f"warning: fold {fold} of wallclock failed: its worker process was killed" for fold in (1, 2)
    }
    assert len(warnings) == 4
    found = mlflow.search_runs(output_format="list", order_by=["attributes.start_time DESC"])
    parent = next(run for run in found if run.info.run_name == "crossval")
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FAILED"
    assert {run.info.run_name: run.info.status for run in children} == {"fold-01": "FAILED", "fold-02": "FAILED"}


@pytest.mark.slow
def test_by_time_the_first_fold_is_not_scored(tracking, tiny, tmp_path):
    request = CrossvalRequest("sample:400", str(tmp_path), 0, 3, "mem_reg", str(tiny), 1, "time")
    outcome = cross_validate(request)
    assert mlflow.get_run(outcome.run_id).data.params["split"] == "time"
    (tree,) = tmp_path.iterdir()
    assert json.loads((tree / "results" / "memory" / "kfold.json").read_text())["folds"] == [2, 3]
    jobs = load_training_data("sample:400", 0, 0.2).jobs.set_index("ipst")["timestamp"]
    scored = load_results(tree).memory.test_idx.index
    assert jobs.drop(scored).max() < jobs[scored].min()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": 1}, "folds is 1; expected"),
        ({"folds": 401}, "folds is 401; expected"),
        ({"folds": 90}, "split=programme of 90 folds and seed 0 trains on .* holds out"),
        ({"split": "visit"}, "split is 'visit'; expected"),
        ({"workers": -1}, "workers is -1; expected"),
        ({"networks": "forest"}, "'forest' does not exist"),
        ({"config": "none.json"}, "none.json cannot be read"),
    ],
)
def test_a_bad_value_is_one_sentence_and_a_failed_run(tracking, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        cross_validate(CrossvalRequest(**{"data": "sample:400", "output": str(tmp_path), **change}))
    assert mlflow.last_active_run().info.status == "FAILED"
    assert list(tmp_path.iterdir()) == []
