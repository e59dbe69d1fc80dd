"""Compute the best scores that any function of the nine features could reach on given jobs."""

# Jobs with the same nine numbers differ, and no network can tell them apart: a network at its floor cannot be better.
# Only evidence can, which knows names; so reports call this the best without evidence.

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import allocation_cost
from calmlflow.results.checks import N_BINS, amounts, memory_bins


def classification_floor(features: ArrayLike, y_true: ArrayLike, wallclock_s: ArrayLike) -> dict[str, float]:
    """Best accuracy, and lowest excess cost, of any choice of memory bins that depends on the features only.

    accuracy is that of the most frequent bin of each distinct feature row, excess_cost (left out where the jobs took no
    time) that of its cheapest bin. Optimistic: the choice is made with the answers known, so a feature row that only
    one job has costs nothing. ``features`` of shape (n, 9) may be scaled or not; ``wallclock_s`` is in seconds.
    """
    y_true = memory_bins(y_true, "y_true")
    wallclock_s = amounts(wallclock_s, "wallclock_s")
    row, _ = _distinct_rows(features, len(y_true))
    counts = np.column_stack([np.bincount(row, y_true == chosen) for chosen in range(N_BINS)])
    costs = np.column_stack(
        [np.bincount(row, allocation_cost(chosen, y_true, wallclock_s)) for chosen in range(N_BINS)]
    )
    floor = {"accuracy": float(counts.max(axis=1).sum() / len(y_true))}
    needed = allocation_cost(y_true, y_true, wallclock_s).sum()
    if needed > 0:
        # Sums of the same dollars in another order may fall below each other by their last digit.
        floor["excess_cost"] = max(float(costs.min(axis=1).sum() / needed - 1), 0.0)
    return floor


def regression_floor(features: ArrayLike, actual: ArrayLike) -> dict[str, float]:
    """Lowest errors of any prediction that depends on the features only.

    rmse is that of the mean of each distinct feature row, mae that of its median, log_mae that of the median of the
    logarithms: optimistic, as in `classification_floor`. rmse_unbiased estimates the score of the best function on new
    jobs: the root of the sample variance within rows, left out where no row has two jobs.
    """
    actual = amounts(actual, "actual values", positive=True)
    row, n_rows = _distinct_rows(features, len(actual))
    values = pd.DataFrame({"actual": actual, "log": np.log(actual)})
    rows = values.groupby(row)
    distances = (values - rows.transform("median")).abs().mean()
    squares = float(((values["actual"] - rows["actual"].transform("mean")) ** 2).sum())
    rmse = float(np.sqrt(squares / len(actual)))
    floor = {"rmse": rmse, "mae": float(distances["actual"]), "log_mae": float(distances["log"])}
    # Rows of one job add nothing to either sum.
    if len(actual) > n_rows:
        floor["rmse_unbiased"] = float(np.sqrt(squares / (len(actual) - n_rows)))
    return floor


def _distinct_rows(features: ArrayLike, n: int) -> tuple[NDArray[np.int64], int]:
    """Number of each job's distinct feature row, shape (n,), and how many such rows there are."""
    features = np.asarray(features, dtype=float)
    if features.shape != (n, len(FEATURES)) or not np.all(np.isfinite(features)):
        raise InputError(
            f"features of shape {features.shape} do not fit; expected ({n}, {len(FEATURES)}) finite numbers"
        )
    groups = pd.DataFrame(features).groupby(list(range(len(FEATURES))), sort=False)
    return np.asarray(groups.ngroup(), dtype=np.int64), groups.ngroups
