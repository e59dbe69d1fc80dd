"""Cross-validation: folds that know nothing of one another, in processes of which any may die."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calmlflow.runs.workers import Failure, share_out
from calmlflow.server.processes import wait_until
from tests.samples.commands import environment

ROOT = Path(__file__).parents[2]
TARGETS = ("mem_bin", "memory", "wallclock")
TINY = {name: {"epochs": 40, "refit_epochs": 0, "members": 2} for name in ("mem_clf", "mem_reg", "wall_reg")}


# -- Worker processes -----------------------------------------------------------------------------------------------


def work(shared, task):
    """What the workers of these tests do; a task is a number, or what is to happen."""
    if task == "raise":
        raise ValueError("no\nway")
    if task == "exit":
        os._exit(7)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "wait":
        signal.pause()
    return os.getpid() if task == "pid" else shared * task


@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_that_fails_takes_no_other_along(workers):
    found = dict(share_out(work, 10, [1, "raise", 2, "kill", 3, "exit", 4, 5], workers))
    assert {task: result for task, result in found.items() if isinstance(task, int)} == {n: 10 * n for n in range(1, 6)}
    assert found["raise"] == Failure("no way")
    assert found["kill"] == Failure("its worker process was ended by SIGKILL")
    assert found["exit"] == Failure("its worker process ended with status 7")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_whoever_asked_for_them():
    results = share_out(work, 1, ["pid", "wait", "wait"], 2)
    _, pid = next(results)
    assert is_alive(pid)
    results.close()
    assert not is_alive(pid)


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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    code = (
        "from tests.runs.test_crossval import *\n"
        "if __name__ == '__main__': list(share_out(work, 1, ['wait', 'wait'], 2))"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    with subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path}) as parent:
        assert wait_until(lambda: len(children_of(parent.pid)) == 2, 60)
        workers = children_of(parent.pid)
        parent.kill()
    assert wait_until(lambda: not any(map(is_alive, workers)), 60)


# -- Folds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    from calmlflow.runs.data import load_training_data

    return load_training_data("sample:400", 0, 0.2)


def test_a_fold_is_cut_from_its_pool_and_no_other_job_takes_part(data):
    from calmlflow.networks.preprocess import deal
    from calmlflow.networks.scaling import fit_scaling
    from calmlflow.runs.folds import hold_out

    dealt = deal(data.jobs["mem_bin"].to_numpy()[data.train], 3, 0, True)
    for fold in range(3):
        held = hold_out(data, data.train, dealt, fold)
        np.testing.assert_array_equal(np.sort(np.concatenate([held.train, held.test])), data.train)
        np.testing.assert_array_equal(held.test, data.train[dealt == fold])
        assert not set(held.test) & set(held.train)
        assert held.scaling == fit_scaling(data.features[held.train])


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg"])
def test_what_became_of_held_out_jobs_changes_no_answer(data, network):
    from dataclasses import replace

    from calmlflow.networks.preprocess import deal
    from calmlflow.networks.training import TrainingConfig
    from calmlflow.runs.folds import hold_out, train_and_score

    everyone = np.arange(len(data.jobs))
    dealt = deal(data.jobs["mem_bin"], 3, 0, True)
    held = hold_out(data, everyone, dealt, 1)
    jobs = data.jobs.copy()
    jobs.loc[jobs.index[held.test], ["memory", "wallclock", "mem_bin"]] = [50.0, 9e4, 3]
    config = TrainingConfig(**TINY[network])
    one, other = (train_and_score(network, replace(held, jobs=table), config, 5) for table in (data.jobs, jobs))
    np.testing.assert_array_equal(one.answers, other.answers)
    assert one.train_scores == other.train_scores
    assert one.scores != other.scores


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg", "wall_reg"])
def test_a_fold_scores_as_a_training_of_the_same_split(data, network, tmp_path):
    from calmlflow.networks.training import TrainingConfig
    from calmlflow.runs.fit import fit_network
    from calmlflow.runs.folds import train_and_score

    config = TrainingConfig(**TINY[network])
    trained = fit_network(network, data, config, 3, 0.0, tmp_path, lambda done, total, loss: None)
    found = train_and_score(network, data, config, 3)
    assert found.scores == pytest.approx(trained.scores, rel=1e-3)


def test_the_interval_is_students():
    from scipy import stats

    from calmlflow.runs.crossval import summarise

    values = [0.91, 0.94, 0.97, 0.93]
    found = summarise(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert summarise([0.5]) == (0.5, None, None, None)


def test_networks_are_named_or_refused():
    from calmlflow.errors import InputError
    from calmlflow.settings import parse_networks

    assert parse_networks("all") == ("mem_clf", "mem_reg", "wall_reg")
    assert parse_networks("wall_reg, mem_clf") == ("mem_clf", "wall_reg")
    with pytest.raises(InputError, match="'forest' does not exist"):
        parse_networks("mem_clf,forest")


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


def crossval(server, experiment: str, output: Path, config: Path, **more: object) -> subprocess.CompletedProcess[str]:
    env = environment(server, MLFLOW_EXPERIMENT_NAME=experiment)
    return subprocess.run(
        command(output, config, **more), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def runs_of(server, experiment: str) -> list:
    from mlflow import MlflowClient

    api = MlflowClient(server.tracking_uri)
    return api.search_runs([api.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.run_name"])


@pytest.fixture(scope="module")
def done(server, tiny, tmp_path_factory) -> Path:
    """A cross-validation by two workers; gives the folder it left."""
    output = tmp_path_factory.mktemp("crossval")
    found = crossval(server, "crossval", output, tiny, workers=2)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stderr == ""
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
    assert [found.tags[0].value for found in parent.inputs.dataset_inputs] == ["cross-validation"]
    for score in ("mem_bin_accuracy", "memory_rmse", "wallclock_log_mae"):
        values = [run.data.metrics[f"test_{score}"] for run in children]
        mean, sd, low, high = (parent.data.metrics[f"kfold_{score}_{part}"] for part in ("mean", "sd", "low", "high"))
        assert (mean, sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        # The 97.5 % point of Student's t with two degrees of freedom is 4.303.
        assert high - mean == pytest.approx(mean - low) == pytest.approx(4.303 * sd / math.sqrt(3), rel=1e-3)


@pytest.mark.slow
def test_the_standard_files_hold_every_job_held_out_once(done, data):
    from calmlflow import load_results

    results = load_results(done)
    for target in TARGETS:
        split = getattr(results, target).test_idx
        assert split.index.tolist() == data.jobs["ipst"].tolist()
        np.testing.assert_allclose(split.to_numpy(), data.jobs[target].to_numpy())


@pytest.mark.slow
def test_spacekit_loads_kfold(done):
    from spacekit.analyzer import compute
    from spacekit.extractor.load import load_multitype_data

    for target in TARGETS:
        kfold = load_multitype_data(str(done / "results" / target))["kfold"]
        assert set(kfold) >= {"results", "score", "time"}
        assert len(kfold["results"]) == 3
        mean = np.mean(kfold["results"])
        # As it computes the score itself.
        assert kfold["score"] == pytest.approx(mean if target == "mem_bin" else np.sqrt(np.abs(mean)))
    loader = compute.ComputeRegressor(res_path=str(done / "results" / "memory"), console=False, logfile=False)
    assert len(loader.load_results(loader.upload()).kfold["results"]) == 3


def scores_in(tree: Path) -> dict:
    return {
        target: {
            name: found["folds"]
            for name, found in json.loads((tree / "results" / target / "kfold.json").read_text())["scores"].items()
        }
        for target in TARGETS
        if (tree / "results" / target).exists()
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_killed_worker_loses_its_fold_alone_and_workers_change_no_number(server, done, tiny, tmp_path):
    env = environment(server, MLFLOW_EXPERIMENT_NAME="crossval-killed")
    with subprocess.Popen(
        command(tmp_path, tiny, workers=1, networks="mem_clf,mem_reg"), cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert wait_until(lambda: parent.poll() is not None or children_of(parent.pid), 120)
        os.kill(children_of(parent.pid)[0], signal.SIGKILL)
        stdout, stderr = parent.communicate(timeout=300)
    assert parent.returncode == 0, stderr[-3000:]
    assert stderr == "warning: fold 1 of mem_bin failed: its worker process was ended by SIGKILL\n"
    assert "1 of 3 folds of mem_bin failed" in stdout
    runs = {run.info.run_name: run for run in runs_of(server, "crossval-killed")}
    statuses = {name: run.info.status for name, run in runs.items()}
    assert statuses == {"crossval": "FINISHED", "fold-01": "FAILED", "fold-02": "FINISHED", "fold-03": "FINISHED"}
    assert "SIGKILL" in runs["fold-01"].data.tags["failure_mem_bin"]
    assert "test_memory_rmse" in runs["fold-01"].data.metrics
    assert runs["crossval"].data.metrics["folds_failed"] == 1
    (tree,) = tmp_path.iterdir()
    whole, without = scores_in(done), scores_in(tree)
    assert without["memory"] == whole["memory"]
    assert without["mem_bin"]["log_loss"] == whole["mem_bin"]["log_loss"][1:]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_terminated_run_leaves_no_worker_and_no_folder(server, tiny, tmp_path):
    env = environment(server, MLFLOW_EXPERIMENT_NAME="crossval-ended")
    with subprocess.Popen(command(tmp_path, tiny, workers=2), cwd=ROOT, env=env, stderr=subprocess.PIPE) as parent:
        assert wait_until(lambda: parent.poll() is not None or len(children_of(parent.pid)) == 2, 120)
        workers = children_of(parent.pid)
        parent.terminate()
        parent.communicate(timeout=120)
    assert parent.returncode == 143
    assert not any(map(is_alive, workers))
    assert list(tmp_path.iterdir()) == []
    assert {run.info.run_name: run.info.status for run in runs_of(server, "crossval-ended")}["crossval"] == "FAILED"


def test_a_network_without_any_fold_fails_the_run_and_keeps_the_others(tracking, tiny, tmp_path, monkeypatch):
    from calmlflow.errors import CalmlflowError
    from calmlflow.runs import crossval as module

    def all_but_memory(function, shared, tasks, workers):
        for task in tasks:
            yield task, Failure("no luck") if task.network == "mem_reg" else function(shared, task)

    monkeypatch.setattr(module, "share_out", all_but_memory)
    request = module.CrossvalRequest("sample:400", str(tmp_path), 0, 2, "mem_clf,mem_reg", str(tiny))
    with pytest.raises(CalmlflowError, match=r"no fold of memory succeeded.*no luck"):
        module.cross_validate(request)
    (tree,) = tmp_path.iterdir()
    assert [path.name for path in (tree / "results").iterdir()] == ["mem_bin"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": 1}, "folds is 1; expected"),
        ({"folds": 401}, "folds is 401; expected"),
        ({"workers": -1}, "workers is -1; expected"),
        ({"networks": "forest"}, "'forest' does not exist"),
        ({"config": "none.json"}, "none.json cannot be read"),
    ],
)
def test_a_bad_value_is_one_sentence_and_a_failed_run(tracking, tmp_path, change, words):
    import mlflow

    from calmlflow.errors import InputError
    from calmlflow.runs.crossval import CrossvalRequest, cross_validate

    with pytest.raises(InputError, match=words):
        cross_validate(CrossvalRequest(**{"data": "sample:400", "output": str(tmp_path), **change}))
    assert mlflow.last_active_run().info.status == "FAILED"
    assert list(tmp_path.iterdir()) == []
