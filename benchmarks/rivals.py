"""Train the rivals of calmlflow on the same training split: a random forest and a log-linear fit."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Predictions
from calmlflow.runs.data import TrainingData

TREES = 300


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
    """

    name: str
    predictions: Predictions
    fit_seconds: float


def of_test_jobs(data: TrainingData, by_row: Predictions) -> Predictions:
    """Predictions of the test jobs from those of the distinct rows."""
    rows = data.rows.row_of_job[data.test]
    return {name: values[rows] for name, values in by_row.items()}


def random_forest(data: TrainingData, seed: int) -> Rival:
    """Three forests of scikit-learn, on the nine raw features of every job; the most probable bin is chosen."""
    features, jobs = data.features[data.train], data.jobs.iloc[data.train]
    started = time.perf_counter()
    classifier = RandomForestClassifier(TREES, n_jobs=-1, random_state=seed).fit(features, jobs["mem_bin"])
    memory = RandomForestRegressor(TREES, n_jobs=-1, random_state=seed).fit(features, jobs["memory"])
    wallclock = RandomForestRegressor(TREES, n_jobs=-1, random_state=seed).fit(features, jobs["wallclock"])
    seconds = time.perf_counter() - started
    rows = data.rows.features
    probabilities = np.zeros((len(rows), len(LADDER)))
    probabilities[:, classifier.classes_] = classifier.predict_proba(rows)
    by_row = {
        "probabilities": probabilities,
        "bin_pred": probabilities.argmax(axis=1),
        "mem_pred": memory.predict(rows),
        "wall_pred": wallclock.predict(rows),
    }
    return Rival("random forest", of_test_jobs(data, by_row), seconds)


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
