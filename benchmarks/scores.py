"""Score predictions of the test jobs, and compare two of them by a paired bootstrap."""

import pandas as pd

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.predictor.bundle import Predictions
from calmlflow.results.comparison import compare_predictions
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.scores import PREDICTED, SCORES, Score, score_predictions
from calmlflow.runs.data import TrainingData


def scores_of(jobs: pd.DataFrame, predictions: Predictions) -> dict[str, float]:
    """Scores of the test jobs as ``{target}_{score}``; see `calmlflow.results.scores.score_predictions`.

    Beside those: ``mem_bin_decided_recall_2g`` and so on, of the bins decided on; kill times of 3 and 6
    times the prediction are scored for who has no kill time of its own, too. Targets without predictions are left out.
    """
    found: dict[str, float] = {}
    for target, prediction in PREDICTED.items():
        if prediction in predictions:
            scores = score_predictions(target, jobs, {"kill_time": predictions[prediction], **predictions})
            found |= {f"{target}_{name}": value for name, value in scores.items()}
    if "bin_pred" in predictions:
        hit = predictions["bin_pred"] == jobs["mem_bin"].to_numpy()
        for label, recall in pd.Series(hit).groupby(jobs["mem_bin"].to_numpy()).mean().items():
            found[f"mem_bin_decided_recall_{BIN_NAMES[int(str(label))]}"] = float(recall)
    if "kill_time" not in predictions:
        for name in ("coverage", "reserved"):
            found.pop(f"wallclock_kill_time_{name}", None)
    return found


def score_of(key: str) -> Score:
    """The score of a key ``{target}_{score}``."""
    target = _target_of(key)
    return SCORES[target][key.removeprefix(f"{target}_")]


def _target_of(key: str) -> str:
    return next(target for target in SCORES if key.startswith(target))


def floor_of(data: TrainingData) -> dict[str, float]:
    """The best that any function of the nine features could score on the test jobs, as ``{target}_{score}``."""
    jobs, features = data.jobs.iloc[data.test], data.features[data.test]
    floors = {
        "mem_bin": classification_floor(features, jobs["mem_bin"], jobs["wallclock"]),
        "memory": regression_floor(features, jobs["memory"]),
        "wallclock": regression_floor(features, jobs["wallclock"]),
    }
    return {f"{target}_{name}": value for target, scores in floors.items() for name, value in scores.items()}


def paired_scores(key: str, jobs: pd.DataFrame, ours: Predictions, theirs: Predictions, seed: int) -> pd.Series:
    """One score of both for the test jobs, their difference, and the bounds of its interval."""
    return compare_predictions(_target_of(key), jobs, ours, theirs, seed).scores.loc[score_of(key).name]
