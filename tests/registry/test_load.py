"""Results of a training from a folder, a run or a registered version, without TensorFlow."""

import os
import subprocess
import sys

import pandas as pd
import pytest

import calmlflow
from calmlflow import load_results
from calmlflow.errors import CalmlflowError, InputError
from tests.samples.results_samples import small, some_jobs, write_tree

BLOCKED = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Nowhere())
"""


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "2021-11-04-1636048291")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/folder", "no/such/folder"),
        ("s3://user:word@bucket/data", "results source is s3:"),
        ("runs:/", "runs:/RUN_ID"),
        (
            "models:/calcloud-predictor",
            "'models:/calcloud-predictor' names no version; expected models:/NAME/ and a stage",
        ),
        (__file__, "is no folder"),
    ],
)
def test_what_is_no_source_is_said(source, says):
    with pytest.raises(InputError, match=says) as caught:
        load_results(source)
    assert "word" not in str(caught.value)


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
    assert any(line.split() == ["accuracy", "33.33%"] for line in lines)
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
    for source in (f"runs:/{run_id}", f"models:/{model}/1", f"models:/{model}/Production"):
        opened = load_results(source)
        assert source in opened.summary()
        assert list(opened.by_target()) == ["mem_bin", "memory", "wallclock"]
        assert opened.wallclock.predictions.tolist() == small("wallclock").predictions.tolist()
        pd.testing.assert_frame_equal(opened.jobs, some_jobs())


def test_runs_and_versions_that_are_not_there_are_named(logged):
    import mlflow

    _, model = logged
    with pytest.raises(InputError, match=r"^runs:/0123456789abcdef0123456789abcdef does not exist"):
        load_results("runs:/0123456789abcdef0123456789abcdef")
    with pytest.raises(InputError, match="does not exist"):
        load_results(f"models:/{model}/9")
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


def test_a_server_that_does_not_answer_is_named(tracking, ports, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports[0]}")
    with pytest.raises(CalmlflowError, match=f"no MLflow server answers at http://127.0.0.1:{ports[0]} ") as caught:
        load_results("runs:/0123456789abcdef0123456789abcdef")
    assert not isinstance(caught.value, InputError)
