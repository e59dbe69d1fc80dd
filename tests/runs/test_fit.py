"""One network from jobs to files: what is measured is what will be served, and kill times see left-out jobs only."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.backend import keras
from calmlflow.networks.config import TrainingConfig
from calmlflow.networks.training import train_network
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import NEVER, Finished, build_evidence
from calmlflow.predictor.killtime import KillTime, fit_kill_time
from calmlflow.runs.data import deal_folds, hold_out, load_training_data
from calmlflow.runs.fit import calibrate, fit_network
from tests.samples.network_samples import member_answers

MEMBERS = 2


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:600", 1, 0.25, "job")


def fit(network, data, models, seed=0, **config):
    return fit_network(network, data, TrainingConfig(members=MEMBERS, **config), seed, models)


@pytest.fixture(scope="module")
def classifier(data, tmp_path_factory):
    """Not trained beyond its initial weights, which the history describes."""
    models = tmp_path_factory.mktemp("classifier")
    return fit("mem_clf", data, models, epochs=1, refit_epochs=0), models


@pytest.fixture(scope="module")
def wallclock(data, tmp_path_factory):
    """The same search twice, without and with a refit."""
    folders = [tmp_path_factory.mktemp("wallclock") for _ in range(2)]
    return [
        (fit("wall_reg", data, models, epochs=40, refit_epochs=refit), models)
        for models, refit in zip(folders, (0, 40), strict=True)
    ]


def test_each_part_of_the_jobs_plays_its_own_role(classifier, data):
    found, models = classifier
    bins = data.jobs["mem_bin"].to_numpy()
    model = keras.saving.load_model(models / "mem_clf" / "mem_clf.keras")
    answers = member_answers(model, MEMBERS, data.scaling.apply(data.features), None)
    by_member = -np.log(answers[:, np.arange(len(bins)), bins])
    member = data.training_rows("mem_clf", MEMBERS, 0).member_of_job
    learnt, left_out = (
        np.mean([by_member[number, data.train[member == part]].mean() for number, part in enumerate(parts)])
        for parts in ((1, 0), (0, 1))
    )
    history = found.results.history
    assert history["loss"].item() == pytest.approx(learnt, rel=1e-3)
    assert history["val_loss"].item() == pytest.approx(left_out, rel=1e-3)
    losses = -np.log(found.predictions["probabilities"][np.arange(len(bins)), bins])
    assert found.scores["log_loss"] == pytest.approx(losses[data.test].mean(), rel=1e-3)
    assert found.train_scores[1] == pytest.approx(losses[data.train].mean(), rel=1e-3)
    assert found.floor["accuracy"] >= found.scores["accuracy"]
    assert found.results.y_pred.shape == (len(data.test), 4)
    assert sorted(found.results.test_idx.index) == sorted(data.jobs["ipst"].iloc[data.test])


def test_the_models_left_behind_are_a_bundle_of_what_was_measured(classifier, data):
    found, models = classifier
    assert Scaling.from_json((models / "tx_data.json").read_text()) == data.scaling
    assert sorted(path.name for path in (models / "mem_clf").iterdir()) == ["mem_clf.keras", "mem_clf.onnx"]
    served = Bundle.load(models).predict(data.features)
    np.testing.assert_array_equal(served["bin_pred"], found.predictions["bin_pred"])
    np.testing.assert_allclose(served["probabilities"], found.predictions["probabilities"], rtol=1e-5)
    in_keras = keras.saving.load_model(models / "mem_clf" / "mem_clf.keras")(data.scaling.apply(data.features)).numpy()
    # Probabilities of jobs unlike any seen are widened.
    seen = ~served["unseen"]
    assert seen.mean() > 0.9
    np.testing.assert_allclose(found.predictions["probabilities"][seen], in_keras[seen], rtol=1e-3, atol=1e-6)


def test_kill_times_are_calibrated_on_every_training_job_as_seen_by_who_left_it_out(wallclock, data):
    (searched, models), (refitted, refitted_models) = wallclock
    actual = data.jobs["wallclock"].to_numpy()[data.train]
    seen = np.array(json.loads((models / "seen_rows.json").read_text()))
    row_of_job = [int(np.flatnonzero((seen == row).all(axis=1)).item()) for row in data.features[data.train]]
    written = KillTime.from_json((models / "killtime.json").read_text())
    config = TrainingConfig(members=MEMBERS, epochs=40, refit_epochs=0)
    rows = data.training_rows("wall_reg", MEMBERS, 0)
    left_out = train_network("wall_reg", rows, config, 0, TargetRange.of(actual)).left_out[:, 0]
    expected = fit_kill_time(left_out, actual, row_of_job)
    assert written.factors == pytest.approx(expected.factors)
    assert written.spread == pytest.approx(expected.spread, abs=1e-6)
    assert len(written.spread) == len(seen) + 1
    assert sum(written.jobs) == len(data.train)
    # The answers of the finished network for its own training jobs would give other factors.
    flattered = fit_kill_time(searched.predictions["wall_pred"][data.train], actual, row_of_job)
    assert written.factors != pytest.approx(flattered.factors)
    # And the members as they were then: the refit saw all jobs.
    assert json.loads((refitted_models / "killtime.json").read_text()) == json.loads(written.to_json())
    assert np.any(searched.predictions["wall_pred"] != refitted.predictions["wall_pred"])
    # A job that was seen gets the factor of its row.
    served, raised = searched.predictions, np.array(written.spread)[row_of_job]
    factor = np.array(written.factors)[np.searchsorted(written.edges_s, served["wall_pred"][data.train])] ** raised
    expected_s = np.clip(np.ceil(served["wall_pred"][data.train] * factor), 60, 172_800)
    np.testing.assert_allclose(served["kill_time"][data.train], expected_s, atol=1)


def test_killed_jobs_lengthen_the_kill_times_of_one_network(wallclock, data, tmp_path):
    (without, _), _ = wallclock
    killed = data.jobs.iloc[data.train[:100]]
    # Two rows that say nothing: of no finished job, and killed at once.
    killed = pd.concat([killed.assign(wallclock=5 * killed["wallclock"]), killed[:1].assign(n_files=999), killed[:1]])
    killed = killed.assign(kind="time", wallclock=np.append(killed["wallclock"][:-1], 0.0))
    found = fit("wall_reg", replace(data, killed=killed), tmp_path, epochs=40, refit_epochs=0)
    np.testing.assert_array_equal(found.predictions["wall_pred"], without.predictions["wall_pred"])
    assert np.median(found.predictions["kill_time"] / without.predictions["kill_time"]) > 1.3


def test_too_few_jobs_to_calibrate_kill_times_on_give_a_warning(data, tmp_path):
    # The longest of n jobs is outlived by one in n + 1.
    count = len(data.train)
    assert 400 < count < 500
    assert fit("wall_reg", data, tmp_path, epochs=1, refit_epochs=0).warning == (
        f"warning: {count} jobs to calibrate kill times on are too few for 99.9%; they cover 99.8%"
    )


@pytest.mark.parametrize("network", ["mem_clf", "mem_reg"])
def test_the_fate_of_held_out_jobs_changes_no_answer(data, network, tmp_path):
    held = hold_out(data, data.train, deal_folds(data, data.train, 3, 0), 1)
    jobs = data.jobs.copy()
    jobs.loc[jobs.index[held.test], ["memory", "wallclock", "mem_bin"]] = [50.0, 9e4, 3]
    one, other = (
        fit(network, replace(held, jobs=table), tmp_path / name, 5, epochs=40, refit_epochs=0)
        for name, table in (("one", data.jobs), ("other", jobs))
    )
    for name, column in one.predictions.items():
        np.testing.assert_array_equal(column, other.predictions[name])
    assert one.train_scores == other.train_scores
    assert one.scores != other.scores


def test_killed_jobs_lengthen_the_kill_times_of_answers():
    jobs = Finished.of(draw_sample(4000, 1))
    answers = np.column_stack([np.full((4000, 4), 0.25), np.zeros(4000), np.log(jobs.wallclock_s)])
    evidence = build_evidence(jobs, np.full((5, 3), NEVER), np.zeros((4, 2)))
    spoiled = np.random.default_rng(0).normal(0, 0.2, 4000)
    answers[:, 5] += spoiled
    # A hundred more, killed when they had run for three times what was predicted.
    killed = replace(
        jobs.take(slice(0, 100)), names=[f"{name[0]}zz{n:02d}a{name[6:]}" for n, name in enumerate(jobs.names[:100])]
    )
    killed = replace(killed, wallclock_s=3 * np.exp(answers[:100, 5]))
    without = calibrate(evidence, answers, jobs)
    with_killed = calibrate(evidence, np.vstack([answers, answers[:100]]), jobs, killed)
    predicted_s = np.exp(answers[:, 5])
    assert np.median(with_killed.apply(predicted_s) / without.apply(predicted_s)) > 1.3
    nobody = calibrate(evidence, answers, jobs, jobs.take(slice(0, 0)))
    assert nobody == without
