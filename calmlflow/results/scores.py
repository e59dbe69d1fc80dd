"""Scores of a network on its test split: flat dicts of floats, ready to be logged.

A score that is undefined for the split is left out, never NaN.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES, excess_cost
from calmlflow.results.checks import N_BINS, memory_bins, positive_values, probability_rows, wallclock_seconds
from calmlflow.results.classification import cross_entropy, roc_auc_by_bin

CALIBRATION_BINS = 15
SMALLEST_PREDICTION = 1e-3
"""Logarithms take a prediction below this (1 ms, 1 MB) as this: a network may answer 0 or less."""


def classification_scores(
    y_true: ArrayLike, probabilities: ArrayLike, chosen: ArrayLike, wallclock_s: ArrayLike | None = None
) -> dict[str, float]:
    """Score the memory bins of a test split.

    Parameters
    ----------
    y_true : array_like of int, shape (n,)
        Needed bins, 0..3.
    probabilities : array_like of float, shape (n, 4)
        Softmax of the classifier.
    chosen : array_like of int, shape (n,)
        Bins that were decided on; need not be the most probable ones.
    wallclock_s : array_like of float, shape (n,), optional
        Actual wallclock of the jobs, seconds. Without it excess_cost is left out.

    Returns
    -------
    dict of str to float
        Of the chosen bins: accuracy; balanced_accuracy and f1_macro (means over the bins that the split has);
        precision_2g, recall_2g and so on (precision is 0 for a bin never chosen); underallocated and overallocated
        (shares of jobs chosen too low, too high); excess_cost (0.03 means 3 % dearer than always choosing the needed
        bin). Of the probabilities: roc_auc_2g and so on; log_loss (nats); ece, the expected calibration error over 15
        equally wide bins of the greatest probability. Keys of a bin that the split lacks are left out, and so is
        the roc_auc of a bin that all its jobs need.

    Raises
    ------
    InputError
        Arrays that do not fit one another, bins that are none, rows that are no probabilities, or no job.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017 (ece).
    """
    y_true, chosen = memory_bins(y_true, "y_true"), memory_bins(chosen, "chosen")
    if len(y_true) == 0:
        raise InputError("y_true is empty; expected at least one job")
    if len(chosen) != len(y_true):
        raise InputError(f"chosen has {len(chosen)} values; expected {len(y_true)}, as many as y_true")
    probabilities = probability_rows(probabilities, len(y_true))
    counts = confusion_matrix(y_true, chosen, labels=range(N_BINS))
    hits, needed, picked = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    present = needed > 0
    recall = hits / np.maximum(needed, 1)
    scores = {
        "accuracy": float(hits.sum() / len(y_true)),
        "balanced_accuracy": float(recall[present].mean()),
        "f1_macro": float((2 * hits / np.maximum(needed + picked, 1))[present].mean()),
        "log_loss": cross_entropy(y_true, probabilities),
        "ece": _calibration_error(y_true, probabilities),
        "underallocated": float(np.mean(chosen < y_true)),
        "overallocated": float(np.mean(chosen > y_true)),
    }
    if wallclock_s is not None:
        scores["excess_cost"] = excess_cost(chosen, y_true, wallclock_seconds(wallclock_s, len(y_true)))
    by_bin = {
        "precision": np.where(present, hits / np.maximum(picked, 1), np.nan),
        "recall": np.where(present, recall, np.nan),
        "roc_auc": roc_auc_by_bin(y_true, probabilities),
    }
    for score, values in by_bin.items():
        scores |= {f"{score}_{name}": float(value) for name, value in zip(BIN_NAMES, values, strict=True)}
    return _defined(scores)


def decision_scores(
    y_true: ArrayLike, probabilities: ArrayLike, decided: ArrayLike, wallclock_s: ArrayLike | None = None
) -> dict[str, float]:
    """Score a classifier whose rung is decided by cost: being right, and what it costs, are judged apart.

    Parameters
    ----------
    y_true, probabilities, wallclock_s
        As for `classification_scores`.
    decided : array_like of int, shape (n,)
        Bins that jobs are put in.

    Returns
    -------
    dict of str to float
        Scores of the most probable bins, but excess_cost, underallocated and overallocated of the bins decided on;
        excess_cost_argmax is what the most probable bins would have cost. Costs only where the wallclock is known.
    """
    likeliest = np.asarray(probabilities).argmax(axis=1)
    scores = classification_scores(y_true, probabilities, likeliest, wallclock_s)
    costs = classification_scores(y_true, probabilities, decided, wallclock_s)
    if "excess_cost" in scores:
        scores["excess_cost_argmax"] = scores["excess_cost"]
    names = ("excess_cost", "underallocated", "overallocated")
    return scores | {name: costs[name] for name in names if name in costs}


def regression_scores(actual: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Score the predictions of a regressor on a test split.

    Parameters
    ----------
    actual, predicted : array_like of float, shape (n,)
        GB or seconds; actual values above 0.

    Returns
    -------
    dict of str to float
        rmse, mae (unit of the target) and r2; log_rmse, log_mae, log_r2, the same of the natural logarithms;
        ape_mean, ape_median, ape_p95, ape_p99: mean, median and percentiles of abs(predicted - actual) / actual (0.1
        means 10 %). r2 and log_r2 are left out where all actual values are equal.

    Raises
    ------
    InputError
        Arrays that do not fit one another, values that are not finite, actual values of 0 or less, or no job.
    """
    actual = positive_values(actual)
    predicted = np.asarray(predicted, dtype=float)
    if predicted.shape != actual.shape or not np.all(np.isfinite(predicted)):
        raise InputError(f"predictions of shape {predicted.shape} do not fit; expected {len(actual)} finite numbers")
    logs = np.log(actual), np.log(np.maximum(predicted, SMALLEST_PREDICTION))
    ape = np.abs(predicted - actual) / actual
    median, p95, p99 = np.percentile(ape, [50, 95, 99])
    percentages = {"ape_mean": ape.mean(), "ape_median": median, "ape_p95": p95, "ape_p99": p99}
    scores = _errors(actual, predicted) | {f"log_{key}": value for key, value in _errors(*logs).items()} | percentages
    return _defined({key: float(value) for key, value in scores.items()})


def _errors(actual: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    residuals = predicted - actual
    mse, variance = np.mean(residuals**2), np.mean((actual - actual.mean()) ** 2)
    # The mean of equal numbers can miss them by their last digit, so the variance alone does not tell them.
    r2 = 1 - mse / variance if np.ptp(actual) > 0 and variance > 0 else math.nan
    return {"rmse": np.sqrt(mse), "mae": np.mean(np.abs(residuals)), "r2": r2}


def _calibration_error(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    confidence = probabilities.max(axis=1)
    gaps = (probabilities.argmax(axis=1) == y_true) - confidence
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=gaps)).sum() / len(y_true))


def _defined(scores: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in scores.items() if not math.isnan(value)}
