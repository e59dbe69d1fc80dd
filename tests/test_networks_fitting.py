"""One network from jobs to files: what is measured is what will be served, and kill times see held-back jobs only."""

import json

import numpy as np
import pandas as pd
import pytest

from calmlflow.fitting import fit_network
from calmlflow.hst.scaling import Scaling
from calmlflow.networks.training import TrainingConfig
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.killtime import KillTime, fit_kill_time
from calmlflow.training_data import load_training_data


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:600", 1, 0.25)


def fit(network, data, tree, **config):
    found = TrainingConfig(restarts=1, **config)
    return fit_network(network, data, found, seed=0, risk=0.0, tree=tree, on_progress=lambda epoch, epochs, loss: None)


@pytest.fixture(scope="module")
def classifier(data, tmp_path_factory):
    """Not trained beyond its initial weights, which the history speaks of."""
    tree = tmp_path_factory.mktemp("classifier")
    return fit("mem_clf", data, tree, epochs=1, refit_epochs=0), tree


@pytest.fixture(scope="module")
def wallclock(data, tmp_path_factory):
    """The same search twice, without and with a refit."""
    trees = [tmp_path_factory.mktemp("wallclock") for _ in range(2)]
    return [
        (fit("wall_reg", data, tree, epochs=40, refit_epochs=refit), tree)
        for tree, refit in zip(trees, (0, 40), strict=True)
    ]


def test_each_part_of_the_jobs_plays_its_own_role(classifier, data):
    found, _ = classifier
    bins = data.jobs["mem_bin"].to_numpy()
    losses = -np.log(found.predictions["probabilities"][np.arange(len(bins)), bins])
    assert found.trained.history["loss"].item() == pytest.approx(losses[data.fit].mean(), rel=1e-3)
    assert found.trained.history["val_loss"].item() == pytest.approx(losses[data.validation].mean(), rel=1e-3)
    assert found.scores["log_loss"] == pytest.approx(losses[data.test].mean(), rel=1e-3)
    assert found.floor["accuracy"] >= found.scores["accuracy"]
    assert found.results.y_pred.shape == (len(data.test), 4)


def test_the_models_left_behind_are_a_bundle_of_what_was_measured(classifier, data):
    found, tree = classifier
    models = tree / "models"
    assert Scaling.from_json((models / "tx_data.json").read_text()) == data.scaling
    assert sorted(path.name for path in (models / "mem_clf").iterdir()) == ["mem_clf.keras", "mem_clf.onnx"]
    served = Bundle.load(models).predict(data.features)
    np.testing.assert_array_equal(served["bin_pred"], found.predictions["bin_pred"])
    np.testing.assert_allclose(served["probabilities"], found.predictions["probabilities"], rtol=1e-5)
    in_keras = found.trained.model(data.scaling.apply(data.features)).numpy()
    np.testing.assert_allclose(found.predictions["probabilities"], in_keras, rtol=1e-3, atol=1e-6)
    written = pd.read_csv(tree / "results" / "mem_bin" / "test_idx.csv")
    assert sorted(written["ipst"]) == sorted(data.jobs["ipst"].iloc[data.test])


def test_kill_times_are_calibrated_on_jobs_that_the_network_had_not_seen(wallclock, data):
    (searched, tree), (_, refitted_tree) = wallclock
    actual = data.jobs["wallclock"].to_numpy()
    written = KillTime.from_json((tree / "models" / "killtime.json").read_text())
    predicted = searched.predictions["wall_pred"]
    expected = fit_kill_time(predicted[data.validation], actual[data.validation])
    assert written.factors == pytest.approx(expected.factors, rel=1e-3)
    assert sum(written.jobs) == len(data.validation)
    # And by the network as it was then: the refit saw them.
    assert json.loads((refitted_tree / "models" / "killtime.json").read_text()) == json.loads(written.to_json())


def test_the_refit_changes_the_network_and_not_its_history(wallclock):
    (searched, _), (refitted, _) = wallclock
    assert np.any(searched.predictions["wall_pred"] != refitted.predictions["wall_pred"])
    for name, values in searched.trained.history.items():
        np.testing.assert_array_equal(values, refitted.trained.history[name])
    np.testing.assert_array_equal(searched.trained.validated, refitted.trained.validated)


def test_no_answer_is_outside_what_the_training_jobs_used(wallclock, data):
    used = data.jobs["wallclock"].to_numpy()[data.train]
    for found, _ in wallclock:
        predicted = found.predictions["wall_pred"]
        assert used.min() * 0.999 <= predicted.min()
        assert predicted.max() <= used.max() * 1.001


def test_progress_is_told(data, tmp_path):
    seen: list[tuple[int, int]] = []
    config = TrainingConfig(epochs=2, refit_epochs=1, restarts=1)
    fit_network(
        "mem_reg", data, config, seed=0, risk=0.0, tree=tmp_path,
        on_progress=lambda epoch, epochs, loss: seen.append((epoch, epochs)),
    )  # fmt: skip
    assert seen == [(2, 3), (3, 3)]
    assert (tmp_path / "models" / "mem_reg" / "mem_reg.onnx").is_file()
    assert not (tmp_path / "models" / "killtime.json").exists()
