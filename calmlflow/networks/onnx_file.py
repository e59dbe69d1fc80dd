"""Check an .onnx file from elsewhere, without Keras, before onnxruntime makes a session of it."""

# A few bytes can ask for gigabytes: by an operator that makes a shape of numbers, by sparse weights, or by weights that
# onnxruntime folds into larger ones. So only operators that keep the shape of a job are let through, each on a value
# that comes from the features.

from pathlib import Path

from onnx import ModelProto, TensorProto

from calmlflow.errors import InputError

MAX_BYTES = 1 << 26
"""Of a file; the largest of our own has 2 MB."""

MAX_WIDTH = 1024
"""Widest layer."""

MAX_PARTS = 1000
"""Operators of an ONNX graph, layers and their calls in Keras; an ensemble of 16 has half as many."""

# Those that `export_onnx` writes, and Gemm, as other tools write a dense layer.
OPERATORS = (
    *("Add", "Div", "Elu", "Exp", "Gemm", "Identity", "LeakyRelu", "MatMul", "Min", "Mul", "Relu", "Selu", "Sigmoid"),
    *("Softmax", "Softplus", "Softsign", "Sub", "Sum", "Tanh"),
)


def check_graph(path: Path) -> None:
    """Look through a whole graph; an InputError names what is not on the list of what may be run, or is too large."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"{path.name} has {size} bytes; expected at most {MAX_BYTES}")
    try:
        model = ModelProto.FromString(path.read_bytes())
    except Exception as error:
        # protobuf's own.
        raise InputError(f"{path.name} does not parse; expected an ONNX network") from error
    if problem := _problem(model):
        raise InputError(f"{path.name} {problem}")


def _problem(model: ModelProto) -> str | None:
    graph = model.graph
    if model.functions or graph.sparse_initializer:
        return "has functions or sparse weights; expected plain ones"
    if len(graph.node) > MAX_PARTS:
        return f"has {len(graph.node)} operators; expected at most {MAX_PARTS}"
    for weight in graph.initializer:
        if weight.data_location == TensorProto.EXTERNAL:
            return f"takes {weight.name!r:.60} from another file; expected weights that lie in the file"
        if len(weight.dims) > 2 or not all(0 < width <= MAX_WIDTH for width in weight.dims):
            return f"has weights of shape {list(weight.dims)!r:.60}; expected two widths of at most {MAX_WIDTH}"
    weights = {weight.name for weight in graph.initializer}
    of_features = {value.name for value in graph.input} - weights
    for node in graph.node:
        asked = f"asks for the operator {node.op_type!r:.60}"
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            return f"{asked}; expected {', '.join(OPERATORS)}"
        if not of_features.intersection(node.input[:1]):
            return f"{asked} of weights alone; expected one on what comes from the features"
        # Of features with features it would make n x n numbers of n jobs.
        turns = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if node.op_type in ("MatMul", "Gemm") and (turns or not weights.intersection(node.input[1:2])):
            return f"{asked} of two computed values; expected one by weights"
        of_features.update(node.output)
    return None
