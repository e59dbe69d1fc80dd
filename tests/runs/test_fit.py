"""One network from jobs to files: what is measured is what will be served, and kill times see left-out jobs only."""

import json

import numpy as np
import pandas as pd
import pytest

from calmlflow.hst.scaling import Scaling
from calmlflow.networks.training import TrainingConfig
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.killtime import KillTime, fit_kill_time
from calmlflow.runs.data import load_training_data
from calmlflow.runs.fit import fit_network
from tests.samples.network_samples import member_answers

MEMBERS = 2


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:600", 1, 0.25)


def fit(network, data, tree, **config):
    found = TrainingConfig(members=MEMBERS, **config)
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
    answers = member_answers(found.trained.model, MEMBERS, data.scaling.apply(data.features), None)
    by_member = -np.log(answers[:, np.arange(len(bins)), bins])
    member = data.training_rows("mem_clf", MEMBERS, 0).member_of_job
    learnt, left_out = (
        np.mean([by_member[number, data.train[member == part]].mean() for number, part in enumerate(parts)])
        for parts in ((1, 0), (0, 1))
    )
    assert found.trained.history["loss"].item() == pytest.approx(learnt, rel=1e-3)
    assert found.trained.history["val_loss"].item() == pytest.approx(left_out, rel=1e-3)
    np.testing.assert_allclose(found.trained.left_out, answers[member, data.train], rtol=1e-3, atol=1e-6)
    losses = -np.log(found.predictions["probabilities"][np.arange(len(bins)), bins])
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


def test_kill_times_are_calibrated_on_every_training_job_as_seen_by_who_left_it_out(wallclock, data):
    (searched, tree), (_, refitted_tree) = wallclock
    actual = data.jobs["wallclock"].to_numpy()[data.train]
    seen = np.array(json.loads((tree / "models" / "seen_rows.json").read_text()))
    row_of_job = [int(np.flatnonzero((seen == row).all(axis=1)).item()) for row in data.features[data.train]]
    written = KillTime.from_json((tree / "models" / "killtime.json").read_text())
    expected = fit_kill_time(searched.trained.left_out[:, 0], actual, row_of_job)
    assert written.factors == pytest.approx(expected.factors)
    assert written.spread == pytest.approx(expected.spread, abs=1e-6)
    assert len(written.spread) == len(seen) + 1
    assert sum(written.jobs) == len(data.train)
    # What the finished network says of its own training jobs would give other factors.
    flattered = fit_kill_time(searched.predictions["wall_pred"][data.train], actual, row_of_job)
    assert written.factors != pytest.approx(flattered.factors)
    # And the members as they were then: the refit saw all jobs.
    assert json.loads((refitted_tree / "models" / "killtime.json").read_text()) == json.loads(written.to_json())
    # A job that was seen gets the factor of its row.
    served, raised = searched.predictions, np.array(written.spread)[row_of_job]
    factor = np.array(written.factors)[np.searchsorted(written.edges_s, served["wall_pred"][data.train])] ** raised
    expected_s = np.clip(np.ceil(served["wall_pred"][data.train] * factor), 60, 172_800)
    np.testing.assert_allclose(served["kill_time"][data.train], expected_s, atol=1)


def test_the_refit_changes_the_network_and_not_its_history(wallclock):
    (searched, _), (refitted, _) = wallclock
    assert np.any(searched.predictions["wall_pred"] != refitted.predictions["wall_pred"])
    for name, values in searched.trained.history.items():
        np.testing.assert_array_equal(values, refitted.trained.history[name])
    np.testing.assert_array_equal(searched.trained.left_out, refitted.trained.left_out)


def test_no_answer_is_outside_what_the_training_jobs_used(wallclock, data):
    used = data.jobs["wallclock"].to_numpy()[data.train]
    for found, _ in wallclock:
        predicted = found.predictions["wall_pred"]
        assert used.min() * 0.999 <= predicted.min()
        assert predicted.max() <= used.max() * 1.001


def test_progress_is_told(data, tmp_path):
    seen: list[tuple[int, int]] = []
    config = TrainingConfig(epochs=2, refit_epochs=1, members=MEMBERS)
    fit_network(
        "mem_reg", data, config, seed=0, risk=0.0, tree=tmp_path,
        on_progress=lambda epoch, epochs, loss: seen.append((epoch, epochs)),
    )  # fmt: skip
    assert seen == [(2, 3), (3, 3)]
    assert (tmp_path / "models" / "mem_reg" / "mem_reg.onnx").is_file()
    assert not (tmp_path / "models" / "killtime.json").exists()


def test_too_few_jobs_to_calibrate_kill_times_on_are_told(data, tmp_path, capsys):
    fit("wall_reg", data, tmp_path, epochs=1, refit_epochs=0)
    # The longest of 451 jobs is outlived by one in 452.
    assert len(data.train) == 451
    assert capsys.readouterr().err.splitlines() == [
        "warning: 451 jobs to calibrate kill times on are too few for 99.9%; they cover 99.8%"
    ]
