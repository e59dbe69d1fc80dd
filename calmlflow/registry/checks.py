"""Check the files, the networks and the serving of a version."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc import FLAVOR_NAME, MAIN
from mlflow.pyfunc.model import CONFIG_KEY_PYTHON_MODEL, MODEL_CODE_PATH
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import job_features
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.answers import as_answers
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.http_client import within
from calmlflow.predictor.manifest import MANIFEST, read_files, read_manifest
from calmlflow.predictor.registry_client import RegistryUnavailableError, check_reachable
from calmlflow.registry.package import EXAMPLE, INPUTS, INPUTS_BEFORE, SERVED, model_digest, outputs_of
from calmlflow.registry.versions import Version

SERVING_TIMEOUT_S = 180

LOADER = "mlflow.pyfunc.loaders.code_model"

STORE_PATIENCE_S = 40

# Run in a process of its own: there the version's own code is imported, and can do no harm to this process.
SERVE = """
import json, sys
import mlflow, numpy

model = mlflow.pyfunc.load_model(sys.argv[1])
if model.input_example is None:
    sys.exit("it has no input example")
answers = model.predict(model.input_example).to_dict("list")
print(json.dumps(answers, default=lambda value: numpy.asarray(value).tolist()))
"""


INTEGRITY = ("artifacts", "serving", "answers")
"""Checks that nothing may be forced past: without them nobody knows what would be served, or nothing would."""


class Check(NamedTuple):
    """One check of the gate: its name, whether it passed, what was found, and what was expected."""

    name: str
    passed: bool | None  # None: not decided, for want of evidence
    figure: str
    expected: str

    @property
    def verdict(self) -> str:
        """In words: passed, failed or not decided."""
        return "not decided" if self.passed is None else "passed" if self.passed else "failed"

    def __str__(self) -> str:
        """Say it in a sentence."""
        return f"{self.name}: {self.figure} (expected {self.expected})"


def counted(checks: Sequence[Check]) -> str:
    """How many checks passed, failed, and were not decided: ``12 of 14 checks passed, 2 not decided``."""
    count = Counter(check.verdict for check in checks)
    others = "".join(f", {count[verdict]} {verdict}" for verdict in ("failed", "not decided") if count[verdict])
    return f"{count['passed']} of {len(checks)} checks passed{others}"


def guarded(name: str, expected: str, check: Callable[[], str]) -> Check:
    """Make a check that raises where it fails, and else gives what it found."""
    try:
        return Check(name, True, check(), expected)
    except CalmlflowError as error:
        return Check(name, False, str(error), expected)
    except Exception as error:
        # A version that was tampered with may break whatever reads it, in any way.
        return Check(name, False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}", expected)


def _artifact_server() -> str:
    server = settings.tracking_uri()
    try:
        check_reachable(server)
    except RegistryUnavailableError:
        # MLflow would try for minutes. The registry's own server hands out artifacts too.
        return settings.registry_uri()
    return server


def download_version(version: Version, folder: Path) -> Path:
    """Fetch all files of a version, past every cache; a CalmlflowError where they cannot be had."""
    try:
        uri = f"models:/{version.model}/{version.number}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=_artifact_server()))
    except Exception as error:
        # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
        raise CalmlflowError(f"{version} cannot be downloaded ({type(error).__name__}); expected its files") from error


def check_store(version: Version) -> None:
    """See that the artifact store answers and has files of a version.

    An InputError where they are gone, and a CalmlflowError where nobody can say within `STORE_PATIENCE_S`: the server
    waits for its store for minutes, and MLflow's client asks it again.
    """

    def list_files() -> list[mlflow.entities.FileInfo]:
        uri = f"models:/{version.model}/{version.number}"
        return mlflow.artifacts.list_artifacts(uri, tracking_uri=_artifact_server())

    try:
        found = within(STORE_PATIENCE_S, list_files)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            reason = f"no answer in {STORE_PATIENCE_S} s" if isinstance(error, TimeoutError) else type(error).__name__
            raise CalmlflowError(
                f"the files of {version} cannot be listed ({reason}); expected an artifact store that answers"
            ) from error
        found = []
    # A store may keep the folders of files that were deleted.
    if not any(file.path == MLMODEL_FILE_NAME for file in found):
        raise InputError(f"the files of {version} are gone; expected those that were registered")


def check_digest(version: Version, folder: Path) -> None:
    """Compare the files of a version with the digest in the registry; an InputError where they do not match."""
    recorded = version.tags.get("model_sha256")
    if recorded is None:
        raise InputError(f"{version} has no tag model_sha256; expected the SHA-256 of its files")
    if (found := model_digest(folder)) != recorded:
        raise InputError(
            f"the files of {version} have the SHA-256 {found[:12]}...; expected {recorded[:12]}... as registered"
        )


def check_files(version: Version) -> None:
    """See that the files of a version are there and match their digest; only a warning where they cannot be fetched."""
    with tempfile.TemporaryDirectory(prefix="calmlflow-") as temporary:
        try:
            check_store(version)
            folder = download_version(version, Path(temporary))
        except InputError:
            raise
        except CalmlflowError as error:
            say(f"warning: the files of {version} are not checked: {error}")
        else:
            check_digest(version, folder)


def bundle_folder(model_folder: Path, name: str) -> Path:
    """Where a version keeps its bundle."""
    manifests = sorted(model_folder.rglob(MANIFEST))
    if len(manifests) != 1:
        raise InputError(f"{name} holds {len(manifests)} files {MANIFEST}; expected one, of its bundle")
    return manifests[0].parent


def check_whole(bundle: Path, recorded_sha256: str | None, expected: Sequence[str] | None) -> str:
    """See that a bundle is the one that was registered, and has every file of the expected networks (None: of any)."""
    digest = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
    if digest != recorded_sha256:
        recorded = f"{recorded_sha256[:12]}..." if recorded_sha256 else "a tag bundle_sha256"
        raise InputError(f"{MANIFEST} has the SHA-256 {digest[:12]}...; expected {recorded} as registered")
    manifest = read_manifest(bundle)
    found = manifest["networks"]
    if not found or (expected is not None and set(found) != set(expected)):
        raise InputError(
            f"it holds the networks {', '.join(found) or 'none'}; expected {', '.join(expected or ['one'])}"
        )
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} - {MANIFEST}
    if surplus := sorted(files - set(manifest["sha256"])):
        raise InputError(f"{surplus[0]} is not listed in {MANIFEST}; expected only files that are")
    for network in found:
        for part in (f"{network}/{network}.keras", f"{network}/{network}.onnx"):
            if part not in manifest["sha256"]:
                raise InputError(f"{part} is not listed in {MANIFEST}; expected every network in both forms")
    # Compares the SHA-256 of every file.
    read_files(bundle, manifest, whole=True)
    return f"{len(files)} files match their SHA-256"


def check_onnx(bundle: Path, networks: Sequence[str], features: NDArray[np.float64]) -> list[Check]:
    """Compare the answers of each network in ONNX and in Keras, over jobs of raw features (n, 9).

    The digest of a version vouches for what its export found; TensorFlow, which takes seconds to import, is asked
    where the ONNX file does not name its Keras file.
    """

    def difference(network: str) -> str:
        onnx, keras = (bundle / network / f"{network}.{kind}" for kind in ("onnx", "keras"))
        exported = InferenceSession(onnx, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
        if exported.get("keras_sha256") == hashlib.sha256(keras.read_bytes()).hexdigest():
            return f"differed by {exported.get('difference')} when it was exported"
        from calmlflow.networks.keras_file import load_network
        from calmlflow.networks.onnx import check_agreement

        own = bundle / network / "tx_data.json"
        scaling = Scaling.from_json((own if own.exists() else bundle / "tx_data.json").read_bytes())
        found = check_agreement(load_network(keras, network), onnx, scaling.apply(features))
        return f"differs by {found:.1g}"

    return [guarded(f"onnx.{network}", "as Keras answers", partial(difference, network)) for network in networks]


def probe_rows(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Small and large jobs of every kind: sizes of half and of twice what jobs (n, 9) of the same flags have."""
    # Within a factor of two a job is not told as unseen, see `calmlflow.predictor.decision.MAX_LOG_SIZE`.
    flags, kind = np.unique(features[:, 2:], axis=0, return_inverse=True)
    rows = []
    for number, of_kind in enumerate(flags):
        sizes = features[kind.ravel() == number, :2]
        corners = zip(np.maximum(sizes.min(axis=0) // 2, (1, 0)), sizes.max(axis=0) * 2, strict=True)
        rows += [[*corner, *of_kind] for corner in itertools.product(*corners)]
    return np.array(rows)


def check_serving(model_folder: Path, bundle: Path, networks: Sequence[str]) -> str:
    """See that MLflow serves a version by its signature, and that it answers its own example as the bundle does."""
    described = Model.load(str(model_folder))
    flavor, signature = described.flavors.get(FLAVOR_NAME, {}), described.signature
    code = Path(str(flavor.get(MODEL_CODE_PATH))).name
    if flavor.get(MAIN) != LOADER or code != SERVED.name or CONFIG_KEY_PYTHON_MODEL in flavor:
        raise InputError(
            f"MLmodel loads {flavor.get(CONFIG_KEY_PYTHON_MODEL, code)!r:.60} by {flavor.get(MAIN)!r:.60}; expected "
            f"the code {SERVED.name} by {LOADER}: no pickle is opened"
        )
    for side, found, expected in (
        ("inputs", signature and signature.inputs, (INPUTS, INPUTS_BEFORE)),
        ("outputs", signature and signature.outputs, (outputs_of(networks),)),
    ):
        if found is None or found not in expected:
            names = "none" if found is None else ", ".join(map(str, found.input_names() or ["unnamed"]))
            raise InputError(
                f"the signature's {side} are {names}; expected {', '.join(map(str, expected[0].input_names()))} with "
                "their types"
            )
    answers = _served_answers(model_folder)
    row = EXAMPLE.to_dict("records")[0]
    name = str(row["ipppssoot"])
    features = job_features(name, {str(key): value for key, value in row.items()})
    loaded = Bundle.load(bundle)
    direct = as_answers(loaded.predict([features], [name]), loaded.ladder)[0]
    if not isinstance(answers, dict) or list(answers) != list(direct):
        raise InputError(f"the served answer is {answers!r:.100}; expected {', '.join(direct)}")
    for key, value in direct.items():
        if len(answers[key]) != 1 or not _is_same(answers[key][0], value):
            raise InputError(f"the served {key} of the example is {answers[key]!r:.60}; expected [{value!r}]")
    return "signature and input example work"


def _is_same(served: object, direct: object) -> bool:
    if isinstance(direct, int | float | list) and direct and not isinstance(np.asarray(direct).flat[0], str):
        return np.allclose(np.asarray(served, float), np.asarray(direct, float))
    return served == direct


def _served_answers(model_folder: Path) -> object:
    # No credentials of the user's: none of the environment, and a home of its own.
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    own = {MLFLOW_ALLOW_PICKLE_DESERIALIZATION.name: "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory(prefix="calmlflow-home-") as home:
        try:
            done = subprocess.run(
                # Isolated: without what the environment or the folder would put on Python's path.
                [sys.executable, "-I", "-c", SERVE, str(model_folder)],
                env={**kept, **own, "HOME": home, "MLFLOW_TRACKING_URI": "sqlite://"},
                cwd=model_folder,
                capture_output=True,
                text=True,
                timeout=SERVING_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"mlflow.pyfunc did not answer in {SERVING_TIMEOUT_S} s; expected the example's"
            ) from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InputError(f"mlflow.pyfunc cannot answer the input example ({reason:.200}); expected an answer")
    return json.loads(lines[-1])
