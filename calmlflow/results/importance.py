"""Measure how much the predictions rest on each feature."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import inspection

from calmlflow.results.classification import cross_entropy

REPEATS = 5
MAX_JOBS = 20_000
"""A larger test split is sampled: the spread over repeats is far below any difference that matters."""


@dataclass(frozen=True)
class _Estimator:
    """A trained predictor as scikit-learn expects one."""

    predict: Callable[[NDArray[np.float64]], ArrayLike]

    def fit(self, features: ArrayLike, actual: ArrayLike) -> "_Estimator":
        return self


def permutation_importance(
    predict: Callable[[NDArray[np.float64]], ArrayLike], features: ArrayLike, actual: ArrayLike, seed: int = 0
) -> NDArray[np.float64]:
    """Rise of the error when one feature is shuffled among jobs, shape (9 features, 5 shuffles).

    The error is the log loss (nats) of a classifier, whose ``predict`` gives probabilities (k, 4) for raw features
    (k, 9), or the root mean squared error (unit of the target) of a regressor, whose ``predict`` gives values (k,). See
    Fisher, Rudin and Dominici, All models are wrong, but many are useful, JMLR 20 (2019).
    """
    features, actual = np.asarray(features, dtype=float), np.asarray(actual)
    if len(features) > MAX_JOBS:
        drawn = np.random.default_rng(seed).choice(len(features), MAX_JOBS, replace=False)
        features, actual = features[drawn], actual[drawn]

    def score(estimator: _Estimator, features: NDArray[np.float64], actual: NDArray) -> float:
        predicted = np.asarray(estimator.predict(features), dtype=float)
        if predicted.ndim == 2:
            return -cross_entropy(actual.astype(np.int64), predicted)
        return -float(np.sqrt(np.mean((predicted - actual) ** 2)))

    found = inspection.permutation_importance(
        _Estimator(predict), features, actual, scoring=score, n_repeats=REPEATS, random_state=seed
    )
    return np.asarray(found.importances)
