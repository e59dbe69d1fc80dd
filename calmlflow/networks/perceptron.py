"""The forward pass of several networks of one architecture side by side, on one flat array of parameters."""

# Keras keeps a variable per layer, so a step of these small networks is mostly bookkeeping, and tracing it costs
# seconds. On one flat array a step is a handful of operations, and all members train for little more than one.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calmlflow.hst.features import FEATURES
from calmlflow.networks.architectures import HIDDEN
from calmlflow.networks.backend import keras, tf


@dataclass(frozen=True)
class Perceptron:
    """Widths of one architecture, from input to output."""

    widths: tuple[int, ...]

    @classmethod
    def of(cls, network: str, outputs: int) -> "Perceptron":
        return cls((len(FEATURES), *HIDDEN[network], outputs))

    @property
    def count(self) -> int:
        """Parameters of one network."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False))

    def initial(self, count: int, seed: int) -> NDArray[np.float32]:
        """Parameters of ``count`` networks, shape (count, parameters): He normal weights, zero biases."""
        generator = np.random.default_rng(seed)
        parts = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            parts.append(generator.normal(0, np.sqrt(2 / fan_in), (count, fan_in * fan_out)))
            parts.append(np.zeros((count, fan_out)))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def forward(self, parameters: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Outputs before any activation, shape (count, m, outputs), for inputs of shape (m, 9)."""
        count, offset = parameters.shape[0], 0
        x = tf.tile(inputs[None], (count, 1, 1))
        for layer, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False), start=1):
            kernel = tf.reshape(parameters[:, offset : offset + fan_in * fan_out], (count, fan_in, fan_out))
            offset += fan_in * fan_out
            x = tf.matmul(x, kernel) + parameters[:, None, offset : offset + fan_out]
            offset += fan_out
            if layer < len(self.widths) - 1:
                x = tf.nn.relu(x)
        return x

    def put_into(self, model: keras.Model, parameters: NDArray[np.float32]) -> None:
        """Set the weights of a Keras model of this architecture from parameters of shape (members, parameters)."""
        for number, member in enumerate(parameters):
            offset = 0
            for layer, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False), start=1):
                kernel, bias = np.split(member[offset : offset + (fan_in + 1) * fan_out], [fan_in * fan_out])
                offset += (fan_in + 1) * fan_out
                name = f"hidden_{layer}" if layer < len(self.widths) - 1 else "output"
                model.get_layer(f"member_{number}_{name}").set_weights([kernel.reshape(fan_in, fan_out), bias])
