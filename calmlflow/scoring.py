"""Score what anything predicts (a network, a forest, the champion) in one and the same way."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.results.scores import decision_scores, regression_scores

PREDICTED = {"mem_bin": "bin_pred", "memory": "mem_pred", "wallclock": "wall_pred"}
"""Target -> the prediction of it, as job records and bundles name it."""


def score_predictions(target: str, jobs: pd.DataFrame, predictions: Mapping[str, NDArray]) -> dict[str, float]:
    """Score predictions of one target.

    Parameters
    ----------
    target : {"mem_bin", "memory", "wallclock"}
    jobs : DataFrame of n jobs
        Job records; their actual values are what the predictions are held against.
    predictions : mapping of str to ndarray of n rows
        As `calmlflow.predictor.bundle.Predictions`: ``bin_pred`` and ``probabilities``, ``mem_pred``, or
        ``wall_pred`` and, where there are kill times, ``kill_time``.

    Returns
    -------
    dict of str to float
        See `decision_scores` and `regression_scores`. With kill times also kill_time_coverage (share of jobs
        that end before theirs) and kill_time_reserved (seconds reserved over seconds used).
    """
    actual = jobs[target].to_numpy()
    predicted = predictions[PREDICTED[target]]
    if target == "mem_bin":
        return decision_scores(actual, predictions["probabilities"], predicted, jobs["wallclock"].to_numpy())
    scores = regression_scores(actual, predicted)
    if target == "wallclock" and "kill_time" in predictions:
        kill_time_s = predictions["kill_time"]
        scores["kill_time_coverage"] = float(np.mean(actual <= kill_time_s))
        scores["kill_time_reserved"] = float(kill_time_s.sum() / actual.sum())
    return scores
