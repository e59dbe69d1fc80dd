"""What cross-validation and the search share: train on all folds but one, score on that one."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.backend import tf
from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.scaling import fit_scaling
from calmlflow.networks.training import Trained, TrainingConfig, train_network
from calmlflow.predictor.bundle import Predictions, combine
from calmlflow.predictor.decision import SeenRows, fit_decision
from calmlflow.predictor.killtime import fit_kill_time
from calmlflow.results.classification import cross_entropy
from calmlflow.results.scores import score_predictions
from calmlflow.runs.data import TrainingData
from calmlflow.settings import TARGETS

# Each training compiles its epochs anew, which TensorFlow takes for an oversight from the fifth on.
tf.get_logger().setLevel("ERROR")


@dataclass(frozen=True)
class FoldResult:
    """What one network did on one fold.

    Attributes
    ----------
    scores : dict of str to float
        Of the held-out jobs; see `calmlflow.results.scores.score_predictions`. Bins are decided and kill times
        calibrated as a training does it, with a risk of 0.
    answers : ndarray, shape (h, 4) or (h,)
        For each held-out job: probabilities, GB or seconds.
    train_scores : tuple of float
        Of the other jobs: accuracy and cross-entropy, or the mean squared error alone.
    history : dict of str to ndarray, shape (epochs,)
    fit_seconds : float
    """

    scores: dict[str, float]
    answers: NDArray[np.float64]
    train_scores: tuple[float, ...]
    history: dict[str, NDArray[np.float32]]
    fit_seconds: float


def hold_out(data: TrainingData, pool: NDArray[np.int64], fold_of_job: NDArray[np.int64], fold: int) -> TrainingData:
    """The same jobs with one fold of a pool as test split and the rest of the pool as training split.

    Parameters
    ----------
    data : TrainingData
    pool : ndarray of int, shape (p,)
        Positions of the jobs that take part; no other job is trained on or scored.
    fold_of_job : ndarray of int, shape (p,)
        See `calmlflow.networks.preprocess.deal`.
    fold : int
    """
    train = pool[fold_of_job != fold]
    return replace(
        data,
        train=train,
        test=pool[fold_of_job == fold],
        scaling=fit_scaling(data.features[train]),
    )


def train_and_score(network: str, data: TrainingData, config: TrainingConfig, seed: int) -> FoldResult:
    """Train a network on the training split and score it on the test split.

    Raises
    ------
    CalmlflowError
        Training diverged.
    """
    target = TARGETS[network]
    values = data.jobs[target].to_numpy()
    actual = values[data.train]
    target_range = None if network == "mem_clf" else TargetRange.of(actual)
    rows = data.training_rows(network, config.members, seed)
    trained = train_network(network, rows, config, seed, target_range)
    output = np.asarray(trained.model(data.scaling.apply(data.rows.features)), dtype=float)
    predictions = {
        name: column[data.rows.row_of_job] for name, column in _decide(network, data, trained, output).items()
    }
    answers = output if network == "mem_clf" else output[:, 0]
    scores = score_predictions(target, data.jobs.iloc[data.test], {n: c[data.test] for n, c in predictions.items()})
    known = answers[data.rows.row_of_job[data.train]]
    train_scores: tuple[float, ...]
    if network == "mem_clf":
        train_scores = float(np.mean(known.argmax(axis=1) == actual)), cross_entropy(actual, known)
    else:
        train_scores = (float(np.mean((known - actual) ** 2)),)
    held_out = answers[data.rows.row_of_job[data.test]]
    return FoldResult(scores, held_out, train_scores, trained.history, trained.fit_seconds)


def _decide(network: str, data: TrainingData, trained: Trained, output: NDArray[np.float64]) -> Predictions:
    """What a bundle of this training would make of what the network says of the distinct rows."""
    seen = distinct_rows(data.features[data.train])
    nearest = SeenRows(data.scaling.apply(seen.features)).nearest(data.scaling.apply(data.rows.features))
    jobs = data.jobs.iloc[data.train]
    decision = fit_decision(jobs["mem_bin"], jobs["wallclock"], seen.row_of_job) if network == "mem_clf" else None
    kill_time = None
    if network == "wall_reg":
        kill_time = fit_kill_time(trained.left_out[:, 0], jobs["wallclock"], seen.row_of_job)
    return combine({network: output}, {network: nearest}, decision, kill_time)
