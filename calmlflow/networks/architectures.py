"""The three architectures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.backend import keras

HIDDEN = {
    "mem_clf": (18, 32, 64, 32, 18, 9),
    "mem_reg": (18, 32, 64, 32, 18, 9),
    "wall_reg": (18, 32, 64, 128, 256, 128, 64, 32, 18, 9),
}
"""Width of each hidden layer, ReLU between."""


@dataclass(frozen=True)
class TargetRange:
    """What a regressor knows of its target: it answers in the target's unit, and never outside what was seen.

    Attributes
    ----------
    log_mean, log_sd : float
        Mean and standard deviation of the target's logarithm.
    floor, ceiling : float
        Smallest and largest value seen, in the target's unit (GB or seconds).
    """

    log_mean: float
    log_sd: float
    floor: float
    ceiling: float

    @classmethod
    def of(cls, values: ArrayLike) -> "TargetRange":
        """Range of positive values, shape (n,), one per job."""
        values = np.asarray(values, dtype=float)
        log = np.log(values)
        # A target that never varies has no deviation to divide by.
        return cls(float(log.mean()), float(log.std()) or 1.0, float(values.min()), float(values.max()))


def build_classifier(network: str = "mem_clf") -> keras.Model:
    """Scaled features (n, 9) -> probabilities of the four bins (n, 4)."""
    inputs, hidden = _hidden_layers(network)
    return keras.Model(inputs, keras.layers.Dense(len(LADDER), activation="softmax", name="bins")(hidden), name=network)


def build_regressor(network: str, target: TargetRange) -> tuple[keras.Model, keras.Model]:
    """Scaled features (n, 9) -> the target in its unit (n, 1).

    The last layer works on the standardised logarithm of the target, and the way back is part of the network, so that
    whoever loads the file gets GB or seconds. Built-in layers only: the file loads in Keras' safe mode.

    Returns
    -------
    model : keras.Model
        Answers in the target's unit, clipped to the range seen in training.
    standardised : keras.Model
        The same weights without the way back; what training works on, since a clipped answer has no gradient.
    """
    inputs, hidden = _hidden_layers(network)
    standardised = keras.layers.Dense(1, name="standardised_log")(hidden)
    # clip(z, low, high) = low + min(relu(z - low), high - low), made of built-in layers.
    low = (np.log(target.floor) - target.log_mean) / target.log_sd
    high = (np.log(target.ceiling) - target.log_mean) / target.log_sd
    x = keras.layers.Rescaling(1.0, offset=-low, name="from_floor")(standardised)
    x = keras.layers.ReLU(max_value=max(high - low, 1e-6), name="range")(x)
    x = keras.layers.Rescaling(target.log_sd, offset=target.log_mean + low * target.log_sd, name="log")(x)
    answer = keras.layers.Activation("exponential", name=network.replace("_reg", ""))(x)
    return keras.Model(inputs, answer, name=network), keras.Model(inputs, standardised, name=f"{network}_standardised")


def _hidden_layers(network: str) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    inputs = x = keras.Input((len(FEATURES),), name="features")
    for depth, width in enumerate(HIDDEN[network], start=1):
        x = keras.layers.Dense(width, activation="relu", kernel_initializer="he_normal", name=f"hidden_{depth}")(x)
    return inputs, x
