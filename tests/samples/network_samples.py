"""Answers of the members of an ensemble, asked of Keras one by one; and a process that may not grow."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.backend import keras


def member_outputs(model: keras.Model, members: int, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Outputs of each member's own last layer, shape (members, n, 4) or (members, n, 1)."""
    last = [model.get_layer(f"member_{number}_output").output for number in range(members)]
    return np.array([found.numpy() for found in keras.Model(model.inputs[0], last)(inputs)], dtype=float)


def member_answers(
    model: keras.Model, members: int, inputs: NDArray[np.float32], target: TargetRange | None
) -> NDArray[np.float64]:
    """What each member would answer alone: probabilities, or the target in its unit."""
    outputs = member_outputs(model, members, inputs)
    if target is None:
        return outputs
    return np.clip(np.exp(outputs * target.log_sd + target.log_mean), target.floor, target.ceiling)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let this process have half a gigabyte more than it has; more is an error."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 29), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
