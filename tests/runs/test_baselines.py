"""Rivals of a network: scored like it, on the same split."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import needed_bin
from calmlflow.hst.scaling import Scaling
from calmlflow.networks.rows import distinct_rows
from calmlflow.predictor.killtime import KillTime
from calmlflow.predictor.manifest import write_manifest
from calmlflow.results.regression import regression_scores
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.runs.baselines import _grow_classifier, _grow_regressor, champion, other_seeds, over_seeds, random_forest
from calmlflow.runs.data import load_training_data


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:1500", seed=4, test_size=0.3)


# -- Random forest --------------------------------------------------------------------------------------------------


def test_a_tree_on_weighted_rows_is_the_tree_on_their_jobs(data):
    drawn = np.random.default_rng(0).choice(data.train, len(data.train))
    row, features = data.rows.row_of_job[drawn], data.features[drawn]
    assert len(np.unique(row)) < 0.7 * len(row)
    memory = data.jobs["memory"].to_numpy()[drawn]
    tree = DecisionTreeRegressor(random_state=7).fit(features, memory)
    # A row that was not drawn may fall on either side of two equally good splits.
    same = np.isclose(_grow_regressor(data.rows, row, memory, 7), tree.predict(data.rows.features))
    assert same[np.unique(row)].all()
    bins = data.jobs["mem_bin"].to_numpy()[drawn]
    classifier = DecisionTreeClassifier(max_features="sqrt", random_state=7).fit(features, bins)
    found = _grow_classifier(data.rows, row, bins, 7)
    assert found.shape == (len(data.rows.counts), 4)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    expected = classifier.predict_proba(data.rows.features)
    same = np.isclose(found[:, classifier.classes_], expected).all(axis=1)
    assert same[np.unique(row)].all()


def test_the_forest_scores_as_that_of_scikit_learn(data):
    train, test, jobs = data.features[data.train], data.features[data.test], data.jobs.iloc[data.test]
    for target in ("memory", "wallclock"):
        forest = RandomForestRegressor(100, random_state=0).fit(train, data.jobs[target].iloc[data.train])
        expected = regression_scores(jobs[target], forest.predict(test))
        assert random_forest(data, target, 0)["mae"] == pytest.approx(expected["mae"], rel=0.05)
    forest = RandomForestClassifier(100, random_state=0).fit(train, data.jobs["mem_bin"].iloc[data.train])
    hits = forest.predict(test) == jobs["mem_bin"]
    scores = random_forest(data, "mem_bin", 0)
    assert scores["accuracy"] == pytest.approx(hits.mean(), abs=0.02)
    assert {"log_loss", "excess_cost", "recall_2g"} <= set(scores)


def test_the_forest_does_not_see_the_test_jobs(data):
    """Jobs that all differ, with memory that nothing tells: a forest that had seen the test jobs would know them."""
    features = np.zeros_like(data.features)
    features[:, 1] = np.arange(len(features))
    memory = np.random.default_rng(2).choice([1.0, 5.0], len(features))
    jobs = data.jobs.assign(memory=memory, mem_bin=needed_bin(memory))
    scores = random_forest(replace(data, jobs=jobs, rows=distinct_rows(features)), "mem_bin", 0)
    assert 0.3 < scores["accuracy"] < 0.7


def test_the_forest_is_the_same_for_the_same_seed(data):
    assert random_forest(data, "memory", 1) == random_forest(data, "memory", 1)
    assert random_forest(data, "memory", 1) != random_forest(data, "memory", 2)


# -- Champion -------------------------------------------------------------------------------------------------------


def write_network(path, outputs, classes=False):
    """An ONNX network that gives the same outputs for every job."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    weights = [
        numpy_helper.from_array(np.zeros((len(FEATURES), len(outputs)), dtype=np.float32), "weights"),
        numpy_helper.from_array(np.array(outputs, dtype=np.float32), "bias"),
    ]
    nodes = [helper.make_node("Gemm", ["features", "weights", "bias"], ["sums" if classes else "answer"])]
    if classes:
        nodes.append(helper.make_node("Softmax", ["sums"], ["answer"]))
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(FEATURES)])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None, len(outputs)])
    graph = helper.make_graph(nodes, "constant", [given], [answer], weights)
    path.parent.mkdir(parents=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An MLflow registry of its own in a database file: the shared server's Production belongs to other tests."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def register_bundle(client, folder):
    """Networks that say of every job: bin 1 with 1/2, 1.5 GB, 60 s, killed after 300 s. Gives the version."""
    import mlflow

    write_network(folder / "mem_clf" / "mem_clf.onnx", np.log([0.25, 0.5, 0.125, 0.125]), classes=True)
    write_network(folder / "mem_reg" / "mem_reg.onnx", [1.5])
    write_network(folder / "wall_reg" / "wall_reg.onnx", [60.0])
    (folder / "tx_data.json").write_text(Scaling((0.0, 0.0), (0.0, 0.0), (1.0, 1.0)).to_json())
    (folder / "killtime.json").write_text(KillTime((), (5.0,), 0.999, (100,)).to_json())
    write_manifest(folder)
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "model/artifacts/bundle")
    if not client.search_registered_models():
        client.create_registered_model("calcloud-predictor")
    source = f"{run.info.artifact_uri}/model"
    return client.create_model_version("calcloud-predictor", source, run.info.run_id).version


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_champion_is_the_version_in_production_scored_on_the_test_jobs(registry, tmp_path, data, capsys):
    assert champion() is None
    version = register_bundle(registry, tmp_path / "bundle")
    assert champion() is None
    assert capsys.readouterr().err == ""
    registry.transition_model_version_stage("calcloud-predictor", version, "Production")
    found = champion()
    assert found.version == str(version)
    jobs, answers = data.jobs.iloc[data.test], found.answers(data)
    scores = {target: score_predictions(target, jobs, answers) for target in PREDICTED}
    given = np.array([0.25, 0.5, 0.125, 0.125])[jobs["mem_bin"]]
    assert scores["mem_bin"]["accuracy"] == pytest.approx(np.mean(jobs["mem_bin"] == 1))
    assert scores["mem_bin"]["log_loss"] == pytest.approx(-np.log(given).mean())
    assert scores["memory"]["mae"] == pytest.approx(np.abs(jobs["memory"] - 1.5).mean())
    assert scores["wallclock"]["mae"] == pytest.approx(np.abs(jobs["wallclock"] - 60).mean())
    assert scores["wallclock"]["kill_time_coverage"] == pytest.approx(np.mean(jobs["wallclock"] <= 300))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_champion_that_cannot_be_loaded_is_said_and_left_out(registry, tmp_path, ports, monkeypatch, capsys):
    version = register_bundle(registry, tmp_path / "bundle")
    registry.transition_model_version_stage("calcloud-predictor", version, "Production")
    (found,) = (tmp_path / "mlruns").rglob("mem_reg.onnx")
    found.write_bytes(b"something else")
    assert champion() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the version in Production is not scored: ")
    assert "mem_reg.onnx" in line
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{ports[0]}")
    assert champion() is None
    assert f"no MLflow server answers at http://127.0.0.1:{ports[0]}" in capsys.readouterr().err


# -- Other seeds ----------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_their_seed_alone_give_a_spread(tracking):
    mlflow.set_experiment("over-seeds")

    def run(seed, accuracy, name="main", status="FINISHED", **params):
        with mlflow.start_run(run_name=name) as one:
            mlflow.log_params({"data": "jobs's.csv", "seed": seed, "output": accuracy, "n_test": 40 + seed, **params})
            mlflow.log_metric("answer_mem_bin_accuracy", accuracy)
            mlflow.end_run(status)
        return one.info.run_id

    alone = run(0, 0.9)
    assert over_seeds(other_seeds(alone), "answer", {"mem_bin": {"accuracy": 0.9}}) == {}
    run(1, 0.2)
    run(1, 0.94)  # the newest of a seed counts
    run(2, 0.95)
    for other in ({"name": "memory"}, {"status": "FAILED"}, {"split": "time"}, {"data": "others.csv"}):
        run(3, 0.1, **other)
    found = over_seeds(other_seeds(run(0, 0.93)), "answer", {"mem_bin": {"accuracy": 0.93, "recall_2g": 1.0}})
    assert found == {"mem_bin": {"accuracy": (pytest.approx(0.94), pytest.approx(0.01), 3)}}
