"""The three networks as they are saved, and the forward pass that trains them."""

import math

import numpy as np
import pytest

from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras, tf
from calmlflow.networks.perceptron import Perceptron
from tests.samples.network_samples import member_answers, member_outputs

# From the users' description: hidden layers, and outputs.
WIDTHS = {
    "mem_clf": [18, 32, 64, 32, 18, 9, 4],
    "mem_reg": [18, 32, 64, 32, 18, 9, 1],
    "wall_reg": [18, 32, 64, 128, 256, 128, 64, 32, 18, 9, 1],
}
TARGET = TargetRange(log_mean=6.0, log_sd=1.5, floor=120.0, ceiling=9_000.0)
# Wide enough that no answer is cut.
WIDE = TargetRange(log_mean=1.0, log_sd=0.5, floor=1e-6, ceiling=1e6)
INPUTS = np.random.default_rng(0).normal(0, 2, (300, 9)).astype(np.float32)


def build(network: str, members: int = 2, target: TargetRange = TARGET) -> keras.Model:
    return build_classifier(members) if network == "mem_clf" else build_regressor(network, target, members)


@pytest.mark.parametrize("network", WIDTHS)
@pytest.mark.parametrize("members", [2, 5])
def test_a_saved_network_loads_in_safe_mode_with_members_of_the_widths_of_the_architecture(network, members, tmp_path):
    model = build(network, members)
    path = tmp_path / f"{network}.keras"
    model.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    dense = {layer.name: layer for layer in loaded.layers if isinstance(layer, keras.layers.Dense)}
    assert len(dense) == members * len(WIDTHS[network])
    for number in range(members):
        layer = dense[f"member_{number}_output"]
        found = [layer]
        # Upwards from its output: a member is a chain of its own, from the features on.
        while isinstance(layer := layer.input._keras_history.operation, keras.layers.Dense):
            assert layer.name.startswith(f"member_{number}_")
            found.insert(0, layer)
        assert layer.name == "features"
        assert [layer.units for layer in found] == WIDTHS[network]
        last = "softmax" if network == "mem_clf" else "linear"
        assert [layer.activation.__name__ for layer in found] == ["relu"] * (len(found) - 1) + [last]
    assert loaded.input_shape == (None, 9)
    assert loaded.output_shape == (None, WIDTHS[network][-1])
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))


@pytest.mark.parametrize("network", ["mem_reg", "wall_reg"])
def test_a_regressor_answers_in_the_unit_of_its_target_and_never_outside_what_was_seen(network):
    model = build(network)
    # The last layers are made to answer on both sides of the range.
    answers = member_outputs(model, 2, INPUTS).mean(axis=0)
    scale = 2 / answers.std()
    for number in range(2):
        layer = model.get_layer(f"member_{number}_output")
        layer.set_weights([layer.get_weights()[0] * scale, np.array([-answers.mean() * scale])])
    log = member_outputs(model, 2, INPUTS).mean(axis=0) * TARGET.log_sd + TARGET.log_mean
    expected = np.clip(np.exp(np.clip(log, -50, 50)), TARGET.floor, TARGET.ceiling)
    for end in (TARGET.floor, TARGET.ceiling):
        assert np.any(expected == end)
    assert np.any((expected > TARGET.floor) & (expected < TARGET.ceiling))
    np.testing.assert_allclose(model(INPUTS), expected, rtol=1e-4)


@pytest.mark.parametrize("network", WIDTHS)
def test_the_answer_is_the_mean_of_the_members(network):
    model = build(network, 3, WIDE)
    if network == "mem_clf":
        answers = member_answers(model, 3, INPUTS, None)
        expected = answers.mean(axis=0)
    else:
        answers = member_answers(model, 3, INPUTS, WIDE)
        expected = answers.prod(axis=0) ** (1 / 3)
    assert np.all(np.ptp(answers, axis=0).max(axis=1) > 0)
    np.testing.assert_allclose(model(INPUTS), expected, rtol=1e-4)


def test_the_range_of_a_target():
    found = TargetRange.of([math.e, math.e**3])
    assert (found.log_mean, found.log_sd) == (pytest.approx(2), pytest.approx(1))
    assert (found.floor, found.ceiling) == (math.e, math.e**3)
    # A target that never varies is what the network answers.
    constant = TargetRange.of([7.0, 7.0, 7.0])
    np.testing.assert_allclose(build_regressor("mem_reg", constant, 2)(INPUTS), 7, rtol=1e-5)


@pytest.mark.parametrize("network", WIDTHS)
def test_the_forward_pass_side_by_side_is_that_of_keras(network):
    perceptron = Perceptron.of(network, WIDTHS[network][-1])
    assert perceptron.widths == (9, *WIDTHS[network])
    parameters = perceptron.initial(2, seed=1)
    # Biases begin at zero, where a forward pass without them would pass.
    parameters += np.random.default_rng(2).normal(0, 0.1, parameters.shape).astype(np.float32)
    together = perceptron.forward(tf.constant(parameters), tf.constant(INPUTS)).numpy()
    assert together.shape == (2, len(INPUTS), WIDTHS[network][-1])
    model = build(network)
    perceptron.put_into(model, parameters)
    expected = tf.nn.softmax(together).numpy() if network == "mem_clf" else together
    np.testing.assert_allclose(member_outputs(model, 2, INPUTS), expected, rtol=1e-3, atol=1e-4)


def test_initial_weights_are_he_normal_and_the_seed_decides():
    perceptron = Perceptron.of("wall_reg", 1)
    parameters = perceptron.initial(3, seed=4)
    np.testing.assert_array_equal(parameters, perceptron.initial(3, seed=4))
    assert np.any(parameters != perceptron.initial(3, seed=5))
    assert np.all(parameters[0] != parameters[1], where=parameters[0] != 0)
    offset = 0
    for fan_in, fan_out in zip(perceptron.widths, perceptron.widths[1:], strict=False):
        kernel = parameters[:, offset : offset + fan_in * fan_out]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), abs=5 / fan_in**0.5 / kernel.size**0.5)
        offset += fan_in * fan_out
        assert not parameters[:, offset : offset + fan_out].any()
        offset += fan_out
    assert offset == parameters.shape[1]
