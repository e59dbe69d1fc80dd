"""Train one network: the whole problem in memory, compiled epochs, no Python per batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.errors import CalmlflowError
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras, tf
from calmlflow.networks.distinct import DistinctRows

CHUNK = 50
"""Epochs per call of the compiled function; between calls progress is told and early stopping decided."""


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters of one network.

    Attributes
    ----------
    epochs : int
        At most; one epoch is one full-batch step over the distinct rows.
    learning_rate : float
        Peak of the schedule: a short warm-up, then a cosine down to zero.
    weight_decay : float
        Decoupled (AdamW).
    patience : int
        Epochs without a better validation loss after which training ends.
    linear_share : float
        Regressors only, 0..1: share of the squared error in the target's own unit in the loss; the rest is the squared
        error of its logarithm. Both have the row's mean as optimum; they differ in which rows are served first.
    """

    epochs: int = 1500
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    patience: int = 500
    linear_share: float = 0.1


DEFAULTS = {network: TrainingConfig() for network in ("mem_clf", "mem_reg", "wall_reg")}


@dataclass(frozen=True)
class RowSet:
    """Distinct rows ready for a network.

    Attributes
    ----------
    inputs : ndarray of float32, shape (m, 9)
        Scaled.
    targets : ndarray of float32, shape (m, 4) or (m,)
        Class frequencies, or means in the target's unit.
    weights : ndarray of float32, shape (m,)
        Share of the jobs; sum to 1.
    spread : float
        Mean squared distance of the jobs from their row's mean (0 for the classifier); added to the squared error so
        that histories speak of jobs.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    spread: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes
    ----------
    model : keras.Model
        Scaled features (n, 9) -> probabilities (n, 4), or the target in GB or seconds (n, 1).
    history : dict of str to ndarray, shape (epochs,)
        ``loss``, ``accuracy`` or ``rmse``, and the same with ``val_``, in this order. The loss of a regressor is the
        mean squared error in the target's unit, per job.
    best_epoch : int
        Epoch (from 0) whose weights were kept: the lowest validation loss.
    fit_seconds : float
    """

    model: keras.Model
    history: dict[str, NDArray[np.float32]]
    best_epoch: int
    fit_seconds: float


def classifier_rows(inputs: ArrayLike, rows: DistinctRows, bins: ArrayLike) -> RowSet:
    """Distinct rows for the classifier; ``inputs`` are the scaled features of ``rows``, shape (m, 9)."""
    return RowSet(np.asarray(inputs, np.float32), rows.bin_shares(bins), rows.weights)


def regressor_rows(inputs: ArrayLike, rows: DistinctRows, values: ArrayLike) -> RowSet:
    """Distinct rows for a regressor; ``values`` in GB or seconds, one per job."""
    means = rows.means(values).astype(np.float32)
    return RowSet(np.asarray(inputs, np.float32), means, rows.weights, rows.spread(values))


def train_network(
    network: str,
    train: RowSet,
    validation: RowSet,
    config: TrainingConfig,
    seed: int,
    target: TargetRange | None = None,
    on_progress: Callable[[int, int, float], None] = lambda epoch, epochs, val_loss: None,
) -> Trained:
    """Train one of the three networks on distinct, weighted rows.

    Every epoch is one full-batch step: the rows are few, and the exact gradient needs no shuffling, no batch size and
    no luck. The weights of the epoch with the lowest validation loss are kept.

    Parameters
    ----------
    network : {"mem_clf", "mem_reg", "wall_reg"}
    train, validation : RowSet
    config : TrainingConfig
    seed : int
        Equal seeds give equal numbers on one machine.
    target : TargetRange
        Needed for a regressor: range of the training targets.
    on_progress : callable
        Called now and then with epoch, epochs at most, and validation loss.

    Raises
    ------
    CalmlflowError
        The loss is not finite.
    """
    started = time.perf_counter()
    keras.utils.set_random_seed(seed)
    if target is None:
        model = fitted = build_classifier(network)
        objective, metric = _classification, "accuracy"
    else:
        model, fitted = build_regressor(network, target)
        objective, metric = _regression(target, train, config.linear_share), "rmse"
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, config.epochs, warmup_target=config.learning_rate, warmup_steps=max(config.epochs // 20, 1)
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay, clipnorm=1.0)
    variables = fitted.trainable_variables
    optimizer.build(variables)
    best = [tf.Variable(variable.value, trainable=False) for variable in variables]
    lowest = tf.Variable(np.inf, dtype=tf.float32, trainable=False)
    train_set, validation_set = _constants(train), _constants(validation)

    @tf.function
    def run_epochs(count):
        scores = tf.TensorArray(tf.float32, size=CHUNK, element_shape=(5,))
        for epoch in tf.range(count):
            # Scores first, step second: what is written down, and maybe kept, belongs to the same weights.
            with tf.GradientTape() as tape:
                goal, loss, score = objective(fitted(train_set[0], training=True), *train_set[1:])
            val_goal, val_loss, val_score = objective(fitted(validation_set[0]), *validation_set[1:])
            scores = scores.write(epoch, tf.stack([loss, score, val_loss, val_score, val_goal]))
            better = val_goal < lowest
            for kept, variable in zip(best, variables, strict=True):
                kept.assign(tf.where(better, variable.value, kept))
            lowest.assign(tf.where(better, val_goal, lowest))
            optimizer.apply(tape.gradient(goal, variables), variables)
        return scores.stack()

    log: list[NDArray[np.float32]] = []
    best_epoch, epoch = -1, 0
    while epoch < config.epochs and epoch - best_epoch <= config.patience:
        count = min(CHUNK, config.epochs - epoch)
        log.append(run_epochs(tf.constant(count)).numpy()[:count])
        goals = np.concatenate(log)[:, 4]
        if not np.all(np.isfinite(goals)):
            at = int(np.flatnonzero(~np.isfinite(goals))[0])
            raise CalmlflowError(
                f"{network}: the loss is not finite from epoch {at} on; expected a finite one: lower learning_rate "
                f"({config.learning_rate:g}), or look for extreme values in the data"
            )
        best_epoch = int(goals.argmin())
        epoch += count
        on_progress(epoch, config.epochs, float(goals[-1]))
    for variable, kept in zip(variables, best, strict=True):
        variable.assign(kept)
    scores = np.concatenate(log)
    names = ("loss", metric, "val_loss", f"val_{metric}")
    history = {name: scores[:, column] for column, name in enumerate(names)}
    return Trained(model, history, best_epoch, time.perf_counter() - started)


# An objective turns outputs, targets, weights and spread into three scalars: what is minimised, the loss and the metric
# that histories show.
Objective = Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def _classification(outputs, targets, weights, spread):
    del spread
    cross_entropy = -tf.reduce_sum(targets * tf.math.log(outputs + 1e-7), axis=-1)
    loss = tf.reduce_sum(weights * cross_entropy)
    hits = tf.gather(targets, tf.argmax(outputs, axis=-1), batch_dims=1)
    return loss, loss, tf.reduce_sum(weights * hits)


def _regression(target: TargetRange, train: RowSet, linear_share: float) -> Objective:
    mean = np.average(train.targets, weights=train.weights)
    variance = float(np.average((train.targets - mean) ** 2, weights=train.weights)) or 1.0
    # Past this the exponential only overflows; the finished network clips at the ceiling anyway.
    log_limit = float(np.log(target.ceiling)) + 1.0

    def objective(outputs, targets, weights, spread):
        log_predicted = outputs[:, 0] * target.log_sd + target.log_mean
        squared = tf.square(tf.exp(tf.minimum(log_predicted, log_limit)) - targets)
        log_squared = tf.square((log_predicted - tf.math.log(targets)) / target.log_sd)
        goal = tf.reduce_sum(weights * (linear_share * squared / variance + (1 - linear_share) * log_squared))
        loss = tf.reduce_sum(weights * squared) + spread
        return goal, loss, tf.sqrt(loss)

    return objective


def _constants(rows: RowSet) -> tuple[tf.Tensor, ...]:
    return tuple(tf.constant(value, tf.float32) for value in (rows.inputs, rows.targets, rows.weights, rows.spread))
