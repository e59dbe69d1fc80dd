"""Export a Keras network to ONNX, and check that both give the same answers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.backend import keras

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6
"""For probabilities next to zero, where a relative difference means nothing."""

OPSET, IR_VERSION = 17, 8

ACTIVATIONS = {
    "elu": "Elu", "exponential": "Exp", "linear": "Identity", "relu": "Relu", "selu": "Selu", "sigmoid": "Sigmoid",
    "softmax": "Softmax", "softplus": "Softplus", "softsign": "Softsign", "tanh": "Tanh",
}  # fmt: skip
"""Activations of Keras that are one operator of ONNX, with the same defaults."""


def export_onnx(model: keras.Model, path: Path, inputs: ArrayLike) -> None:
    """Write ``model`` as ONNX, once it agrees with Keras on scaled features, shape (m, 9).

    The file names the SHA-256 of the ``.keras`` file beside it, if there is one, and the relative difference found.
    Raises an InputError where a layer or an activation cannot be expressed, and a CalmlflowError where answers differ.
    """
    graph = _Graph()
    answer = graph.convert(model, ["features"])
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, tensor.shape[-1]])
              for name, tensor in (("features", model.inputs[0]), (answer, model.outputs[0]))]  # fmt: skip
    proto = helper.make_model(
        helper.make_graph(graph.nodes, model.name, shapes[:1], shapes[1:], graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    difference = check_agreement(model, proto.SerializeToString(), inputs)
    if (saved := path.with_suffix(".keras")).exists():
        # For the gate, which then need not import TensorFlow to compare the two files again.
        compared = {"keras_sha256": hashlib.sha256(saved.read_bytes()).hexdigest(), "difference": f"{difference:.1g}"}
        helper.set_model_props(proto, compared)
    path.write_bytes(proto.SerializeToString())


class _Graph:
    """Nodes and weights of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def convert(self, model: keras.Model, inputs: Sequence[str]) -> str:
        """Add the layers of a model whose inputs have these names; return the name of its output."""
        names = {id(tensor): name for tensor, name in zip(model.inputs, inputs, strict=True)}

        def name_of(tensor: keras.KerasTensor) -> str:
            if id(tensor) not in names:
                layer, call, _ = tensor._keras_history
                given = [name_of(parent) for parent in layer._inbound_nodes[call].input_tensors]
                is_model = isinstance(layer, keras.Model)
                names[id(tensor)] = self.convert(layer, given) if is_model else self.add_layer(layer, given)
            return names[id(tensor)]

        return name_of(model.outputs[0])

    def add_layer(self, layer: keras.layers.Layer, inputs: Sequence[str]) -> str:
        config, x, kind = layer.get_config(), inputs[0], type(layer).__name__
        weights = [np.asarray(weight, np.float32) for weight in layer.get_weights()]
        if kind == "Dense":
            x = self.add("MatMul", x, weights[0])
            return self.activate(layer, self.add("Add", x, weights[1]) if config["use_bias"] else x)
        if kind == "Activation":
            return self.activate(layer, x)
        if kind == "Dropout":
            return x
        if kind == "Rescaling":
            return self.add("Add", self.add("Mul", x, config["scale"]), config["offset"])
        if kind in ("Add", "Average"):
            x = self.add("Sum", *inputs)
            return self.add("Div", x, len(inputs)) if kind == "Average" else x
        if kind in ("Multiply", "Subtract"):
            for other in inputs[1:]:
                x = self.add("Mul" if kind == "Multiply" else "Sub", x, other)
            return x
        if kind == "BatchNormalization":
            *scales, mean, variance = weights
            gamma = scales.pop(0) if config["scale"] else np.float32(1)
            x = self.add("Mul", self.add("Sub", x, mean), gamma / np.sqrt(variance + np.float32(config["epsilon"])))
            return self.add("Add", x, scales[0]) if config["center"] else x
        if kind == "ELU":
            return self.add("Elu", x, alpha=float(config["alpha"]))
        if kind == "LeakyReLU":
            return self.add("LeakyRelu", x, alpha=float(config["negative_slope"]))
        if kind == "ReLU" and not config["threshold"]:
            slope = float(config["negative_slope"])
            x = self.add("LeakyRelu", x, alpha=slope) if slope else self.add("Relu", x)
            return x if config["max_value"] is None else self.add("Min", x, config["max_value"])
        if kind == "Softmax" and config["axis"] in (-1, 1):
            return self.add("Softmax", x, axis=-1)
        raise InputError(f"layer {layer.name!r}, a {kind}, cannot be run as ONNX; expected a plain one")

    def activate(self, layer: keras.layers.Layer, x: str) -> str:
        name = layer.activation.__name__
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if name not in ACTIVATIONS:
            raise InputError(
                f"activation {name!r} of layer {layer.name!r} cannot be run as ONNX; expected {', '.join(ACTIVATIONS)}"
            )
        return x if name == "linear" else self.add(ACTIVATIONS[name], x)

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add one operator; an input is the name of a value, or a constant. Returns the name of its output."""
        names = []
        for given in inputs:
            if not isinstance(given, str):
                self.weights.append(numpy_helper.from_array(np.asarray(given, np.float32), f"w{len(self.weights)}"))
                given = self.weights[-1].name
            names.append(given)
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output


def check_agreement(model: keras.Model, network: Path | bytes, inputs: ArrayLike) -> float:
    """Largest relative difference between the answers of a Keras network and of its ONNX file, or the file's content.

    Raises a CalmlflowError where it exceeds `RELATIVE_TOLERANCE`.
    """
    import onnxruntime

    inputs = np.asarray(inputs, np.float32)
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    expected = keras.ops.convert_to_numpy(model(inputs))
    if found.shape != expected.shape:
        raise CalmlflowError(f"{model.name}: ONNX answers have shape {found.shape}; Keras gives {expected.shape}")
    difference = np.maximum(np.abs(found - expected) - ABSOLUTE_TOLERANCE, 0) / np.maximum(np.abs(expected), 1e-12)
    worst = float(difference.max(initial=0.0))
    if not worst <= RELATIVE_TOLERANCE:
        raise CalmlflowError(
            f"{model.name}: ONNX and Keras answers differ by {worst:.2g} (relative); "
            f"expected {RELATIVE_TOLERANCE:g} at most"
        )
    return worst
