"""Scores of the test jobs, the same for everybody, and their paired bootstrap."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.predictor.bundle import Predictions
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.scores import SMALLEST_PREDICTION, classification_scores
from calmlflow.scoring import PREDICTED, score_predictions
from calmlflow.training_data import TrainingData

DRAWS = 1000
"""Bootstrap samples behind an interval."""

INTERVAL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""


def scores_of(jobs: pd.DataFrame, predictions: Predictions) -> dict[str, float]:
    """Scores of the test jobs as ``{target}_{score}``; see `calmlflow.scoring.score_predictions`.

    Beside those: ``mem_bin_decided_recall_2g`` and so on, of the bins decided on; kill times of 3 and 6
    times the prediction are scored for who has no kill time of its own, too. Targets without predictions are left out.
    """
    found: dict[str, float] = {}
    for target, prediction in PREDICTED.items():
        if prediction in predictions:
            scores = score_predictions(target, jobs, {"kill_time": predictions[prediction], **predictions})
            found |= {f"{target}_{name}": value for name, value in scores.items()}
    if "bin_pred" in predictions:
        decided = classification_scores(jobs["mem_bin"], predictions["probabilities"], predictions["bin_pred"])
        found |= {
            f"mem_bin_decided_recall_{name}": decided[f"recall_{name}"]
            for name in BIN_NAMES
            if f"recall_{name}" in decided
        }
    if "kill_time" not in predictions:
        for name in ("coverage", "reserved"):
            found.pop(f"wallclock_kill_time_{name}", None)
    return found


def floor_of(data: TrainingData) -> dict[str, float]:
    """The best that any function of the nine features could score on the test jobs, as ``{target}_{score}``."""
    jobs, features = data.jobs.iloc[data.test], data.features[data.test]
    floors = {
        "mem_bin": classification_floor(features, jobs["mem_bin"], jobs["wallclock"]),
        "memory": regression_floor(features, jobs["memory"]),
        "wallclock": regression_floor(features, jobs["wallclock"]),
    }
    return {f"{target}_{name}": value for target, scores in floors.items() for name, value in scores.items()}


def paired_interval(
    key: str, jobs: pd.DataFrame, ours: Predictions, theirs: Predictions, seed: int
) -> tuple[float, float]:
    """95 % interval of our score minus theirs, by drawing the same test jobs, with replacement, for both.

    Parameters
    ----------
    key : str
        ``mem_bin_accuracy``, ``mem_bin_excess_cost``, or rmse, mae or log_mae of memory or wallclock.
    jobs : DataFrame of n test jobs
    ours, theirs : Predictions
    seed : int

    References
    ----------
    Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    weights = np.random.default_rng(seed).multinomial(len(jobs), np.full(len(jobs), 1 / len(jobs)), size=DRAWS)
    low, high = np.percentile(_score(key, jobs, ours, weights) - _score(key, jobs, theirs, weights), INTERVAL)
    return float(low), float(high)


def _score(key: str, jobs: pd.DataFrame, predictions: Predictions, weights: NDArray) -> NDArray[np.float64]:
    """One score of weighted jobs, shape (draws,), for weights of shape (draws, n)."""
    target, name = next((target, key.removeprefix(f"{target}_")) for target in PREDICTED if key.startswith(target))
    actual = jobs[target].to_numpy()
    if name == "accuracy":
        return _mean(predictions["probabilities"].argmax(axis=1) == actual, weights)
    if name == "excess_cost":
        wallclock_s = jobs["wallclock"].to_numpy()
        best = allocation_cost(actual, actual, wallclock_s)
        return weights @ allocation_cost(predictions["bin_pred"], actual, wallclock_s) / (weights @ best) - 1
    predicted = predictions[PREDICTED[target]]
    if name == "log_mae":
        return _mean(np.abs(np.log(np.maximum(predicted, SMALLEST_PREDICTION)) - np.log(actual)), weights)
    if name == "mae":
        return _mean(np.abs(predicted - actual), weights)
    return np.sqrt(_mean((predicted - actual) ** 2, weights))


def _mean(values: ArrayLike, weights: NDArray) -> NDArray[np.float64]:
    return weights @ np.asarray(values, dtype=float) / weights.sum(axis=1)
