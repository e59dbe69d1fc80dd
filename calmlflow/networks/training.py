"""Train one network: the whole problem in memory, compiled epochs, no Python per batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calmlflow.errors import CalmlflowError
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras, tf
from calmlflow.networks.config import TrainingConfig
from calmlflow.networks.perceptron import Perceptron
from calmlflow.networks.rows import RowSet, TrainingRows

CHUNK = 50
"""Epochs per call of the compiled function; between calls it reports progress and may stop early."""

# Adam's usual constants, and the share of the epochs in which the learning rate climbs to its peak.
_BETA1, _BETA2, _EPSILON, _WARM_UP = 0.9, 0.999, 1e-7, 0.05

# Outputs (k, m, o) and the targets, weights and spread of a RowSet -> what is minimised, and the loss and the metric
# that histories show; each of shape (k,).
Objective = Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class Trained:
    """A trained network.

    ``left_out``, shape (n, 4) or (n, 1), holds for each training job the answer, before the refit, of the member that
    left it out: that member had not seen the job, so calibration may use it.
    """

    model: keras.Model
    left_out: NDArray[np.float32]
    # loss, accuracy or rmse, val_loss, val_accuracy or val_rmse of each epoch before the refit; means over the members.
    history: dict[str, NDArray[np.float32]]
    # Of the lowest mean over the members; each member keeps the weights of its own best epoch.
    best_epoch: int
    fit_seconds: float


def train_network(
    network: str,
    rows: TrainingRows,
    config: TrainingConfig,
    seed: int,
    target: TargetRange | None = None,
    on_progress: Callable[[int, int, float], None] = lambda epoch, epochs, val_loss: None,
) -> Trained:
    """Train one of the three networks on distinct, weighted rows.

    Every epoch is one full-batch step: the rows are few, and the exact gradient needs no shuffling and no batch size.
    First each member learns from the jobs that it does not leave out, until it gets no better on those that it does;
    then all learn from all jobs, from their best weights. A regressor needs the ``target`` range of its training jobs.
    ``on_progress`` is called every `CHUNK` epochs with epoch, epochs at most, and validation loss. Equal seeds give
    equal numbers on one machine. Raises a CalmlflowError where the loss is not finite.
    """
    started = time.perf_counter()
    if target is None:
        model = build_classifier(config.members, network)
        objective, metric, outputs = _classification, "accuracy", len(LADDER)
    else:
        model = build_regressor(network, target, config.members)
        objective, metric, outputs = _regression(target, rows.train, config.linear_share), "rmse", 1
    perceptron = Perceptron.of(network, outputs)
    descend = _descent(network, perceptron, objective, rows.inputs, config)
    epochs = config.epochs + config.refit_epochs

    initial = perceptron.initial(config.members, seed)
    best, log = descend(
        initial, rows.fit, rows.validation, config.epochs, lambda epoch, loss: on_progress(epoch, epochs, loss)
    )
    left_out = _answers(perceptron.forward(tf.constant(best), tf.constant(rows.inputs)), target)
    history = log[:, :4].mean(axis=2)
    if config.refit_epochs:
        best, _ = descend(
            best, rows.train, rows.train, config.refit_epochs,
            lambda epoch, loss: on_progress(len(log) + epoch, epochs, loss),
        )  # fmt: skip
    perceptron.put_into(model, best)
    return Trained(
        model,
        left_out[rows.member_of_job, rows.row_of_job],
        {name: history[:, column] for column, name in enumerate(("loss", metric, "val_loss", f"val_{metric}"))},
        int(log[:, 4].mean(axis=1).argmin()),
        time.perf_counter() - started,
    )


def _descent(
    network: str, perceptron: Perceptron, objective: Objective, inputs: NDArray[np.float32], config: TrainingConfig
) -> Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Compile AdamW with warm-up and cosine for all members at once; the search and the refit run the same epochs."""
    constants = tf.constant(inputs)
    shape = config.members, perceptron.count
    parameters, first, second, best = (tf.Variable(tf.zeros(shape)) for _ in range(4))
    lowest = tf.Variable(tf.zeros(config.members))

    @tf.function
    def run_epochs(start, count, epochs, fit, validation):
        warm_up = tf.maximum(_WARM_UP * epochs, 1.0)
        scores = tf.TensorArray(tf.float32, size=count, element_shape=(5, config.members))
        for index in tf.range(count):
            # Scores first, step second: what is written down, and maybe kept, belongs to the same weights.
            with tf.GradientTape() as tape:
                outputs = perceptron.forward(parameters, constants)
                goal, loss, score = objective(outputs, *fit)
                total = tf.reduce_sum(goal)
            val_goal, val_loss, val_score = objective(outputs, *validation)
            scores = scores.write(index, tf.stack([loss, score, val_loss, val_score, val_goal]))
            # Read first: where NumPy behaviour is switched on, as spacekit does, operators refuse variables.
            previous = lowest.read_value()
            better = val_goal < previous
            best.assign(tf.where(better[:, None], parameters.read_value(), best.read_value()))
            lowest.assign(tf.where(better, val_goal, previous))

            step = tf.cast(start + index, tf.float32)
            cosine = 0.5 * (1 + tf.cos(np.pi * (step - warm_up) / tf.maximum(epochs - warm_up, 1.0)))
            rate = config.learning_rate * tf.where(step < warm_up, (step + 1) / warm_up, cosine)
            gradient = tape.gradient(total, parameters)
            gradient /= tf.maximum(tf.norm(gradient, axis=1, keepdims=True), 1.0)
            mean = _BETA1 * first.read_value() + (1 - _BETA1) * gradient
            square = _BETA2 * second.read_value() + (1 - _BETA2) * tf.square(gradient)
            first.assign(mean)
            second.assign(square)
            unbiased = tf.sqrt(square / (1 - _BETA2 ** (step + 1))) + _EPSILON
            direction = mean / (1 - _BETA1 ** (step + 1)) / unbiased
            parameters.assign_sub(rate * (direction + config.weight_decay * parameters.read_value()))
        return scores.stack()

    def descend(
        initial: NDArray[np.float32], fit: RowSet, validation: RowSet, epochs: int,
        on_chunk: Callable[[int, float], None],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """Descend until the members validate no better for a while.

        Returns each member's best weights, shape (k, parameters), and of each epoch loss, metric, validation loss,
        validation metric and validation goal, shape (epochs run, 5, k).
        """
        parameters.assign(initial)
        best.assign(initial)
        lowest.assign(tf.fill(lowest.shape, np.float32(np.inf)))
        for moment in (first, second):
            moment.assign(tf.zeros_like(moment))
        sets = [
            tuple(tf.broadcast_to(value, (len(initial), *value.shape[1:]))
                  for value in (rows.targets, rows.weights, rows.spread))
            for rows in (fit, validation)
        ]  # fmt: skip
        log: list[NDArray[np.float32]] = []
        best_epoch = epoch = 0
        while epoch < epochs and epoch - best_epoch <= config.patience:
            count = min(CHUNK, epochs - epoch)
            # Tensors, for each new number would be compiled anew.
            numbers = tf.constant(epoch), tf.constant(count), tf.constant(float(epochs))
            log.append(run_epochs(*numbers, *sets).numpy())
            goals = np.concatenate(log)[:, 4].mean(axis=1)
            if not np.all(np.isfinite(goals)):
                at = int(np.flatnonzero(~np.isfinite(goals))[0])
                raise CalmlflowError(
                    f"{network}: the loss is not finite from epoch {at} on; expected a finite one: lower "
                    f"learning_rate ({config.learning_rate:g}), or look for extreme values in the data"
                )
            best_epoch = int(goals.argmin())
            epoch += count
            on_chunk(epoch, float(goals[-1]))
        return best.numpy(), np.concatenate(log)

    return descend


def _classification(outputs, targets, weights, spread):
    del spread
    log_probabilities = tf.nn.log_softmax(outputs)
    loss = -tf.reduce_sum(weights * tf.reduce_sum(targets * log_probabilities, axis=-1), axis=-1)
    chosen = tf.one_hot(tf.argmax(outputs, axis=-1), len(LADDER))
    return loss, loss, tf.reduce_sum(weights * tf.reduce_sum(targets * chosen, axis=-1), axis=-1)


def _regression(target: TargetRange, train: RowSet, linear_share: float) -> Objective:
    targets, weights = train.targets[0], train.weights[0]
    variance = float(np.average((targets - np.average(targets, weights=weights)) ** 2, weights=weights)) or 1.0
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


def _answers(outputs: tf.Tensor, target: TargetRange | None) -> NDArray[np.float32]:
    """Answer of each member alone, shape (k, m, 4) or (k, m, 1)."""
    if target is None:
        return tf.nn.softmax(outputs).numpy()
    log = outputs * target.log_sd + target.log_mean
    return tf.exp(tf.clip_by_value(log, np.log(target.floor), np.log(target.ceiling))).numpy()
