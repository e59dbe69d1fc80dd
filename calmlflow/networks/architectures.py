"""The three architectures, each as a small ensemble: members of that architecture side by side in one model."""

# What a single network says of rare, large jobs is much a matter of its initial weights; the mean of a few is not.

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
"""Width of each hidden layer of a member, each followed by ReLU."""


@dataclass(frozen=True)
class TargetRange:
    """Mean and deviation of a target's logarithm, and its smallest and largest value in training (GB or seconds)."""

    log_mean: float
    log_sd: float
    floor: float
    ceiling: float

    @classmethod
    def of(cls, values: ArrayLike) -> "TargetRange":
        """Compute them from the positive values of n jobs."""
        values = np.asarray(values, dtype=float)
        log = np.log(values)
        # A target that never varies has no deviation to divide by.
        return cls(float(log.mean()), float(log.std()) or 1.0, float(values.min()), float(values.max()))


def build_classifier(members: int, network: str = "mem_clf") -> keras.Model:
    """Scaled features (n, 9) -> probabilities of the four bins (n, 4), the mean of those of the members."""
    inputs, hidden = _members(network, members)
    answers = [
        keras.layers.Dense(len(LADDER), activation="softmax", name=f"{member}_output")(x)
        for member, x in hidden.items()
    ]
    return keras.Model(inputs, keras.layers.Average(name="bins")(answers), name=network)


def build_regressor(network: str, target: TargetRange, members: int) -> keras.Model:
    """Scaled features (n, 9) -> the target in its unit (n, 1), the geometric mean of the members' answers.

    The network converts from the standardised logarithm and clips to the range of the training jobs. All layers are
    built into Keras, so that the file loads in its safe mode.
    """
    inputs, hidden = _members(network, members)
    answers = [keras.layers.Dense(1, name=f"{member}_output")(x) for member, x in hidden.items()]
    x = keras.layers.Average(name="standardised_log")(answers)
    # clip(z, low, high) = low + min(relu(z - low), high - low), made of built-in layers.
    low = (np.log(target.floor) - target.log_mean) / target.log_sd
    high = (np.log(target.ceiling) - target.log_mean) / target.log_sd
    x = keras.layers.Rescaling(1.0, offset=-low, name="from_floor")(x)
    x = keras.layers.ReLU(max_value=max(high - low, 1e-6), name="range")(x)
    x = keras.layers.Rescaling(target.log_sd, offset=target.log_mean + low * target.log_sd, name="log")(x)
    answer = keras.layers.Activation("exponential", name=network.replace("_reg", ""))(x)
    return keras.Model(inputs, answer, name=network)


def _members(network: str, members: int) -> tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]:
    """The input, and the last hidden layer of each member by its name."""
    inputs = keras.Input((len(FEATURES),), name="features")
    last = {}
    for number in range(members):
        x = inputs
        for depth, width in enumerate(HIDDEN[network], start=1):
            x = keras.layers.Dense(width, activation="relu", name=f"member_{number}_hidden_{depth}")(x)
        last[f"member_{number}"] = x
    return inputs, last
