"""Is a version whole, does it answer as its networks were trained to, and can MLflow serve it?"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import Model
from mlflow.types import ColSpec, Schema
from numpy.typing import NDArray

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import job_features
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.answers import as_answers
from calmlflow.predictor.bundle import ANSWER_KEYS, Bundle
from calmlflow.predictor.manifest import MANIFEST, read_manifest
from calmlflow.registry import serving_check
from calmlflow.registry.package import EXAMPLE, INPUTS, OUTPUTS

SERVING_TIMEOUT_S = 180


def download_version(model: str, version: str, folder: Path) -> Path:
    """Fetch all files of a version afresh, past every cache; a CalmlflowError where they cannot be had."""
    uri = f"models:/{model}/{version}"
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except Exception as error:
        # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
        raise CalmlflowError(
            f"version {version} of {model} cannot be downloaded ({type(error).__name__}); expected its artifacts"
        ) from None


def bundle_folder(model_folder: Path, name: str) -> Path:
    """Where a version keeps its bundle."""
    manifests = sorted(model_folder.rglob(MANIFEST))
    if len(manifests) != 1:
        raise InputError(f"{name} holds {len(manifests)} files {MANIFEST}; expected one, of its bundle")
    return manifests[0].parent


def check_whole(bundle: Path, recorded_sha256: str | None, expected: Sequence[str] | None) -> str:
    """See that a bundle is the one that was registered, and complete: every file that belongs to its networks.

    Parameters
    ----------
    bundle : Path
    recorded_sha256 : str, optional
        Of its manifest; without one the check fails.
    expected : sequence of str, optional
        Networks that it must have; None: at least one.

    Raises
    ------
    InputError
        Names the file that is missing, changed, or not listed.
    """
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    if recorded_sha256 is None:
        raise InputError("the version has no tag bundle_sha256; expected the SHA-256 of its bundle.json")
    if digest != recorded_sha256:
        raise InputError(
            f"{MANIFEST} has the SHA-256 {digest[:12]}...; expected {recorded_sha256[:12]}... as registered"
        )
    manifest = read_manifest(bundle)
    found = manifest["networks"]
    if not found or (expected is not None and set(found) != set(expected)):
        raise InputError(
            f"it holds the networks {', '.join(found) or 'none'}; expected {', '.join(expected or ['one'])}"
        )
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} - {MANIFEST}
    if surplus := sorted(files - set(manifest["sha256"])):
        raise InputError(f"{surplus[0]} is not listed in {MANIFEST}; expected only files that are")
    for network in manifest["networks"]:
        for part in (f"{network}/{network}.keras", f"{network}/{network}.onnx"):
            if part not in manifest["sha256"]:
                raise InputError(f"{part} is not listed in {MANIFEST}; expected every network in both forms")
    # Reads every file and compares its SHA-256.
    Bundle.load(bundle)
    return f"{len(files)} files match their SHA-256"


def onnx_difference(bundle: Path, network: str, features: NDArray[np.float64]) -> float:
    """Largest relative difference between the Keras and the ONNX network, over jobs of raw features (n, 9).

    Raises
    ------
    CalmlflowError
        It is too large, or the Keras file cannot be loaded safely.
    """
    # TensorFlow takes seconds to import.
    from calmlflow.networks.keras_file import load_network
    from calmlflow.networks.onnx import check_agreement

    own = bundle / network / "tx_data.json"
    scaling = Scaling.from_json((own if own.exists() else bundle / "tx_data.json").read_bytes())
    keras_network = load_network(bundle / network / f"{network}.keras", network)
    return check_agreement(keras_network, bundle / network / f"{network}.onnx", scaling.apply(features))


def check_serving(model_folder: Path, bundle: Path, networks: Sequence[str]) -> str:
    """See that MLflow serves a version by its signature, and that it answers its own example as the bundle does.

    Raises
    ------
    InputError
        Says what is not as it must be.
    """
    signature = Model.load(str(model_folder)).signature
    outputs = Schema([ColSpec(OUTPUTS[key], key) for network in networks for key in ANSWER_KEYS[network]])
    for side, found, expected in (
        ("inputs", signature and signature.inputs, INPUTS),
        ("outputs", signature and signature.outputs, outputs),
    ):
        if found is None or found.to_dict() != expected.to_dict():
            names = "none" if found is None else ", ".join(map(str, found.input_names() or ["unnamed"]))
            raise InputError(
                f"the signature's {side} are {names}; expected {', '.join(map(str, expected.input_names()))} with "
                "their types"
            )
    answers = _served_answers(model_folder)
    row = EXAMPLE.to_dict("records")[0]
    features = job_features(str(row["ipppssoot"]), {str(key): value for key, value in row.items()})
    direct = as_answers(Bundle.load(bundle).predict([features]))[0]
    if not isinstance(answers, dict) or list(answers) != list(direct):
        raise InputError(f"the served answer is {answers!r:.100}; expected {', '.join(direct)}")
    for key, value in direct.items():
        if len(answers[key]) != 1 or not np.allclose(np.asarray(answers[key][0], float), np.asarray(value, float)):
            raise InputError(f"the served {key} of the example is {answers[key]!r:.60}; expected [{value!r}]")
    return "signature and input example work"


def _served_answers(model_folder: Path) -> object:
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH") if name in os.environ
    }
    try:
        done = subprocess.run(
            # Isolated: without what the environment or the folder would put on Python's path.
            [sys.executable, "-I", serving_check.__file__, str(model_folder)],
            env={**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": "sqlite://"},
            cwd=model_folder,
            capture_output=True,
            text=True,
            timeout=SERVING_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"mlflow.pyfunc did not answer in {SERVING_TIMEOUT_S} s; expected the example's") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InputError(f"mlflow.pyfunc cannot answer the input example ({reason:.200}); expected an answer")
    return json.loads(lines[-1])
