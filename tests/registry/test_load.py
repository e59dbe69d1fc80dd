"""Results opened by somebody who was not there: from a folder, a run, a registered version; without TensorFlow."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import calmlflow
from calmlflow import load_results
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.files import write_results
from calmlflow.results.regression import RegressionResults
from calmlflow.results.table import training_table
from tests.samples.results_samples import NEEDED, OPTIONAL, Bomb, classifier, same, save_objects, small

TARGETS = ("mem_bin", "memory", "wallclock")
BLOCKED = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Nowhere())
"""


def plain(loaded):
    """The result that was written, without what loading adds."""
    kind = ClassificationResults if isinstance(loaded, ClassificationResults) else RegressionResults
    return kind(**{field.name: getattr(loaded, field.name) for field in dataclasses.fields(kind)})


def some_jobs():
    """The three test jobs of `small`, and one that was trained on; with the bins that were decided on."""
    features = {
        "n_files": [17, 2, 4, 1], "total_mb": [10.0, 3.0, 60.0, 2.0], "drizcorr": [1, 0, 1, 0], "pctecorr": 0,
        "crsplit": [0, 1, 2, 0], "subarray": 0, "detector": [0, 0, 1, 0], "dtype": [1, 0, 1, 0], "instr": [0, 2, 3, 1],
    }  # fmt: skip
    names = ["j8c601020", "o4qpkupdq", "ib1f01020", "lbek01xyz"]
    jobs = pd.DataFrame({"ipst": names, "timestamp": 0, **features})
    jobs = jobs.assign(wallclock=[100.0, 200.0, 300.0, 50.0], memory=[0.5, 1.5, 20.0, 0.4], mem_bin=[0, 1, 3, 0])
    predictions = {"bin_pred": [0, 1, 2, 0], "mem_pred": [0.75, 1.5, 18.5, 0.4], "wall_pred": [90.0, 90, 310, 50]}
    return training_table(jobs, predictions, ["test", "test", "test", "train"])


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "2021-11-04-1636048291"
    for target in TARGETS:
        write_results(small(target), folder / "results" / target)
    (folder / "data").mkdir()
    some_jobs().to_csv(folder / "data" / "latest.csv", index=False)
    return folder


# -- A folder -------------------------------------------------------------------------------------------------------


def test_a_folder_gives_what_was_written(tree):
    opened = load_results(tree)
    for target in TARGETS:
        same(plain(getattr(opened, target)), small(target))
        assert getattr(opened, target).target == target
    pd.testing.assert_frame_equal(opened.jobs, some_jobs())
    assert opened.jobs is opened.wallclock.jobs
    assert opened.source == str(tree)
    assert opened.mem_bin.test_idx["o4qpkupdq"] == 1
    assert opened.memory.test_idx["ib1f01020"] == 20


@pytest.mark.parametrize("part", ["", "results", "results/mem_bin", "results/wallclock/"])
def test_any_folder_of_the_tree_opens_the_training(tree, part):
    opened = load_results(f"{tree}/{part}")
    assert list(opened.by_target()) == list(TARGETS)
    assert len(opened.jobs) == 4


def test_a_folder_of_one_target_opens_alone(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tree / "results" / "memory").rename(tmp_path / "elsewhere" / "memory")
    # A table that lies near by chance is not that of the training.
    shutil.copytree(tree / "data", tmp_path / "data")
    opened = load_results(tmp_path / "elsewhere" / "memory")
    assert list(opened.by_target()) == ["memory"]
    assert opened.jobs is None
    assert list(load_results(tree).by_target()) == ["mem_bin", "wallclock"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/folder", "no/such/folder"),
        ("s3://user:word@bucket/data", "results source is s3:"),
        ("runs:/", "runs:/RUN_ID"),
        ("models:/calcloud-predictor", "models:/NAME/VERSION"),
        ("models:/calcloud-predictor/Best", "stage 'Best' does not exist"),
        (__file__, "is no folder"),
    ],
)
def test_what_is_no_source_is_said(source, says):
    with pytest.raises(InputError, match=says) as caught:
        load_results(source)
    assert "word" not in str(caught.value)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} holds no results"):
        load_results(tmp_path)


# -- Damage and age -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "name"), [(target, name) for target in NEEDED for name in NEEDED[target]])
def test_a_missing_file_is_named(tree, target, name):
    (tree / "results" / target / name).unlink()
    with pytest.raises(InputError, match=f"results/{target}/{name} is missing"):
        load_results(tree)


def test_a_pickled_file_is_named_and_not_read(tree, tmp_path):
    bomb = Bomb(tmp_path / "bomb")
    save_objects(tree / "results" / "mem_bin" / "acc_loss.npz", "train_acc", bomb)
    with pytest.raises(InputError, match=r"mem_bin/acc_loss\.npz.*pickled"):
        load_results(tree)
    (tree / "results" / "memory" / "predictions.npy").write_bytes(pickle.dumps(bomb))
    (tree / "results" / "mem_bin" / "acc_loss.npz").unlink()
    with pytest.raises(InputError, match=r"memory/predictions\.npy is damaged"):
        load_results(tree)
    assert not (tmp_path / "bomb").exists()


def test_an_empty_folder_of_a_target_is_named(tree):
    for file in (tree / "results" / "wallclock").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"wallclock/predictions\.npy is missing"):
        load_results(tree)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace("total_mb", "size"), "has no column 'total_mb'"),
        (lambda text: text.replace(",300.0,", ",soon,"), "column wallclock"),
        (lambda text: text.replace(",300.0,", ",,"), "column wallclock"),
        (lambda text: text.replace(",20.0,3,2,", ",20.0,4,2,"), "column mem_bin"),
        (lambda text: text.replace(",20.0,3,2,", ",20.0,3,2.5,"), "column bin_pred"),
        (lambda text: "", "damaged"),
    ],
)
def test_a_damaged_table_of_jobs_is_named(tree, change, says):
    path = tree / "data" / "latest.csv"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(InputError, match=f"data/latest.csv.*{says}"):
        load_results(tree)


def test_a_table_of_jobs_of_the_earlier_library_opens(tree):
    """Empty statistics for a job alone in its group, no timestamp, columns nobody knows, numbers as floats."""
    path = tree / "data" / "latest.csv"
    older = some_jobs().drop(columns="timestamp").assign(wc_std=[1.5, 1.5, np.nan, np.nan], note="x")
    older.astype({"mem_bin": float, "bin_pred": float}).to_csv(path, index=False)
    jobs = load_results(tree).jobs
    assert jobs["bin_pred"].tolist() == [0, 1, 2, 0]
    assert jobs["ipst"].tolist()[0] == "j8c601020"
    assert "excess_cost" in load_results(tree).mem_bin.scores()


@pytest.mark.parametrize(("target", "name"), [(target, name) for target in OPTIONAL for name in OPTIONAL[target]])
def test_an_older_folder_without_an_optional_file_opens(tree, target, name):
    (tree / "results" / target / name).unlink()
    opened = load_results(tree)
    assert getattr(getattr(opened, target), OPTIONAL[target][name]) is None
    assert all(f"{each}: 3 test jobs" in opened.summary() for each in TARGETS)
    assert opened.plots()[target]


def test_regressors_that_do_not_name_their_jobs_cannot_be_compared(tree):
    whole = load_results(tree)
    (tree / "results" / "memory" / "test_idx.csv").unlink()
    for this, other in ((load_results(tree), whole), (whole, load_results(tree))):
        with pytest.raises(InputError, match=r"results of memory have no test_idx\.csv"):
            this.memory.compare(other.memory)


def test_a_regressor_whose_split_holds_memory_bins_keeps_its_names(tree):
    (tree / "results" / "memory" / "test_idx.csv").write_text("ipst,mem_bin\nj8c601020,0\no4qpkupdq,1\nib1f01020,3\n")
    same(plain(load_results(tree).memory), small("memory"))


# -- Scores, summary, plots, comparison -----------------------------------------------------------------------------


def test_the_likeliest_bins_are_judged_for_being_right_and_the_decided_ones_for_their_cost(tree):
    # Most probable: 1, 0, 3 of the needed 0, 1, 3. Decided on, by latest.csv: 0, 1, 2.
    scores = load_results(tree).mem_bin.scores()
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["underallocated"] == pytest.approx(1 / 3)
    prices = np.array([0.308 / 8, 0.344 / 4, 0.226 / 2, 0.452])
    needed = 100 * prices[0] + 200 * prices[1] + 300 * prices[3]
    assert scores["excess_cost"] == pytest.approx(300 * prices[2] / needed)


@pytest.mark.parametrize("damage", ["no file", "another job", "twice the same job"])
def test_without_its_jobs_the_most_probable_bin_is_scored(tree, damage):
    path = tree / "data" / "latest.csv"
    if damage == "no file":
        path.unlink()
    elif damage == "another job":
        path.write_text(path.read_text().replace("o4qpkupdq", "o4qpkupdr"))
    else:
        path.write_text(path.read_text().replace("lbek01xyz", "o4qpkupdq"))
    scores = load_results(tree).mem_bin.scores()
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert "excess_cost" not in scores


def test_a_summary_tells_the_scores(tree):
    lines = load_results(tree).summary().splitlines()
    assert lines[0] == f"mem_bin: 3 test jobs of {tree}"
    words = [line.split() for line in lines]
    assert ["accuracy", "0.3333"] in words
    assert ["jobs", "1", "1", "0", "1"] in words
    assert ["recall", "0.0000", "0.0000", "1.0000"] in words
    # Residuals 0.25, 0 and -1.5: root of 2.3125 / 3, mean of 1.75 / 3.
    assert ["rmse", "0.878", "GB"] in words
    assert ["mae", "0.5833", "s"] in words


def test_plots_are_figures_and_know_the_jobs(tree):
    figures = load_results(tree).plots()
    assert set(figures) == {*TARGETS, "data"}
    for named in figures.values():
        assert named
        assert all(type(figure).__name__ == "Figure" and figure.data for figure in named.values())
    (tree / "data" / "latest.csv").unlink()
    assert set(load_results(tree).plots()) == set(TARGETS)


def test_trainings_are_compared_target_by_target(tree, tmp_path):
    other = classifier(["o4qpkupdq", "ib1f01020", "lbek01xyz"], [1, 2, 0], np.eye(4)[[1, 1, 0]])
    write_results(other, tmp_path / "other" / "results" / "mem_bin")
    found = load_results(tree).compare(load_results(tmp_path / "other"))
    assert list(found) == ["mem_bin"]
    # o4qpkupdq needs bin 1 in both; ib1f01020 needs 3 here and 2 there; the others are in one only.
    only = found["mem_bin"]
    assert (only.jobs, only.only_this, only.only_other, only.differing) == (1, 1, 1, 1)
    # Its most probable bin is wrong here; the bin decided on is right in both, and costs the same.
    assert only.scores.loc["accuracy", ["this", "other"]].tolist() == [0, 1]
    assert only.scores.loc["excess_cost", "difference"] == 0


def test_what_cannot_be_compared_is_said(tree, tmp_path):
    opened = load_results(tree)
    with pytest.raises(InputError, match="memory cannot be compared with <wallclock: 3 test jobs"):
        opened.memory.compare(opened.wallclock)
    with pytest.raises(InputError, match="mem_bin cannot be compared with <memory: 3 test jobs"):
        opened.mem_bin.compare(opened.memory)
    for target in ("mem_bin", "memory"):
        (tree / "results" / target).rename(tmp_path / target)
    with pytest.raises(InputError, match="expected a target in common"):
        load_results(tree).compare(load_results(tmp_path / "memory"))


# -- What is imported -----------------------------------------------------------------------------------------------


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_calmlflow_costs_nothing():
    modules = run_python("import sys, calmlflow; print(*sys.modules)").split()
    assert not {"numpy", "pandas", "mlflow", "calmlflow.registry.load"} & set(modules)
    assert "load_results" in dir(calmlflow)
    with pytest.raises(AttributeError, match="load_result'"):
        calmlflow.load_result  # noqa: B018


def test_a_folder_opens_where_there_is_no_tensorflow(tree):
    code = f"""{BLOCKED}
from calmlflow import load_results
opened = load_results({str(tree)!r})
opened.plots()
print(opened.summary(), opened.compare(opened)["mem_bin"])
print(*sorted({{"tensorflow", "keras", "mlflow"}} & set(sys.modules)), "loaded")
"""
    *lines, last = run_python(code).splitlines()
    assert any(line.split() == ["accuracy", "0.3333"] for line in lines)
    assert last.split() == ["loaded"]


# -- A run and a version, on the real server ------------------------------------------------------------------------


@pytest.fixture
def logged(tracking, tree):
    """The tree as artifacts of a run, and version 1 and 2 of a registered model from it; gives run id and model."""
    import mlflow

    model = f"test-load-{tree.parent.name}"
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tree))
    client.create_registered_model(model)
    for _ in range(2):
        client.create_model_version(model, f"runs:/{run.info.run_id}/models", run.info.run_id)
    return run.info.run_id, model


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_runs_and_versions_give_what_their_folder_gives(logged, tree):
    import mlflow

    run_id, model = logged
    client = mlflow.MlflowClient()
    client.transition_model_version_stage(model, "2", "Production")
    client.set_registered_model_alias(model, "staging", "1")
    sources = ("2", "Production", "production", "Staging")
    for source in (f"runs:/{run_id}", *(f"models:/{model}/{name}" for name in sources), f"models:/{model}@staging"):
        opened = load_results(source)
        assert opened.source == source
        assert source in opened.summary()
        for target in TARGETS:
            same(plain(getattr(opened, target)), small(target))
        pd.testing.assert_frame_equal(opened.jobs, some_jobs())


def test_a_run_opens_where_there_is_no_tensorflow(logged, tracking):
    run_id, model = logged
    code = f"""{BLOCKED}
from calmlflow import load_results
run, version = load_results("runs:/{run_id}"), load_results("models:/{model}/1")
print(run.compare(version)["memory"].jobs, {{"tensorflow", "keras"}} & set(sys.modules) or "none")
"""
    assert run_python(code, **tracking.environment()).split() == ["3", "none"]


def test_runs_and_versions_that_are_not_there_are_named(logged):
    import mlflow

    _, model = logged
    gone = ["runs:/0123456789abcdef0123456789abcdef", *(f"models:/{model}{part}" for part in ("/9", "/Archived", "@x"))]
    for source in [*gone, "models:/no-such-model/1"]:
        with pytest.raises(InputError, match=f"^{source} does not exist"):
            load_results(source)
    with mlflow.start_run() as empty:
        mlflow.log_text("nothing", "data/notes.txt")
    with pytest.raises(InputError, match="has no artifacts results"):
        load_results(f"runs:/{empty.info.run_id}")


def test_a_version_that_comes_from_no_run_is_said(tracking, tree):
    import mlflow

    model = f"test-no-run-{tree.parent.name}"
    client = mlflow.MlflowClient()
    client.create_registered_model(model)
    client.create_model_version(model, "s3://calcloud-artifacts/somewhere")
    with pytest.raises(InputError, match=f"models:/{model}/1 .*comes from no run"):
        load_results(f"models:/{model}/1")


def test_a_damaged_artifact_is_named_by_its_run(tracking, tree):
    import mlflow

    (tree / "results" / "mem_bin" / "cmx.npy").write_bytes(b"\x93NUMPY")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tree))
    with pytest.raises(InputError, match=f"^runs:/{run.info.run_id}/results/mem_bin/cmx.npy is damaged"):
        load_results(f"runs:/{run.info.run_id}")


def test_a_server_that_does_not_answer_is_named_without_its_password(tracking, ports, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:hushhush@127.0.0.1:{ports[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CalmlflowError, match=f"no MLflow server answers at http://127.0.0.1:{ports[0]} ") as caught:
        load_results("runs:/0123456789abcdef0123456789abcdef")
    assert not isinstance(caught.value, InputError)
    assert "hushhush" not in str(caught.value)
