"""A bundle becomes a registered version: logged from code, with signature and example; registered all or none."""

import contextlib
import hashlib
import io
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

import calmlflow
from calmlflow.errors import InputError
from calmlflow.hst.features import OPTIONAL_KEYS
from calmlflow.predictor.bundle import ANSWER_KEYS, TABLE_OF_NETWORK
from calmlflow.predictor.manifest import MANIFEST, OWN_TABLES, write_manifest
from calmlflow.registry.lineage import Lineage

log = logging.getLogger(__name__)

INPUTS = Schema(
    [
        ColSpec(DataType.string, "ipppssoot"),
        ColSpec(DataType.long, "n_files"),
        ColSpec(DataType.double, "total_mb"),
        *(ColSpec(DataType.string, key, required=False) for key in OPTIONAL_KEYS),
    ]
)

OUTPUTS: dict[str, DataType | Array] = {
    "memBin": DataType.long,
    "probabilities": Array(DataType.double),
    "unseen": DataType.boolean,
    "memVal": DataType.double,
    "clockTime": DataType.long,
    "killTime": DataType.long,
}

NEEDS = ("mlflow-skinny", "numpy", "onnxruntime", "pandas")
"""Packages of the environment that MLflow builds for a model. The first has MLflow's scoring server and all that this
server needs, and leaves out what only a tracking server does: scikit-learn, SQLAlchemy, Flask, pyarrow and others."""

OPTIONAL_TABLES = ("decision.json", "seen_rows.json")
"""What networks that were trained elsewhere do not have."""

EXAMPLE = pd.DataFrame(
    [
        {
            "ipppssoot": "j8c601020",
            "n_files": 17,
            "total_mb": 9.6,
            "DETECTOR": "SBC",
            "SUBARRAY": "False",
            "DRIZCORR": "PERFORM",
            "PCTECORR": "OMIT",
            "CRSPLIT": "NaN",
        }
    ]
)


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run holds and the registry does not know yet.

    Attributes
    ----------
    uri : str
    bundle_sha256 : str
        Of its ``bundle.json``, which lists the SHA-256 of every other file: one number for all of them.
    networks : tuple of str
    """

    uri: str
    bundle_sha256: str
    networks: tuple[str, ...]


def write_bundle(models: Path, networks: Sequence[str], folder: Path) -> Path:
    """Copy networks of a training's ``models`` folder into a bundle of their own and list its files."""
    wanted = [table for network, table in TABLE_OF_NETWORK.items() if network in networks]
    wanted += [table for table in OWN_TABLES if not all((models / name / table).exists() for name in networks)]
    for part in (*networks, *wanted):
        if not (models / part).exists() and part not in OPTIONAL_TABLES:
            raise InputError(
                f"{models} holds no {part}; expected the models folder of a training of {', '.join(networks)}"
            )
    folder.mkdir(parents=True)
    for network in networks:
        shutil.copytree(models / network, folder / network)
    for table in wanted:
        if (models / table).exists():
            shutil.copy(models / table, folder)
    write_manifest(folder)
    return folder


def log_model(models: Path, networks: Sequence[str], name: str, metadata: Mapping[str, Any]) -> LoggedModel:
    """Log networks of a training as one pyfunc model of the active run.

    Parameters
    ----------
    models : Path
        ``models`` folder of a training.
    networks : list of str
        One, or all three for a bundle.
    name : str
        Name of the logged model.
    metadata : mapping
        Kept in the ``MLmodel`` file.
    """
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(OUTPUTS[key], key) for network in networks for key in ANSWER_KEYS[network]
    ]
    with tempfile.TemporaryDirectory() as temporary:
        bundle = write_bundle(models, networks, Path(temporary) / "bundle")
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"bundle": str(bundle)},
            code_paths=[_source_copy(Path(temporary))],
            signature=ModelSignature(INPUTS, Schema(outputs)),
            input_example=EXAMPLE,
            pip_requirements=[f"{package}=={version(package)}" for package in NEEDS],
            metadata=dict(metadata),
        )
        return LoggedModel(
            logged.model_uri, hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest(), tuple(networks)
        )


def _source_copy(folder: Path) -> str:
    """The package's sources without compiled files, so that equal code gives equal artifacts."""
    target = folder / "calmlflow"
    shutil.copytree(Path(calmlflow.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    return str(target)


def register(models: Mapping[str, LoggedModel], lineage: Lineage) -> dict[str, int]:
    """Register logged models, all or none.

    Parameters
    ----------
    models : mapping
        Registered model -> logged model.
    lineage : Lineage
        Each version gets its tags for the networks it holds, and ``bundle_sha256``.

    Returns
    -------
    dict
        Registered model -> new version.
    """
    client = MlflowClient()
    created: dict[str, int] = {}
    try:
        for name, model in models.items():
            tags = {**lineage.tags(model.networks), "bundle_sha256": model.bundle_sha256}
            # MLflow announces each version on standard error; the caller's summary does.
            with contextlib.redirect_stderr(io.StringIO()):
                found = mlflow.register_model(model.uri, name, tags=tags)
            created[name] = int(found.version)
    except BaseException:
        for name, number in created.items():
            try:
                client.delete_model_version(name, str(number))
            except Exception:
                log.warning("version %s of %s was registered without the others and could not be deleted", number, name)
        raise
    return created
