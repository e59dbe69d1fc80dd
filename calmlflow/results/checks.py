"""Checks of what a training hands over, shared by the classifier's and the regressors' results."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES

N_BINS = len(BIN_NAMES)

CLASSIFIER_HISTORY = ("loss", "accuracy", "val_loss", "val_accuracy")
REGRESSOR_HISTORY = ("loss", "rmse", "val_loss", "val_rmse")
"""Order of the arrays in a history: the earlier library finds them by position."""


def named_split(test_idx: pd.Series, target: str) -> pd.Series:
    """The test split as a series named for its target, with dataset names as index ``ipst``."""
    if len(test_idx) == 0:
        raise InputError(f"test split of {target} is empty; expected at least one job")
    values = pd.to_numeric(test_idx, errors="coerce").to_numpy(dtype=float)
    if not np.all(np.isfinite(values)):
        raise InputError(f"test split of {target} holds a value that is no finite number; expected one number per job")
    return pd.Series(values, index=pd.Index(test_idx.index.astype(str), name="ipst"), name=target)


def memory_bins(values: ArrayLike, what: str) -> NDArray[np.int64]:
    """Memory bins as integers; an InputError where a value is no rung's."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not np.all(np.isin(values, range(N_BINS))):
        raise InputError(f"{what} holds a value that is no memory bin; expected one of 0 to {N_BINS - 1} per job")
    return values.astype(np.int64)


def probability_rows(values: ArrayLike, n: int) -> NDArray[np.float64]:
    """Class probabilities, shape (n, 4); an InputError where a row is no probability distribution."""
    values = np.asarray(values, dtype=float)
    if values.shape != (n, N_BINS):
        raise InputError(f"class probabilities have shape {values.shape}; expected ({n}, {N_BINS})")
    # Networks answer in float32: their rows add up to 1 to about six places.
    if not np.all((values >= 0) & (values <= 1 + 1e-6)) or not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise InputError("class probabilities do not add up to 1 in every row; expected the output of a softmax")
    return values


def amounts(values: ArrayLike, what: str, positive: bool = False) -> NDArray[np.float64]:
    """GB or seconds of jobs, shape (n,); an InputError for no job, or a value below 0 (or of 0, if ``positive``)."""
    values = np.asarray(values, dtype=float)
    sound = np.isfinite(values) & ((values > 0) if positive else (values >= 0))
    if values.ndim != 1 or len(values) == 0 or not np.all(sound):
        least = "above 0" if positive else "of 0 or more"
        raise InputError(f"{what} must be finite numbers {least}, one per job and at least one")
    return values


def epochs(history: Mapping[str, Any], keys: tuple[str, ...], where: str = "history") -> dict[str, NDArray[np.float64]]:
    """The arrays of a history in the order of ``keys``; an InputError where one is absent or of another length."""
    if absent := [key for key in keys if key not in history]:
        raise InputError(f"{where} has no {absent[0]!r}; expected {', '.join(keys)}")
    arrays = {key: np.asarray(history[key], dtype=float) for key in keys}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise InputError(f"{where} has arrays of shapes {sorted(shapes)}; expected one value per epoch in each")
    return arrays
