"""Train calmlflow and its rivals on the same training split: a random forest, with and without evidence, and a law."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression

from benchmarks.growth import Fit, fit_networks
from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Bundle, Predictions, combine, in_logs
from calmlflow.predictor.evidence import Finished, build_evidence, fit_campaign, fit_strength
from calmlflow.runs.data import TrainingData
from calmlflow.runs.fit import calibrate, fit_answers
from calmlflow.runs.train import TrainingRequest

TREES = 300
WITH_EVIDENCE = "forest, evidence"


@dataclass(frozen=True)
class Rival:
    """A trained predictor and its answers.

    Attributes
    ----------
    name : str
    predictions : Predictions
        For the test jobs; a key is absent where there is no such prediction.
    fit_seconds : float
        Of all its models together.
    left_out : ndarray, shape (n, 6), optional
        Answers to the n training jobs that leave each job out: four probabilities, ln GB and ln s.
    """

    name: str
    predictions: Predictions
    fit_seconds: float
    left_out: NDArray[np.float64] | None = None


def networks_and_answer(data: TrainingData, request: TrainingRequest, models: Path) -> tuple[Rival, Rival, Fit]:
    """The networks and the answer, which is the networks with evidence, fitted as `main` does into ``models``."""
    fits, fit = fit_networks(data, request, models)
    started = time.perf_counter()
    answer = fit_answers(fits, data, models, None)
    seconds = fit.fit_seconds + time.perf_counter() - started
    networks, answers = (
        {name: values[data.test] for name, values in found.items()} for found in (answer.networks, answer.predictions)
    )
    return Rival("networks", networks, fit.fit_seconds), Rival("answer", answers, seconds), fit


def of_test_jobs(data: TrainingData, by_row: Predictions) -> Predictions:
    """Predictions of the test jobs from those of the distinct rows."""
    rows = data.rows.row_of_job[data.test]
    return {name: values[rows] for name, values in by_row.items()}


def random_forest(data: TrainingData, seed: int, out_of_bag: bool = False) -> Rival:
    """Three forests of scikit-learn, on the nine raw features of every job; the most probable bin is chosen.

    With ``out_of_bag`` it answers for the training jobs too, each by the trees that have not seen it.
    """
    features, jobs = data.features[data.train], data.jobs.iloc[data.train]
    options = {"n_estimators": TREES, "n_jobs": -1, "random_state": seed, "oob_score": out_of_bag}
    started = time.perf_counter()
    classifier = RandomForestClassifier(**options).fit(features, jobs["mem_bin"])
    memory = RandomForestRegressor(**options).fit(features, jobs["memory"])
    wallclock = RandomForestRegressor(**options).fit(features, jobs["wallclock"])
    seconds = time.perf_counter() - started
    rows = data.rows.features
    probabilities = _of_all_bins(classifier, classifier.predict_proba(rows))
    by_row = {
        "probabilities": probabilities,
        "bin_pred": probabilities.argmax(axis=1),
        "mem_pred": memory.predict(rows),
        "wall_pred": wallclock.predict(rows),
    }
    left_out = None
    if out_of_bag:
        logs = np.log(np.column_stack([memory.oob_prediction_, wallclock.oob_prediction_]))
        left_out = np.hstack([_of_all_bins(classifier, classifier.oob_decision_function_), logs])
    return Rival("random forest", of_test_jobs(data, by_row), seconds, left_out)


def _of_all_bins(classifier: RandomForestClassifier, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros((len(probabilities), len(LADDER)))
    found[:, classifier.classes_] = probabilities
    return found


def forest_with_evidence(forest: Rival, data: TrainingData, bundle: Bundle) -> Rival:
    """The answers of a forest instead of those of a bundle's networks, with everything else that makes an answer."""
    finished, test = (Finished.of(data.jobs.iloc[some]) for some in (data.train, data.test))
    assert forest.left_out is not None
    started = time.perf_counter()
    strength = fit_strength(forest.left_out, finished)
    shift = fit_campaign(forest.left_out, finished, strength, time.time())
    evidence = build_evidence(finished, strength, shift)
    kill_time = calibrate(evidence, forest.left_out, finished)
    seconds = forest.fit_seconds + time.perf_counter() - started
    outputs, found = bundle.run(test.features), forest.predictions
    outputs[:, :6] = np.column_stack([found["probabilities"], found["mem_pred"], found["wall_pred"]])
    corrected = evidence.correct(in_logs(outputs), test.features, test.names, at=test.timestamp)
    return Rival(WITH_EVIDENCE, combine(outputs, bundle.decision, kill_time, corrected), seconds)


def log_linear(data: TrainingData) -> Rival:
    """Least squares on the logarithm of the wallclock, every job a row."""
    started = time.perf_counter()
    wallclock_s = data.jobs["wallclock"].to_numpy()[data.train]
    law = LinearRegression().fit(log_linear_terms(data.features[data.train]), np.log(wallclock_s))
    seconds = time.perf_counter() - started
    by_row = {"wall_pred": np.exp(law.predict(log_linear_terms(data.rows.features)))}
    return Rival("log-linear", of_test_jobs(data, by_row), seconds)


def log_linear_terms(features: ArrayLike) -> NDArray[np.float64]:
    """Terms of the fit, shape (n, 14): total_mb x pctecorr, n_files x pctecorr, each instrument, eight features."""
    features = np.asarray(features, dtype=float)
    column = {name: features[:, index] for index, name in enumerate(FEATURES)}
    # The instrument is a name; its code is no number to multiply with.
    instrument = column.pop("instr")
    return np.column_stack(
        [column["total_mb"] * column["pctecorr"], column["n_files"] * column["pctecorr"]]
        + [instrument == code for code in range(len(INSTRUMENTS))]
        + list(column.values())
    )
