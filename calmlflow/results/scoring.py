"""Score what anything predicts (a network, a forest, the champion) in one and the same way."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.results.scores import decision_scores, regression_scores
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

PREDICTED = {"mem_bin": "bin_pred", "memory": "mem_pred", "wallclock": "wall_pred"}
"""Target -> the prediction of it, as job records and bundles name it."""

FIXED_FACTORS = (3, 6)
"""Kill times as multiples of the prediction, which the calibrated ones are held against."""


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
        that end before theirs) and kill_time_reserved (seconds reserved over seconds used), and the same with 3x
        and 6x in the name, had it been so many times the prediction for every job.
    """
    actual = jobs[target].to_numpy()
    predicted = predictions[PREDICTED[target]]
    if target == "mem_bin":
        return decision_scores(actual, predictions["probabilities"], predicted, jobs["wallclock"].to_numpy())
    scores = regression_scores(actual, predicted)
    if target == "wallclock" and "kill_time" in predictions:
        fixed = {f"_{n}x": np.clip(np.ceil(n * predicted), KILL_TIME_MIN_S, KILL_TIME_MAX_S) for n in FIXED_FACTORS}
        for name, kill_time_s in {"": predictions["kill_time"], **fixed}.items():
            scores[f"kill_time{name}_coverage"] = float(np.mean(actual <= kill_time_s))
            scores[f"kill_time{name}_reserved"] = float(kill_time_s.sum() / actual.sum())
    return scores
