"""Train one network: the whole problem in memory, compiled epochs, no Python per batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.errors import CalmlflowError
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras, tf
from calmlflow.networks.distinct import DistinctRows
from calmlflow.networks.perceptron import Perceptron

CHUNK = 50
"""Epochs per call of the compiled function; between calls progress is told and early stopping decided."""

# Adam's usual constants, and the share of the epochs in which the learning rate climbs to its peak.
_BETA1, _BETA2, _EPSILON, _WARM_UP = 0.9, 0.999, 1e-7, 0.05


@dataclass(frozen=True)
class TrainingConfig:
    """Hyper-parameters of one network.

    Attributes
    ----------
    epochs : int
        At most; one epoch is one full-batch step over the distinct rows.
    refit_epochs : int
        Epochs on all training jobs, validation jobs among them, from the weights that validated best. A tenth of the
        jobs of the rare bins is too many to leave out for good.
    restarts : int
        Initialisations trained side by side; the one that validates best goes on.
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
    refit_epochs: int = 1000
    restarts: int = 2
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    patience: int = 500
    linear_share: float = 0.1


DEFAULTS = {
    "mem_clf": TrainingConfig(),
    "mem_reg": TrainingConfig(),
    "wall_reg": TrainingConfig(epochs=800, refit_epochs=400, restarts=1),
}


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
    validated : ndarray, shape (v, 4) or (v, 1)
        Answers for the validation rows before the refit, when those rows were still unseen: what calibration may use.
    history : dict of str to ndarray, shape (epochs,)
        ``loss``, ``accuracy`` or ``rmse``, and the same with ``val_``, in this order, before the refit. The loss of a
        regressor is the mean squared error in the target's unit, per job.
    best_epoch : int
        Epoch (from 0) with the lowest validation loss, whose weights were kept.
    fit_seconds : float
    """

    model: keras.Model
    validated: NDArray[np.float32]
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
    fit: RowSet,
    validation: RowSet,
    train: RowSet,
    config: TrainingConfig,
    seed: int,
    target: TargetRange | None = None,
    on_progress: Callable[[int, int, float], None] = lambda epoch, epochs, val_loss: None,
) -> Trained:
    """Train one of the three networks on distinct, weighted rows.

    Every epoch is one full-batch step: the rows are few, and the exact gradient needs no shuffling, no batch size and
    no luck. First ``fit`` is trained on until ``validation`` gets no better, then ``train`` from the best weights.

    Parameters
    ----------
    network : {"mem_clf", "mem_reg", "wall_reg"}
    fit, validation, train : RowSet
        The two parts of the training jobs, and both together.
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
    if target is None:
        model = weights_of = build_classifier(network)
        objective, metric, outputs = _classification, "accuracy", len(LADDER)
    else:
        model, weights_of = build_regressor(network, target)
        objective, metric, outputs = _regression(target, train, config.linear_share), "rmse", 1
    perceptron = Perceptron.of(network, outputs)

    def on_chunk(epoch: int, loss: float) -> None:
        on_progress(epoch, config.epochs + config.refit_epochs, loss)

    initial = perceptron.initial(config.restarts, seed)
    searched = _descend(network, perceptron, objective, initial, fit, validation, config.epochs, config, on_chunk)
    perceptron.put_into(weights_of, searched.best)
    validated = np.asarray(model(validation.inputs))
    if config.refit_epochs:
        start, done = searched.best[None], len(searched.scores)
        refitted = _descend(
            network, perceptron, objective, start, train, train, config.refit_epochs, config,
            lambda epoch, loss: on_chunk(done + epoch, loss),
        )  # fmt: skip
        perceptron.put_into(weights_of, refitted.best)
    names = ("loss", metric, "val_loss", f"val_{metric}")
    history = {name: searched.scores[:, column] for column, name in enumerate(names)}
    return Trained(model, validated, history, searched.best_epoch, time.perf_counter() - started)


@dataclass(frozen=True)
class _Descent:
    """The weights with the lowest validation loss, shape (parameters,), and the scores of their restart per epoch."""

    best: NDArray[np.float32]
    best_epoch: int
    scores: NDArray[np.float32]


# An objective turns outputs (count, m, o), targets, weights and spread into what is minimised, and into the loss and
# the metric that histories show; each of shape (count,).
Objective = Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def _descend(
    network: str,
    perceptron: Perceptron,
    objective: Objective,
    initial: NDArray[np.float32],
    fit: RowSet,
    validation: RowSet,
    epochs: int,
    config: TrainingConfig,
    on_chunk: Callable[[int, float], None],
) -> _Descent:
    """AdamW with warm-up and cosine, for several networks at once, until none validates better for a while."""
    parameters = tf.Variable(initial)
    first, second = tf.Variable(tf.zeros_like(parameters)), tf.Variable(tf.zeros_like(parameters))
    best = tf.Variable(initial)
    lowest = tf.Variable(tf.fill([len(initial)], np.float32(np.inf)))
    fit_set, validation_set = _constants(fit), _constants(validation)
    warm_up = max(_WARM_UP * epochs, 1.0)

    @tf.function
    def run_epochs(start, count):
        scores = tf.TensorArray(tf.float32, size=count, element_shape=(5, len(initial)))
        for index in tf.range(count):
            # Scores first, step second: what is written down, and maybe kept, belongs to the same weights.
            with tf.GradientTape() as tape:
                goal, loss, score = objective(perceptron.forward(parameters, fit_set[0]), *fit_set[1:])
                total = tf.reduce_sum(goal)
            outputs = perceptron.forward(parameters, validation_set[0])
            val_goal, val_loss, val_score = objective(outputs, *validation_set[1:])
            scores = scores.write(index, tf.stack([loss, score, val_loss, val_score, val_goal]))
            better = val_goal < lowest
            best.assign(tf.where(better[:, None], parameters, best))
            lowest.assign(tf.where(better, val_goal, lowest))

            step = tf.cast(start + index, tf.float32)
            cosine = 0.5 * (1 + tf.cos(np.pi * (step - warm_up) / max(epochs - warm_up, 1.0)))
            rate = config.learning_rate * tf.where(step < warm_up, (step + 1) / warm_up, cosine)
            gradient = tape.gradient(total, parameters)
            gradient /= tf.maximum(tf.norm(gradient, axis=1, keepdims=True), 1.0)
            first.assign(_BETA1 * first + (1 - _BETA1) * gradient)
            second.assign(_BETA2 * second + (1 - _BETA2) * tf.square(gradient))
            direction = (first / (1 - _BETA1 ** (step + 1))) / (tf.sqrt(second / (1 - _BETA2 ** (step + 1))) + _EPSILON)
            parameters.assign_sub(rate * (direction + config.weight_decay * parameters))
        return scores.stack()

    log: list[NDArray[np.float32]] = []
    best_epoch = epoch = 0
    while epoch < epochs and epoch - best_epoch <= config.patience:
        count = min(CHUNK, epochs - epoch)
        log.append(run_epochs(tf.constant(epoch), tf.constant(count)).numpy())
        goals = np.concatenate(log)[:, 4].min(axis=1)
        if not np.all(np.isfinite(goals)):
            at = int(np.flatnonzero(~np.isfinite(goals))[0])
            raise CalmlflowError(
                f"{network}: the loss is not finite from epoch {at} on; expected a finite one: lower learning_rate "
                f"({config.learning_rate:g}), or look for extreme values in the data"
            )
        best_epoch = int(goals.argmin())
        epoch += count
        on_chunk(epoch, float(goals[-1]))
    chosen = int(lowest.numpy().argmin())
    return _Descent(best.numpy()[chosen], best_epoch, np.concatenate(log)[:, :4, chosen])


def _classification(outputs, targets, weights, spread):
    del spread
    log_probabilities = tf.nn.log_softmax(outputs)
    loss = -tf.reduce_sum(weights * tf.reduce_sum(targets * log_probabilities, axis=-1), axis=-1)
    chosen = tf.one_hot(tf.argmax(outputs, axis=-1), len(LADDER))
    return loss, loss, tf.reduce_sum(weights * tf.reduce_sum(targets * chosen, axis=-1), axis=-1)


def _regression(target: TargetRange, train: RowSet, linear_share: float) -> Objective:
    mean = np.average(train.targets, weights=train.weights)
    variance = float(np.average((train.targets - mean) ** 2, weights=train.weights)) or 1.0
    # Past this the exponential only overflows; the finished network clips at the ceiling anyway.
    log_limit = float(np.log(target.ceiling)) + 1.0

    def objective(outputs, targets, weights, spread):
        log_predicted = outputs[:, :, 0] * target.log_sd + target.log_mean
        squared = tf.square(tf.exp(tf.minimum(log_predicted, log_limit)) - targets)
        log_squared = tf.square((log_predicted - tf.math.log(targets)) / target.log_sd)
        goal = tf.reduce_sum(weights * (linear_share * squared / variance + (1 - linear_share) * log_squared), axis=-1)
        loss = tf.reduce_sum(weights * squared, axis=-1) + spread
        return goal, loss, tf.sqrt(loss)

    return objective


def _constants(rows: RowSet) -> tuple[tf.Tensor, ...]:
    return tuple(tf.constant(value, tf.float32) for value in (rows.inputs, rows.targets, rows.weights, rows.spread))
