"""Networks from elsewhere: plain ones load and answer as they did, anything else is refused in one sentence."""

import importlib.resources
import io
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor
from calmlflow.networks.backend import keras
from calmlflow.networks.keras_file import MAX_BYTES, check_config, load_network, parse_network
from calmlflow.networks.onnx import export_onnx
from calmlflow.networks.onnx_file import check_graph
from tests.samples.network_samples import little_memory

SHOWN = Path("elsewhere", "hst_cal", "mem_clf.keras")
INPUTS = np.random.default_rng(0).normal(0, 1, (50, 9)).astype(np.float32)
layers = keras.layers


def classifier(*hidden, outputs=4, inputs=9, activation="softmax"):
    last = layers.Dense(outputs, activation=activation)
    return keras.Sequential([keras.Input((inputs,)), *hidden, last], name="theirs")


def saved(model, folder) -> bytes:
    path = folder / "saved.keras"
    model.save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> bytes:
    """A functional network with parts of every kind, compiled and fitted."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((9,), name="hst_jobs")
    x = layers.Dense(6, "relu", kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(2))(inputs)
    x = layers.Dropout(0.2)(layers.BatchNormalization()(x))
    x = layers.Average()([layers.Dense(5, "swish")(x), keras.Sequential([keras.Input((6,)), layers.Dense(5)])(x)])
    model = keras.Model(inputs, layers.Dense(4, "softmax")(layers.LeakyReLU()(x)))
    rate = keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.9)
    model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy", keras.metrics.AUC()])
    model.fit(INPUTS[:8], np.eye(4)[[0, 1, 2, 3] * 2], verbose=0)
    return saved(model, tmp_path_factory.mktemp("plain"))


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members: dict[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def config_of(content: bytes) -> dict:
    return json.loads(members_of(content)["config.json"])


def with_config(content: bytes, config: object) -> bytes:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    return archive_of({**members_of(content), "config.json": text})


def refusal(content: bytes, network: str = "mem_clf") -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        parse_network(content, SHOWN, network)
    text = str(caught.value)
    assert text.startswith(str(SHOWN))
    assert "expected" in text
    assert "\n" not in text
    return text


# -- What loads -------------------------------------------------------------------------------------------------------


def test_a_plain_network_loads_under_our_names_and_answers_as_it_did(plain, tmp_path):
    (tmp_path / "theirs.keras").write_bytes(plain)
    original = keras.saving.load_model(tmp_path / "theirs.keras", compile=False)
    model = parse_network(plain, SHOWN, "mem_clf")
    assert (model.name, [given.name for given in model.inputs]) == ("mem_clf", ["features"])
    np.testing.assert_array_equal(model(INPUTS), original(INPUTS, training=False))
    export_onnx(model, tmp_path / "mem_clf.onnx", INPUTS)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ELU(),
        layers.ReLU(max_value=6),
        layers.Softmax(),
        layers.Rescaling(2.0, 1.0),
        layers.Activation("exponential"),
        layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(seed=123_456_789)),
    ],
    ids=lambda layer: layer.name,
)
def test_every_layer_on_the_list_loads_and_runs_as_onnx(layer, tmp_path):
    model = parse_network(saved(classifier(layer), tmp_path), SHOWN, "mem_clf")
    export_onnx(model, tmp_path / "mem_clf.onnx", INPUTS)
    check_graph(tmp_path / "mem_clf.onnx")


def test_branches_load_and_run_as_onnx(tmp_path):
    x = inputs = keras.Input((9,))
    for merge in (layers.Add, layers.Average, layers.Multiply, layers.Subtract):
        x = merge()([layers.Dense(5)(x), layers.Dense(5)(inputs)])
    content = saved(keras.Model(inputs, layers.Dense(1)(x)), tmp_path)
    export_onnx(parse_network(content, SHOWN, "mem_reg"), tmp_path / "mem_reg.onnx", INPUTS)
    check_graph(tmp_path / "mem_reg.onnx")


def test_our_own_networks_load(tmp_path):
    for model in (build_classifier(5), build_regressor("wall_reg", TargetRange(1.0, 0.5, 0.2, 60.0), 5)):
        path = tmp_path / f"{model.name}.keras"
        model.save(path)
        np.testing.assert_array_equal(load_network(path, model.name)(INPUTS), model(INPUTS))
    with pytest.raises(InputError, match=r"mem_reg\.keras cannot be read .*expected a \.keras file"):
        load_network(tmp_path / "mem_reg.keras", "mem_reg")


def test_the_networks_in_operation_load():
    archive = importlib.resources.files("spacekit").joinpath("builder/trained_networks/hst_cal.zip")
    files = members_of(archive.read_bytes())
    for network in ("mem_clf", "mem_reg", "wall_reg"):
        assert parse_network(files[f"hst_cal/{network}.keras"], SHOWN, network).name == network


# -- Files of another kind --------------------------------------------------------------------------------------------


def test_a_file_of_another_kind_is_damaged(plain):
    changed = bytearray(plain)
    changed[plain.index(b"Functional")] ^= 1
    for content in (b"", plain[:1000], pickle.dumps([1.0]), members_of(plain)["model.weights.h5"], bytes(changed)):
        assert "is damaged" in refusal(content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["config.json", "../config.json", "/etc/passwd", "assets/vocabulary.txt", "layers/"])
def test_a_member_too_many_is_refused(plain, name):
    members = [*members_of(plain).items(), (name, b"")]
    assert "expected config.json, metadata.json, model.weights.h5, each once" in refusal(archive_of(members))


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_member_that_is_missing_or_too_large_is_named(plain, name):
    members = members_of(plain)
    content = archive_of({**members, name: bytes(MAX_BYTES[name] + 1)})
    assert f"{name} has {MAX_BYTES[name] + 1} bytes" in refusal(content)
    del members[name]
    assert "each once" in refusal(archive_of(members))


# -- The config -------------------------------------------------------------------------------------------------------


def of_class(name: str, module: object = "keras.layers", config: object = None, **more: object) -> dict:
    return {"class_name": name, "module": module, "config": {} if config is None else config, **more}


BAD_OBJECTS = [
    of_class("Lambda"),
    of_class("Lambda", "keras.src.layers.core.lambda_layer"),
    of_class("system", "os"),
    of_class("function", "os", "system"),
    of_class("function", "builtins", "keras.utils.get_file"),
    of_class("function", "keras.losses", "mse"),
    of_class("deserialize", "keras.losses"),
    of_class("TorchModuleWrapper"),
    of_class("StringLookup", config={"vocabulary": "/etc/passwd"}),
    of_class("Dense", registered_name="evil>Dense"),
    of_class("Dense", "keras"),
    of_class("Dense", None),
    of_class("__lambda__", None, {"value": "4wEAAAA="}),
    of_class("__typespec__", "os", spec_name="system"),
    of_class("__keras_tensor__", "os"),
    of_class("DTypePolicy", "keras", spec_name="x"),
    {"class_name": ["Dense"], "module": "keras.layers"},
    {"class_name": "Dense", "module": {"keras": "layers"}},
    {"module": "os"},
    {"registered_name": "evil>Dense"},
]


@pytest.fixture(scope="module")
def new_config(plain):
    """A function, as hypothesis would show every byte of the file."""
    text = members_of(plain)["config.json"]
    return lambda: json.loads(text)


@st.composite
def places(draw, value) -> list:
    """A way to somewhere in a JSON value: keys and positions."""
    way: list = []
    while isinstance(value, dict | list) and value and (not way or draw(st.integers(0, 5))):
        key = draw(st.sampled_from(sorted(value))) if isinstance(value, dict) else draw(st.integers(0, len(value) - 1))
        way.append(key)
        value = value[key]
    return way


@given(data=st.data(), bad=st.sampled_from(BAD_OBJECTS), added=st.booleans())
def test_what_is_not_on_the_list_is_refused_wherever_it_stands(new_config, data, bad, added):
    config = new_config()
    check_config(config, SHOWN)
    *way, last = data.draw(places(config))
    place = config
    for key in way:
        place = place[key]
    if not added:
        place[last] = bad
    elif isinstance(place, list):
        place.insert(last, bad)
    else:
        place["more"] = [{"deep": bad}]
    with pytest.raises(InputError, match=r"config\.json "):
        check_config(config, SHOWN)


def test_losses_metrics_and_optimizers_are_refused_outside_of_the_compile_config(plain):
    for name, module, inner in (("Adam", "keras.optimizers", {}), ("function", "builtins", "categorical_crossentropy")):
        config = config_of(plain)
        config["compile_config"]["more"] = of_class(name, module, inner)
        check_config(config, SHOWN)
        config["config"]["more"] = of_class(name, module, inner)
        with pytest.raises(InputError, match=f"class '{name}'"):
            check_config(config, SHOWN)


DEEP = {"class_name": "Sequential", "module": "keras", "units": 1}
for _ in range(900):
    DEEP = {**DEEP, "units": [DEEP["units"]]}


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", of_class("Dense"), DEEP], ids=range(7)
)
def test_a_config_of_something_else_is_refused(plain, config):
    assert "config.json" in refusal(with_config(plain, config))


def test_a_config_that_keras_cannot_use_is_one_sentence(plain):
    config = config_of(plain)
    del config["config"]["input_layers"]
    assert "cannot be loaded by Keras" in refusal(with_config(plain, config))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("config", "units", 10**9),
        ("build_config", "input_shape", [None, 10**9]),
        ("build_config", "shapes_dict", {"one": [[None, 1e9]]}),
        ("config", "batch_shape", [None, -(10**9)]),
        ("config", "lora_rank", 4),
        ("config", "quantization_config", {"mode": "int8"}),
    ],
)
def test_what_would_make_huge_or_other_weights_is_refused(plain, part, key, value):
    config = config_of(plain)
    config["config"]["layers"][1].setdefault(part, {})[key] = value
    assert f"config.json has {key} " in refusal(with_config(plain, config))


@pytest.mark.parametrize(("count", "words"), [(5800, "up to 5801 layers and calls"), (900, "up to 943718400 weights")])
def test_a_config_that_asks_for_gigabytes_is_refused_before_keras_makes_them(plain, count, words):
    dense = {"class_name": "Dense", "module": "keras.layers", "config": {"units": 1024}}
    first = {"class_name": "InputLayer", "module": "keras.layers", "config": {"batch_shape": [None, 9]}}
    bomb = {"name": "bomb", "layers": [first, *([dense] * count)]}
    with little_memory():
        assert words in refusal(with_config(plain, {"class_name": "Sequential", "module": "keras", "config": bomb}))


# -- The weights ------------------------------------------------------------------------------------------------------


def with_weights(content: bytes, change) -> bytes:
    """The file with its weights changed by a function of the open HDF5 file."""
    members = members_of(content)
    file = io.BytesIO(members["model.weights.h5"])
    with h5py.File(file, "r+") as weights:
        change(weights)
    return archive_of({**members, "model.weights.h5": file.getvalue()})


def virtual(weights) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "more", (4,))
    weights.create_virtual_dataset("more", layout)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.__setitem__("more", h5py.ExternalLink("/etc/x.h5", "/")), "link to elsewhere"),
        (lambda weights: weights.__setitem__("more", h5py.SoftLink("/layers")), "link to elsewhere"),
        (
            lambda weights: weights.create_dataset("more", (4,), "f4", external=[("/etc/passwd", 0, 16)]),
            "from another file",
        ),
        (virtual, "from another file"),
        (lambda weights: weights.__setitem__("more", "text"), "no array of numbers"),
        (lambda weights: weights.__setitem__("more", np.dtype("f4")), "no array of numbers"),
        (
            lambda weights: weights.create_dataset("more", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip"),
            "expected at most 67108864",
        ),
        (
            lambda weights: weights.create_dataset(
                "more", (1,), "f4", maxshape=(None,), chunks=(1 << 28,), compression="gzip"
            ),
            "expected at most 67108864",
        ),
    ],
    ids=["external link", "soft link", "external", "virtual", "text", "type", "bomb", "chunk"],
)
def test_weights_that_lie_elsewhere_or_are_too_many_are_refused(plain, change, words):
    assert words in refusal(with_weights(plain, change))


def test_weights_that_do_not_fit_the_network_are_refused(plain, tmp_path):
    assert "model.weights.h5 is damaged" in refusal(archive_of({**members_of(plain), "model.weights.h5": b"x" * 999}))
    others = members_of(saved(classifier(), tmp_path))["model.weights.h5"]
    text = refusal(archive_of({**members_of(plain), "model.weights.h5": others}))
    # Of which Keras would only warn.
    assert "cannot be loaded by Keras (Skipping nested container" in text


# -- Shapes and answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "network", "words"),
    [
        (
            classifier(inputs=8),
            "mem_clf",
            "takes (None, 8) and gives (None, 4); expected a mem_clf that takes (None, 9)",
        ),
        (classifier(), "mem_reg", "expected a mem_reg that takes (None, 9) and gives (None, 1)"),
        (classifier(outputs=3), "mem_clf", "gives (None, 3)"),
        (classifier(activation="sigmoid"), "mem_clf", "expected probabilities"),
    ],
)
def test_a_network_of_another_shape_or_kind_is_refused(model, network, words, tmp_path):
    assert words in refusal(saved(model, tmp_path), network)


def test_two_inputs_are_refused(tmp_path):
    inputs = [keras.Input((9,)), keras.Input((9,))]
    model = keras.Model(inputs, layers.Dense(4, "softmax")(layers.Add()(inputs)))
    assert "takes (None, 9), (None, 9)" in refusal(saved(model, tmp_path))


@pytest.mark.parametrize(
    ("bias", "words"), [([1.5, -0.5, 0, 0], "from -0.5 that sum to 1; expected prob"), ([np.nan] * 4, "not finite")]
)
def test_answers_that_cannot_be_are_refused(tmp_path, bias, words):
    model = classifier(activation="linear")
    model.set_weights([np.zeros((9, 4)), np.array(bias)])
    assert words in refusal(saved(model, tmp_path))
