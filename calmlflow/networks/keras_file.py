"""Load a .keras file from elsewhere: plain layers and weights that lie in the file itself, and nothing else."""

# Keras' safe mode has been bypassed more than once, by names in ``config.json`` and by links in HDF5. So the file is
# checked against a short list before Keras loads it, and the network is tried afterwards.

import io
import json
import math
import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.backend import keras
from calmlflow.networks.onnx_file import MAX_PARTS, MAX_WIDTH

MAX_BYTES = {"config.json": 1 << 19, "metadata.json": 1 << 16, "model.weights.h5": 1 << 26}
"""Members of a .keras file, all needed, and the bytes that each may have; the largest of our own has 2 MB."""

# Keras makes a layer's weights from its config, before it looks whether the file has them.
MAX_WEIGHTS = MAX_BYTES["model.weights.h5"] // 4
"""Numbers of all layers together."""

# Those that `export_onnx` writes. No Concatenate, with which a short config makes layers of any width.
LAYERS = (
    *("Activation", "Add", "Average", "BatchNormalization", "Dense", "Dropout", "ELU", "InputLayer", "LeakyReLU"),
    *("Multiply", "ReLU", "Rescaling", "Softmax", "Subtract"),
)

_MODELS = frozenset([("keras", "Sequential"), ("keras.src.models.functional", "Functional")])
_NETWORK = _MODELS.union(
    [("None", "__keras_tensor__"), ("keras", "DTypePolicy")],
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


def load_network(path: Path, network: str) -> keras.Model:
    """Load a ``.keras`` file that need not be one of our own; see `parse_network`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a .keras file") from error
    return parse_network(content, path, network)


def parse_network(content: bytes, shown: Path, network: str) -> keras.Model:
    """Make a network of the bytes of a ``.keras`` file; ``shown`` names the file in errors.

    The model has one input ``features``, shape (n, 9), and one output: probabilities, shape (n, 4), or the target in
    its unit, shape (n, 1).

    Raises
    ------
    InputError
        The file asks for anything but plain layers of Keras (a Lambda layer, a function), its weights lie elsewhere or
        are too many, it does not load, or its shapes or answers do not fit the network.
    """
    members = _members(content, shown)
    try:
        check_config(json.loads(members["config.json"]), shown)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown}: config.json does not parse; expected the config of a network") from error
    check_weights(members["model.weights.h5"], shown)
    with tempfile.TemporaryDirectory() as folder:
        # The bytes that were checked are the bytes that are loaded.
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
            raise InputError(f"{shown} cannot be loaded by Keras ({reason}); expected a network") from error


def _as_ours(loaded: keras.Model, shown: Path, network: str) -> keras.Model:
    """The network under our names; it must take nine numbers and answer as its target asks."""
    outputs = len(LADDER) if network == "mem_clf" else 1
    shapes = [tuple(given.shape) for given in loaded.inputs], [tuple(answer.shape) for answer in loaded.outputs]
    if shapes != ([(None, len(FEATURES))], [(None, outputs)]):
        takes, gives = (", ".join(map(str, found)) for found in shapes)
        raise InputError(
            f"{shown} takes {takes} and gives {gives}; expected a {network} that takes (None, {len(FEATURES)}) and "
            f"gives (None, {outputs})"
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


def _members(content: bytes, shown: Path) -> dict[str, bytes]:
    """Read the members of a .keras file: the three of a plain network, and no other."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = [(info.filename, info.file_size) for info in archive.infolist()]
            if sorted(name for name, _ in sizes) != sorted(MAX_BYTES):
                names = ", ".join(repr(name) for name, _ in sizes)
                raise InputError(f"{shown} has the members {names:.200}; expected {', '.join(MAX_BYTES)}, each once")
            for name, size in sizes:
                if size > MAX_BYTES[name]:
                    raise InputError(f"{shown}: {name} has {size} bytes; expected at most {MAX_BYTES[name]}")
            found = {}
            for name, limit in MAX_BYTES.items():
                with archive.open(name) as member:
                    # Not without a size, which would decompress more than the member claims to have.
                    found[name] = member.read(limit)
            return found
    except InputError:
        raise
    except Exception as error:
        # zipfile and zlib raise a dozen kinds of error at a damaged file.
        raise InputError(f"{shown} is damaged ({error}); expected a .keras file as Keras 3 writes it") from error


def check_config(config: object, shown: Path) -> None:
    """Look through a whole ``config.json``; an InputError names what is not on the list of what may be loaded."""
    if not isinstance(config, dict) or _class_of(config) not in _MODELS:
        raise InputError(f"{shown}: config.json is {config!r:.60}; expected a Functional or Sequential network")
    values: list[tuple[Any, bool]] = [(config, False)]
    parts, units, widest = 0, 0.0, 0.0
    while values:
        value, is_compiled = values.pop()
        if isinstance(value, list):
            values += [(child, is_compiled) for child in value]
        elif isinstance(value, dict):
            if _OBJECT_KEYS & value.keys() and not _may_load(value, is_compiled):
                asked = f"class {value.get('class_name')!r:.60} of module {value.get('module')!r:.60}"
                raise InputError(f"{shown}: config.json asks for {asked}; expected Keras' {', '.join(LAYERS)}")
            parts += _class_of(value)[0] in ("keras.layers", "None") and "class_name" in value
            for key, child in value.items():
                if key in _NEVER and child is not None:
                    raise InputError(f"{shown}: config.json has {key} {child!r:.60}; expected plain weights")
                if key in _WIDTH_KEYS or "shape" in key:
                    width = _widest(child)
                    if width > MAX_WIDTH:
                        raise InputError(f"{shown}: config.json has {key} {child!r:.60}; expected at most {MAX_WIDTH}")
                    units, widest = units + (width if key == "units" else 0), max(widest, width)
                values.append((child, is_compiled or key == "compile_config"))
    for what, found, most in (("layers and calls", parts, MAX_PARTS), ("weights", units * widest, MAX_WEIGHTS)):
        if found > most:
            raise InputError(f"{shown}: config.json asks for up to {found:.0f} {what}; expected at most {most}")


def _may_load(value: dict[str, Any], is_compiled: bool) -> bool:
    """Tell whether Keras may make an object of a part of a config; ``is_compiled``: one that describes the training."""
    module, name = _class_of(value)
    known = (module, name) in _NETWORK
    if is_compiled and not known:
        # Not loaded here, but by a user who goes on training the network.
        if (module, name) == ("builtins", "function"):
            known = bool(re.fullmatch("[a-z0-9_]+", str(value.get("config"))))
        else:
            known = module in _COMPILED and bool(re.fullmatch("[A-Z][A-Za-z0-9]*", name))
    return known and value.get("registered_name") in (None, name) and "spec_name" not in value


def _class_of(value: dict[str, Any]) -> tuple[str, str]:
    return str(value.get("module")), str(value.get("class_name"))


def _widest(value: object) -> float:
    """Largest number in a width or a shape, however nested."""
    if isinstance(value, list | dict):
        return max(map(_widest, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int | float) else 0


def check_weights(content: bytes, shown: Path) -> None:
    """Look through HDF5 weights; an InputError names what lies elsewhere, is no number, or would not fit in memory."""
    shown = shown / "model.weights.h5"
    size = 0

    def problem_of_link(name: str, link: object) -> str | None:
        is_here = isinstance(link, h5py.HardLink)
        return None if is_here else f"{name!r:.60} is a link to elsewhere; expected weights that lie in the file"

    def problem_of_item(name: str, item: object) -> str | None:
        nonlocal size
        if isinstance(item, h5py.Group):
            return None
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu":
            return f"{name!r:.60} is no array of numbers; expected weights"
        if item.external or item.is_virtual:
            return f"{name!r:.60} takes its numbers from another file; expected weights that lie in the file"
        # A few bytes may unpack to as many as they like, and a chunk is larger than its array if it says so.
        size += max(item.size, math.prod(item.chunks or ())) * item.dtype.itemsize
        limit = MAX_BYTES["model.weights.h5"]
        return f"{name!r:.60} takes the weights to {size} bytes; expected at most {limit}" if size > limit else None

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            problem = file.visititems_links(problem_of_link) or file.visititems(problem_of_item)
    except Exception as error:
        raise InputError(f"{shown} is damaged ({type(error).__name__}); expected HDF5 weights") from error
    if problem:
        raise InputError(f"{shown}: {problem}")
