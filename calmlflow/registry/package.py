"""A bundle becomes a registered version: logged from code, with signature and example; registered all or none."""

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
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
from calmlflow.hst.errors import InputError
from calmlflow.hst.features import OPTIONAL_KEYS
from calmlflow.predictor.bundle import ANSWER_KEYS, write_manifest

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


def write_bundle(models: Path, networks: Sequence[str], folder: Path) -> Path:
    """Copy networks of a training's ``models`` folder into a bundle of their own and list its files."""
    tables = ["tx_data.json", "seen_rows.json"]
    tables += ["decision.json"] if "mem_clf" in networks else []
    tables += ["killtime.json"] if "wall_reg" in networks else []
    for part in (*networks, *tables):
        if not (models / part).exists():
            raise InputError(
                f"{models} holds no {part}; expected the models folder of a training of {', '.join(networks)}"
            )
    folder.mkdir(parents=True)
    for network in networks:
        shutil.copytree(models / network, folder / network)
    for table in tables:
        shutil.copy(models / table, folder)
    write_manifest(folder)
    return folder


def log_model(models: Path, networks: Sequence[str], name: str, metadata: Mapping[str, Any]) -> str:
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

    Returns
    -------
    str
        URI of the logged model.
    """
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(OUTPUTS[key], key) for network in networks for key in ANSWER_KEYS[network]
    ]
    with tempfile.TemporaryDirectory() as temporary:
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"bundle": str(write_bundle(models, networks, Path(temporary) / "bundle"))},
            code_paths=[_source_copy(Path(temporary))],
            signature=ModelSignature(INPUTS, Schema(outputs)),
            input_example=EXAMPLE,
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("mlflow", "numpy", "onnxruntime", "pandas")
            ],
            metadata=dict(metadata),
        ).model_uri


def _source_copy(folder: Path) -> str:
    """The package's sources without compiled files, so that equal code gives equal artifacts."""
    target = folder / "calmlflow"
    shutil.copytree(Path(calmlflow.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    return str(target)


def register(models: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, int]:
    """Register logged models, all or none.

    Parameters
    ----------
    models : mapping
        Registered model -> URI of a logged model.
    tags : mapping
        Put on every version.

    Returns
    -------
    dict
        Registered model -> new version.
    """
    client = MlflowClient()
    created: dict[str, int] = {}
    try:
        for name, uri in models.items():
            # MLflow announces each version on standard error; the caller's summary does.
            with contextlib.redirect_stderr(io.StringIO()):
                found = mlflow.register_model(uri, name, tags=dict(tags))
            created[name] = int(found.version)
    except BaseException:
        for name, number in created.items():
            try:
                client.delete_model_version(name, str(number))
            except Exception:
                log.warning("version %s of %s was registered without the others and could not be deleted", number, name)
        raise
    return created
