"""A network that somebody else has trained: its file is looked through before Keras sees it, and tried afterwards.

Keras' safe mode alone has been got around more than once, by what ``config.json`` names and by what HDF5 links to. So
nothing is loaded but what is on a short list: plain layers, and weights that lie in the file itself.
"""

import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.backend import keras

MAX_BYTES = {"config.json": 1 << 19, "metadata.json": 1 << 16, "model.weights.h5": 1 << 26}
"""Members of a .keras file, all needed, and the bytes that each may have; the largest of our own has 2 MB."""

MAX_LINKS = 10_000
"""Groups and datasets that the weights may have."""

MAX_WIDTH = 1024
"""Widest layer. Keras makes a layer's weights from its config, before it looks whether the file has them."""

# No Normalization, which tf2onnx does not export; no Concatenate, with which a short config makes layers of any width.
LAYERS = (
    *("Activation", "Add", "Average", "BatchNormalization", "Dense", "Dropout", "ELU", "InputLayer", "LeakyReLU"),
    *("Multiply", "ReLU", "Rescaling", "Softmax", "Subtract"),
)

_MODELS = frozenset([("keras", "Sequential"), ("keras.src.models.functional", "Functional")])
_NETWORK = _MODELS.union(
    [(None, "__keras_tensor__"), ("keras", "DTypePolicy")],
    [("keras.layers", name) for name in LAYERS],
    [("keras.regularizers", name) for name in ("L1", "L2", "L1L2")],
    [("keras.constraints", name) for name in ("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm")],
    [("keras.initializers", name) for name in ("Constant", "Ones", "Zeros", "VarianceScaling", "Orthogonal")],
    [("keras.initializers", f"{name}{kind}") for name in ("Glorot", "He", "Lecun") for kind in ("Normal", "Uniform")],
    [("keras.initializers", name) for name in ("RandomNormal", "RandomUniform", "TruncatedNormal")],
)
"""Module and class of everything that a config may ask for."""

_COMPILED = ("keras.losses", "keras.metrics", "keras.optimizers", "keras.optimizers.schedules")
# Keras takes a dict with the first for an object; the others say where it comes from.
_OBJECT_KEYS = {"class_name", "module", "registered_name", "spec_name"}
_WIDTH_KEYS = ("units", "input_dim")
# What makes weights beyond those of the layer.
_NEVER = ("lora_rank", "quantization_config")
# Scaled sizes of small and large jobs, with every value of the flags.
_PROBES = np.array([[size, size, *(flag % 2,) * 6, flag] for size in (-3, 0, 3) for flag in range(4)], np.float32)
_KINDS = {b"\x89HDF": "an HDF5 file of an earlier Keras", b"\x80": "a pickle"}


def load_network(path: Path, network: str) -> keras.Model:
    """Load a ``.keras`` file that need not be one of our own; see `parse_network`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a .keras file") from None
    return parse_network(content, path, network)


def parse_network(content: bytes, shown: Path, network: str) -> keras.Model:
    """Make a network of the bytes of a ``.keras`` file that comes from elsewhere.

    Parameters
    ----------
    content : bytes
    shown : Path
        What to call it in errors; nothing is read from there.
    network : {"mem_clf", "mem_reg", "wall_reg"}

    Returns
    -------
    keras.Model
        Of this name, with one input ``features``, shape (n, 9), and one output: probabilities, shape (n, 4), or the
        target in its unit, shape (n, 1).

    Raises
    ------
    InputError
        It is no .keras file; its config asks for anything but plain layers of Keras (a Lambda layer, a class of another
        module, a function); its weights lie elsewhere or are too many; it does not load; its shapes are others; or its
        answers are not finite, or not probabilities.
    """
    members = _members(content, shown)
    check_config(_parsed(members["config.json"], shown), shown)
    check_weights(members["model.weights.h5"], shown)
    with tempfile.TemporaryDirectory() as folder:
        # What was looked through is what is loaded, whatever becomes of the file meanwhile.
        path = Path(folder, f"{network}.keras")
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                # Keras only warns of layers that get no weights from the file and keep the random ones they began with.
                warnings.filterwarnings("error", "Skipping")
                loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
            return _as_ours(loaded, shown, network)
        except InputError:
            raise
        except Exception as error:
            # Layers raise whatever they like at a config that does not suit them.
            text = str(error).replace(str(path), shown.name).rpartition("Exception encountered: ")[2]
            reason = text.strip().partition("\n")[0][:200] or type(error).__name__
            raise InputError(f"{shown} cannot be loaded by Keras ({reason}); expected a network") from None


def _as_ours(loaded: keras.Model, shown: Path, network: str) -> keras.Model:
    """The network under our names; it must take nine numbers and answer as its target asks."""
    outputs = len(LADDER) if network == "mem_clf" else 1
    shapes = [tuple(given.shape) for given in loaded.inputs], [tuple(answer.shape) for answer in loaded.outputs]
    if shapes != ([(None, len(FEATURES))], [(None, outputs)]):
        raise InputError(
            f"{shown} takes {_told(shapes[0])} and gives {_told(shapes[1])}; expected a {network} that takes (None, "
            f"{len(FEATURES)}) and gives (None, {outputs})"
        )
    # Under other names the bundle would not find its input.
    features = keras.Input((len(FEATURES),), name="features")
    model = keras.Model(features, loaded(features), name=network)
    answers = keras.ops.convert_to_numpy(model(_PROBES))
    if not np.all(np.isfinite(answers)):
        raise InputError(f"{shown} gives an answer that is not finite; expected numbers for every job")
    sums = answers.sum(axis=1)
    if network == "mem_clf" and (answers.min() < 0 or np.abs(sums - 1).max() > 1e-3):
        raise InputError(
            f"{shown} gives numbers from {answers.min():.3g} that sum to {sums[np.abs(sums - 1).argmax()]:.4g}; "
            "expected probabilities of the four bins, as a softmax gives"
        )
    return model


def _told(shapes: list[tuple[int | None, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "nothing"


# -- The archive ------------------------------------------------------------------------------------------------------


def _members(content: bytes, shown: Path) -> dict[str, bytes]:
    """Read the three members of a .keras file, and make sure that there is nothing else."""
    for start, kind in _KINDS.items():
        if content.startswith(start):
            raise InputError(f"{shown} is {kind}; expected a .keras file as Keras 3 writes it")
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            for info in zipped.infolist():
                limit = MAX_BYTES.get(info.filename)
                if limit is None or info.filename in found:
                    what = "is there twice" if info.filename in found else "is none of a plain network's"
                    raise InputError(
                        f"{shown}: member {info.filename!r} {what}; expected {', '.join(MAX_BYTES)}, each once"
                    )
                if info.file_size > limit:
                    raise InputError(
                        f"{shown}: member {info.filename!r} has {info.file_size} bytes; expected at most {limit}"
                    )
                with zipped.open(info) as member:
                    # Not without a size, which would decompress more than the member claims to have.
                    found[info.filename] = member.read(limit)
    except CalmlflowError:
        raise
    except Exception as error:
        # zipfile raises at least OSError, EOFError, ValueError, RuntimeError, zlib.error and its own.
        raise InputError(f"{shown} is damaged ({error}); expected a .keras file as Keras 3 writes it") from error
    for name in MAX_BYTES:
        if name not in found:
            raise InputError(f"{shown} has no member {name!r}; expected a .keras file as Keras 3 writes it")
    return found


# -- The config -------------------------------------------------------------------------------------------------------


def _parsed(text: bytes, shown: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{shown}: config.json does not parse; expected the config of a network")
    return config


def check_config(config: dict[str, Any], shown: Path) -> None:
    """Look through a whole ``config.json``; an InputError names what is not on the list of what may be loaded."""
    if not _is_in(config, _MODELS):
        raise InputError(f"{shown}: config.json is of {_class_of(config)}; expected a Functional or Sequential network")
    values: list[tuple[Any, bool]] = [(config, False)]
    while values:
        value, is_compiled = values.pop()
        if isinstance(value, list):
            values += [(child, is_compiled) for child in value]
        elif isinstance(value, dict):
            if _OBJECT_KEYS & value.keys():
                _check_object(value, is_compiled, shown)
            for key, child in value.items():
                if key in _NEVER and child is not None:
                    raise InputError(f"{shown}: config.json has {key} {_cut(child)}; expected plain weights")
                if (key in _WIDTH_KEYS or "shape" in key) and _widest(child) > MAX_WIDTH:
                    raise InputError(f"{shown}: config.json has {key} {_cut(child)}; expected at most {MAX_WIDTH}")
                values.append((child, is_compiled or key == "compile_config"))


def _check_object(value: dict[str, Any], is_compiled: bool, shown: Path) -> None:
    name, module = value.get("class_name"), value.get("module")
    known = _is_in(value, _NETWORK)
    if is_compiled and not known:
        # How it was trained is not loaded here, but whoever goes on training will load it.
        function = (module, name) == ("builtins", "function") and re.fullmatch("[a-z0-9_]+", str(value.get("config")))
        known = bool(function) or (module in _COMPILED and bool(re.fullmatch("[A-Z][A-Za-z0-9]*", str(name))))
    if not known or value.get("registered_name") not in (None, name) or "spec_name" in value:
        raise InputError(f"{shown}: config.json asks for {_class_of(value)}; expected Keras' {', '.join(LAYERS)}")


def _is_in(value: dict[str, Any], classes: Collection[tuple[str | None, str]]) -> bool:
    """Whether the class that a part of a config asks for is one of these, each by module and name."""
    name, module = value.get("class_name"), value.get("module")
    return isinstance(name, str) and isinstance(module, str | None) and (module, name) in classes


def _class_of(value: dict[str, Any]) -> str:
    """Name the class that a part of a config asks for, as it says itself."""
    named = value.get("registered_name")
    suffix = f" registered as {_cut(named)}" if named not in (None, value.get("class_name")) else ""
    return f"class {_cut(value.get('class_name'))} of module {_cut(value.get('module'))}{suffix}"


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _widest(value: object) -> float:
    """Largest number in a width or a shape, however nested."""
    found, values = 0.0, [value]
    while values:
        value = values.pop()
        if isinstance(value, list | dict):
            values += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int | float):
            found = max(found, abs(value))
    return found


# -- The weights ------------------------------------------------------------------------------------------------------


def check_weights(content: bytes, shown: Path) -> None:
    """Look through HDF5 weights; an InputError names what lies elsewhere, is no number, or would not fit in memory."""
    shown = shown / "model.weights.h5"
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            _check_groups(file, shown)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{shown} is damaged ({type(error).__name__}); expected HDF5 weights") from None


def _check_groups(file: h5py.File, shown: Path) -> None:
    limit = MAX_BYTES["model.weights.h5"]
    size = links = 0
    groups: list[h5py.Group] = [file]
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{shown}: {_cut(f'{group.name}/{name}')}"
            # A group may contain itself.
            links += 1
            if links > MAX_LINKS:
                raise InputError(f"{shown} holds more than {MAX_LINKS} groups and arrays; expected fewer")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{where} is a link to elsewhere; expected weights that lie in the file")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
                continue
            if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu":
                raise InputError(f"{where} is no array of numbers; expected weights")
            if item.external or item.is_virtual:
                raise InputError(f"{where} takes its numbers from another file; expected weights that lie in the file")
            # A few bytes may unpack to as many as they like.
            size += item.size * item.dtype.itemsize
            if size > limit:
                raise InputError(f"{where} takes the weights to {size} bytes; expected at most {limit}")
