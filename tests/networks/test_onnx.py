"""An ONNX file is kept only if it answers as Keras does."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras
from calmlflow.networks.onnx import check_agreement, export_onnx

INPUTS = np.random.default_rng(0).normal(0, 1, (200, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An untrained regressor and its file."""
    keras.utils.set_random_seed(3)
    model = build_regressor("mem_reg", TargetRange(1.0, 0.5, 0.2, 60.0), members=2)
    path = tmp_path_factory.mktemp("onnx") / "mem_reg.onnx"
    export_onnx(model, path, INPUTS)
    return model, path


def test_the_file_answers_as_keras_for_any_number_of_jobs(exported):
    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[1], answer.shape[1]) == ("features", 9, 1)
    for count in (1, 2, 200):
        found = session.run(None, {"features": INPUTS[:count]})[0]
        np.testing.assert_allclose(found, model(INPUTS[:count]), rtol=1e-4)
    assert check_agreement(model, path, INPUTS) <= 1e-4
    assert [file.name for file in path.parent.iterdir()] == ["mem_reg.onnx"]


def test_the_file_names_the_keras_file_that_it_was_compared_with(exported, tmp_path):
    model, plain = exported
    assert onnxruntime.InferenceSession(plain).get_modelmeta().custom_metadata_map == {}
    path = tmp_path / "mem_reg.onnx"
    saved = path.with_suffix(".keras")
    model.save(saved)
    export_onnx(model, path, INPUTS)
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert found["keras_sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert 0 <= float(found["difference"]) <= 1e-4


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_changed_weights_are_refused(exported, factor):
    model, path = exported
    network = onnx.load(path)
    kernel, _ = [weights for weights in network.graph.initializer if tuple(weights.dims) == (32, 64)]
    changed = numpy_helper.to_array(kernel) * np.float32(factor)
    kernel.CopyFrom(numpy_helper.from_array(changed, kernel.name))
    with pytest.raises(CalmlflowError, match="mem_reg: ONNX and Keras answers differ by"):
        check_agreement(model, network.SerializeToString(), INPUTS)


def test_a_file_of_another_shape_is_told(exported):
    with pytest.raises(CalmlflowError, match=r"shape \(200, 1\); Keras gives \(200, 4\)"):
        check_agreement(build_classifier(2), exported[1], INPUTS)


def test_an_export_that_disagrees_leaves_no_file(tmp_path):
    model = build_classifier(2)
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(CalmlflowError, match="answers differ"):
        export_onnx(model, tmp_path / "mem_clf.onnx", INPUTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (keras.layers.Dense(3, activation="gelu"), "activation 'gelu' of layer .* cannot be run as ONNX"),
        (keras.layers.ReLU(threshold=1.0), "a ReLU, cannot be run as ONNX"),
        (keras.layers.UnitNormalization(), "a UnitNormalization, cannot be run as ONNX"),
    ],
)
def test_a_layer_without_a_counterpart_is_named(layer, words, tmp_path):
    model = keras.Sequential([keras.Input((9,), name="features"), layer])
    with pytest.raises(InputError, match=words):
        export_onnx(model, tmp_path / "network.onnx", INPUTS)
