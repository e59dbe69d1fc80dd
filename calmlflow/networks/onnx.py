"""Export a Keras network to ONNX, and see that both give the same answers."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import FEATURES
from calmlflow.networks.backend import keras

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-6
"""For probabilities next to zero, where a relative difference means nothing."""


def export_onnx(model: keras.Model, path: Path, inputs: ArrayLike) -> None:
    """Write ``model`` as ONNX and check it against Keras.

    Parameters
    ----------
    model : keras.Model
    path : Path
        File to write; it is there only if the check passed.
    inputs : array_like of float32, shape (m, 9)
        Scaled features on which both must agree.

    Raises
    ------
    CalmlflowError
        An answer differs by more than `RELATIVE_TOLERANCE`.
    """
    unchecked = path.with_suffix(".unchecked.onnx")
    model(np.zeros((1, len(FEATURES)), np.float32))
    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    try:
        # tf2onnx and Keras' bridge to it print and warn about their own internals.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            model.export(unchecked, format="onnx", verbose=False)
        check_agreement(model, unchecked, inputs)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def check_agreement(model: keras.Model, path: Path, inputs: ArrayLike) -> float:
    """Largest relative difference between the answers of a Keras network and of its ONNX file.

    Raises
    ------
    CalmlflowError
        It is over `RELATIVE_TOLERANCE`.
    """
    import onnxruntime

    inputs = np.asarray(inputs, np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
