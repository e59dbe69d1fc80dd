"""ONNX networks from elsewhere: plain ones pass, what asks for more memory than its size is refused unread."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from calmlflow.errors import InputError
from calmlflow.networks.architectures import TargetRange, build_regressor
from calmlflow.networks.onnx import export_onnx
from calmlflow.networks.onnx_file import check_graph
from tests.samples.network_samples import little_memory

node = helper.make_node


def weight(name, *shape):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def write(path, nodes, weights=(), **more):
    given, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])
                     for name, width in (("features", 9), ("y", 1)))  # fmt: skip
    graph = helper.make_graph(nodes, "bomb", [given], [answer], weights, **more)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def test_a_network_of_sixteen_members_passes(tmp_path):
    path = tmp_path / "wall_reg.onnx"
    export_onnx(build_regressor("wall_reg", TargetRange(6.0, 1.0, 10.0, 9000.0), 16), path, np.ones((2, 9)))
    check_graph(path)


def sparse():
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    return helper.make_sparse_tensor(values, indices, [9, 40_000_000])


def elsewhere():
    found = weight("w", 9, 1)
    found.data_location = TensorProto.EXTERNAL
    return found


PRODUCT = node("MatMul", ["features", "w"], ["y"])


@pytest.mark.parametrize(
    ("words", "nodes", "more"),
    [
        ("operator 'ConstantOfShape'", [node("ConstantOfShape", ["w"], ["c"]), PRODUCT], {"weights": [weight("w", 9)]}),
        ("operator 'Tile'", [node("Tile", ["features", "w"], ["y"])], {"weights": [weight("w", 2)]}),
        ("functions or sparse weights", [PRODUCT], {"sparse_initializer": [sparse()]}),
        ("from another file", [PRODUCT], {"weights": [elsewhere()]}),
        (r"shape \[9, 40000000\]", [PRODUCT], {"weights": [TensorProto(name="w", data_type=1, dims=[9, 40_000_000])]}),
        (r"shape \[1, 1, 9\]", [PRODUCT], {"weights": [weight("w", 1, 1, 9)]}),
        ("of weights alone", [node("Add", ["w", "w"], ["c"]), PRODUCT], {"weights": [weight("w", 9, 1)]}),
        ("of weights alone", [node("Relu", [], ["y"])], {}),
        ("of two computed values", [node("Gemm", ["features", "features"], ["y"], transB=1)], {}),
        ("of two computed values", [node("Gemm", ["features", "w"], ["y"], transA=1)], {"weights": [weight("w", 9)]}),
        ("operator 'Relu'", [node("Relu", ["features"], ["y"], domain="com.microsoft")], {}),
        ("1001 operators", [node("Relu", ["features"], [f"y{n}"]) for n in range(1001)], {}),
    ],
)
def test_a_graph_that_asks_for_gigabytes_or_is_not_plain_is_refused(tmp_path, words, nodes, more):
    path = write(tmp_path / "mem_reg.onnx", nodes, **more)
    with little_memory(), pytest.raises(InputError, match=rf"^mem_reg\.onnx .*{words}.*expected"):
        check_graph(path)


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "mem_reg.onnx"
    path.write_bytes(b"a picture of a network")
    with pytest.raises(InputError, match="does not parse"):
        check_graph(path)
    with path.open("wb") as file:
        file.truncate((1 << 26) + 1)
    with little_memory(), pytest.raises(InputError, match="has 67108865 bytes"):
        check_graph(path)
