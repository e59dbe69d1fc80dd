"""Permutation feature importance."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.features import FEATURES
from calmlflow.results.classification import cross_entropy

REPEATS = 5
MAX_JOBS = 20_000
"""A larger test split is sampled: the spread over repeats is far below any difference that matters."""


def permutation_importance(
    predict: Callable[[NDArray[np.float64]], ArrayLike], features: ArrayLike, actual: ArrayLike, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """How much the error rises when one feature is shuffled among jobs.

    Parameters
    ----------
    predict : callable
        Raw features, shape (k, 9) -> probabilities (k, 4) of a classifier, or values (k,) of a regressor. Called with
        distinct rows only.
    features : array_like, shape (n, 9)
        Raw, in the order of `FEATURES`. Of more than 20,000 jobs, as many are drawn.
    actual : array_like, shape (n,)
        Bins 0..3, GB or seconds.
    seed : int, default 0

    Returns
    -------
    dict of str to ndarray, shape (5,)
        Feature -> rise in each of five shuffles: of the log loss (nats) of a classifier, of the root mean squared
        error (unit of the target) of a regressor.

    References
    ----------
    Fisher, Rudin and Dominici, All models are wrong, but many are useful, JMLR 20 (2019).
    """
    generator = np.random.default_rng(seed)
    features, actual = np.asarray(features, dtype=float), np.asarray(actual)
    if len(features) > MAX_JOBS:
        drawn = generator.choice(len(features), MAX_JOBS, replace=False)
        features, actual = features[drawn], actual[drawn]

    def error(rows: NDArray[np.float64]) -> float:
        # Many jobs share their features: what they have in common is predicted once.
        table = pd.DataFrame(rows)
        group = table.groupby(list(table.columns), sort=False).ngroup().to_numpy()
        _, first = np.unique(group, return_index=True)
        predicted = np.asarray(predict(rows[first]), dtype=float)[group]
        if predicted.ndim == 2:
            return cross_entropy(actual.astype(np.int64), predicted)
        return float(np.sqrt(np.mean((predicted - actual) ** 2)))

    before = error(features)
    rises = {}
    for column, name in enumerate(FEATURES):
        shuffled = features.copy()
        rises[name] = np.empty(REPEATS)
        for repeat in range(REPEATS):
            shuffled[:, column] = generator.permutation(features[:, column])
            rises[name][repeat] = error(shuffled) - before
    return rises
