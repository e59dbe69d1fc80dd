"""Scores and results of the memory and wallclock regressors on their test split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.results.checks import REGRESSOR_HISTORY, amounts, epochs, named_split

REGRESSION_TARGETS = ("memory", "wallclock")

SMALLEST_PREDICTION = 1e-3
"""Logarithms take a prediction below this (1 ms, 1 MB) as this: a network may answer 0 or less."""

LOSS = (
    "train_loss", "train_rmse", "test_loss", "test_rmse", "rmse_pos", "rmse_neg", "l2_norm", "l2_pos", "l2_neg",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class RegressionResults:
    """Results of a regressor on the n jobs of its test split, in the unit of the target: GB or seconds.

    ``test_idx``, ``loss`` and ``history`` are None where an older folder lacks their file.
    """

    test_idx: pd.Series | None  # actual values, named memory or wallclock; the index, named ipst, holds the names
    predictions: NDArray[np.float64]  # predicted, actual; shape (n, 2)
    residuals: NDArray[np.float64]  # predicted - actual, shape (n,)
    # Losses are mean squared errors. rmse_pos and l2_pos are the root mean square and the Euclidean norm of the
    # residuals above 0, rmse_neg and l2_neg those of the others, l2_norm that of all.
    loss: dict[str, float] | None
    history: dict[str, NDArray[np.float64]] | None  # one value per epoch; keys as in `REGRESSOR_HISTORY`


def regression_results(
    test_idx: pd.Series, predicted: ArrayLike, history: Mapping[str, Any] | None, train_mse: float | None
) -> RegressionResults:
    """Compute the results of a regressor from its answers for the test split.

    ``test_idx`` holds the actual values by dataset name and is named ``memory`` (GB) or ``wallclock`` (seconds);
    ``predicted`` has the shape (n,) or (n, 1). ``history`` holds the values per epoch; it and ``train_mse``, the mean
    squared error on the training split, are None if the training is not known.
    """
    if test_idx.name not in REGRESSION_TARGETS:
        raise InputError(f"test split is named {test_idx.name!r}; expected {' or '.join(REGRESSION_TARGETS)}")
    split = named_split(test_idx, str(test_idx.name))
    values = np.asarray(predicted, dtype=float)
    if values.shape not in ((len(split),), (len(split), 1)):
        raise InputError(f"predictions of {split.name} have shape {values.shape}; expected ({len(split)},)")
    values = values.reshape(-1)
    if not np.all(np.isfinite(values)):
        raise InputError(f"predictions of {split.name} hold a value that is not finite; expected one number per job")
    residuals = values - split.to_numpy()
    return RegressionResults(
        test_idx=split,
        predictions=np.column_stack([values, split.to_numpy()]),
        residuals=residuals,
        loss=None if train_mse is None else _loss(residuals, float(train_mse)),
        history=None if history is None else epochs(history, REGRESSOR_HISTORY),
    )


def regression_scores(actual: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Score predictions of memory or wallclock; actual values are above 0.

    rmse, mae (unit of the target) and r2; log_rmse, log_mae, log_r2, the same of the natural logarithms; ape_mean,
    ape_median, ape_p95, ape_p99 of abs(predicted - actual) / actual (0.1: 10 %). r2 and log_r2 are left out where all
    actual values are equal.
    """
    actual = amounts(actual, "actual values", positive=True)
    predicted = np.asarray(predicted, dtype=float)
    if predicted.shape != actual.shape or not np.all(np.isfinite(predicted)):
        raise InputError(f"predictions of shape {predicted.shape} do not fit; expected {len(actual)} finite numbers")
    logs = np.log(actual), np.log(np.maximum(predicted, SMALLEST_PREDICTION))
    ape = np.abs(predicted - actual) / actual
    median, p95, p99 = np.percentile(ape, [50, 95, 99])
    percentages = {"ape_mean": ape.mean(), "ape_median": median, "ape_p95": p95, "ape_p99": p99}
    scores = _errors(actual, predicted) | {f"log_{key}": value for key, value in _errors(*logs).items()} | percentages
    return {name: float(score) for name, score in scores.items() if not np.isnan(score)}


def _errors(actual: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    residuals = predicted - actual
    mse, variance = np.mean(residuals**2), np.mean((actual - actual.mean()) ** 2)
    # The mean of equal numbers can miss them by their last digit, so the variance alone does not tell them.
    r2 = 1 - mse / variance if np.ptp(actual) > 0 and variance > 0 else np.nan
    return {"rmse": np.sqrt(mse), "mae": np.mean(np.abs(residuals)), "r2": r2}


def _loss(residuals: NDArray[np.float64], train_mse: float) -> dict[str, float]:
    above, below = residuals[residuals > 0], residuals[residuals <= 0]
    numbers = (
        train_mse, np.sqrt(train_mse), np.mean(residuals**2), _rms(residuals), _rms(above), _rms(below),
        np.linalg.norm(residuals), np.linalg.norm(above), np.linalg.norm(below),
    )  # fmt: skip
    return dict(zip(LOSS, map(float, numbers), strict=True))


def _rms(values: NDArray[np.float64]) -> float:
    """Root mean square; 0 for no values."""
    return float(np.linalg.norm(values) / np.sqrt(max(len(values), 1)))
