"""What cross-validation and the search share: train on all folds but one, score on that one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.errors import InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.backend import tf
from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.scaling import fit_scaling
from calmlflow.networks.split import stratified_split
from calmlflow.networks.training import RowSet, Trained, TrainingConfig, classifier_rows, regressor_rows, train_network
from calmlflow.predictor.decision import SeenRows, fit_decision
from calmlflow.predictor.killtime import fit_kill_time
from calmlflow.results.classification import cross_entropy
from calmlflow.scoring import score_predictions
from calmlflow.settings import KILL_TIME_MAX_S, NETWORKS, TARGETS
from calmlflow.training_data import VALIDATION_SHARE, TrainingData

# Each training compiles its epochs anew, which TensorFlow takes for an oversight from the fifth on.
tf.get_logger().setLevel("ERROR")


@dataclass(frozen=True)
class FoldResult:
    """What one network did on one fold.

    Attributes
    ----------
    scores : dict of str to float
        Of the held-out jobs; see `calmlflow.scoring.score_predictions`. Bins are decided and kill times
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


def parse_networks(text: str) -> tuple[str, ...]:
    """The networks named by ``all`` or by names with commas between, in the order of `NETWORKS`."""
    named = set(NETWORKS) if text == "all" else {name.strip() for name in text.split(",")}
    if unknown := sorted(named - set(NETWORKS)):
        raise InputError(f"network {unknown[0]!r} does not exist; expected all, or some of {', '.join(NETWORKS)}")
    return tuple(network for network in NETWORKS if network in named)


def deal(bins: ArrayLike, folds: int, seed: int, stratified: bool) -> NDArray[np.int64]:
    """Deal shuffled jobs to folds like cards, shape (n,): the fold (from 0) in which each job is held out.

    Folds differ by one job at most; stratified ones also in the jobs of each memory bin.

    Parameters
    ----------
    bins : array_like of int, shape (n,)
    folds : int
    seed : int
    stratified : bool
    """
    bins = np.asarray(bins)
    order = np.random.default_rng(seed).permutation(len(bins))
    if stratified:
        order = order[np.argsort(bins[order], kind="stable")]
    fold_of_job = np.empty(len(bins), dtype=np.int64)
    fold_of_job[order] = np.arange(len(bins)) % folds
    return fold_of_job


def hold_out(
    data: TrainingData, pool: NDArray[np.int64], fold_of_job: NDArray[np.int64], fold: int, seed: int
) -> TrainingData:
    """The same jobs with one fold of a pool as test split and the rest of the pool as training split.

    Parameters
    ----------
    data : TrainingData
    pool : ndarray of int, shape (p,)
        Positions of the jobs that take part; no other job is trained on or scored.
    fold_of_job : ndarray of int, shape (p,)
        See `deal`.
    fold : int
    seed : int
        Of the validation split, which is carved from the training split.
    """
    train = pool[fold_of_job != fold]
    fit, validation = stratified_split(data.jobs["mem_bin"].to_numpy()[train], VALIDATION_SHARE, seed)
    return replace(
        data,
        train=train,
        test=pool[fold_of_job == fold],
        fit=train[fit],
        validation=train[validation],
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
    fit, validation, train = (_row_set(network, data, part) for part in (data.fit, data.validation, data.train))
    trained = train_network(network, fit, validation, train, config, seed, target_range)
    answers = np.asarray(trained.model(data.scaling.apply(data.rows.features)), dtype=float)
    if network != "mem_clf":
        answers = answers[:, 0]
    predictions = {
        name: column[data.rows.row_of_job] for name, column in _decide(network, data, trained, answers).items()
    }
    scores = score_predictions(target, data.jobs.iloc[data.test], {n: c[data.test] for n, c in predictions.items()})
    known = answers[data.rows.row_of_job[data.train]]
    train_scores: tuple[float, ...]
    if network == "mem_clf":
        train_scores = float(np.mean(known.argmax(axis=1) == actual)), cross_entropy(actual, known)
    else:
        train_scores = (float(np.mean((known - actual) ** 2)),)
    held_out = answers[data.rows.row_of_job[data.test]]
    return FoldResult(scores, held_out, train_scores, trained.history, trained.fit_seconds)


def _decide(network: str, data: TrainingData, trained: Trained, answers: NDArray[np.float64]) -> dict[str, NDArray]:
    """Answers for the distinct rows, and what is made of them, as a bundle of this training would."""
    if network == "mem_reg":
        return {"mem_pred": answers}
    seen = distinct_rows(data.features[data.train])
    nearest = SeenRows(data.scaling.apply(seen.features)).nearest(data.scaling.apply(data.rows.features))
    wallclock_s = data.jobs["wallclock"].to_numpy()
    if network == "mem_clf":
        bins = data.jobs["mem_bin"].to_numpy()[data.train]
        chosen = fit_decision(bins, wallclock_s[data.train], seen.row_of_job).choose(answers, nearest)
        return {"probabilities": answers, "bin_pred": np.minimum(chosen + (nearest < 0), len(LADDER) - 1)}
    held_back = distinct_rows(data.features[data.validation]).row_of_job
    kill_time = fit_kill_time(trained.validated[held_back, 0], wallclock_s[data.validation]).apply(answers)
    return {"wall_pred": answers, "kill_time": np.where(nearest < 0, KILL_TIME_MAX_S, kill_time)}


def _row_set(network: str, data: TrainingData, part: NDArray[np.int64]) -> RowSet:
    rows = distinct_rows(data.features[part])
    make = classifier_rows if network == "mem_clf" else regressor_rows
    return make(data.scaling.apply(rows.features), rows, data.jobs[TARGETS[network]].to_numpy()[part])


@contextmanager
def counted(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on standard error that counts parts; nothing where that is no terminal.

    Yields
    ------
    callable
        Called with the parts done and a note.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
