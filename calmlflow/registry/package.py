"""Package networks as MLflow models, log them and register them."""

import ast
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
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Object, Property

import calmlflow
from calmlflow.errors import InputError
from calmlflow.hst.features import OPTIONAL_KEYS
from calmlflow.hst.ladder import LADDER_FILE
from calmlflow.predictor.answers import COUNTED
from calmlflow.predictor.bundle import ANSWER_KEYS, COMMON_KEYS, TABLE_OF_NETWORK
from calmlflow.predictor.evidence import FOLDER as EVIDENCE
from calmlflow.predictor.manifest import MANIFEST, OWN_TABLES, write_manifest
from calmlflow.registry.lineage import Lineage

log = logging.getLogger(__name__)

SERVED = Path(__file__).with_name("served.py")

INPUTS = Schema(
    [
        ColSpec(DataType.string, "ipppssoot"),
        # A whole number has no gaps in MLflow, which would refuse them in words of its own, and cut off fractions.
        ColSpec(DataType.double, "n_files"),
        ColSpec(DataType.double, "total_mb"),
        *(ColSpec(DataType.string, key, required=False) for key in OPTIONAL_KEYS),
    ]
)

# Of versions that are there: n_files was a long.
INPUTS_BEFORE = Schema([ColSpec(DataType.long, spec.name) if spec.name == "n_files" else spec for spec in INPUTS])

OUTPUTS: dict[str, DataType | Array | Object] = {
    "memBin": DataType.long,
    "probabilities": Array(DataType.double),
    "unseen": DataType.boolean,
    "memVal": DataType.double,
    "clockTime": DataType.long,
    "killTime": DataType.long,
    "evidence": Object([Property(level, DataType.long) for level in COUNTED]),
    "warnings": Array(DataType.string),
}

NEEDS = ("mlflow-skinny", "numpy", "onnxruntime", "pandas")
"""Packages of the environment that MLflow builds for a model; the first is MLflow without its tracking server."""

OPTIONAL_TABLES = ("decision.json", "seen_rows.json", LADDER_FILE)
"""What networks that were trained elsewhere do not have; `write_manifest` adds the ladder."""

EXAMPLE = pd.DataFrame(
    [["j8c601020", 17.0, 9.6, "SBC", "False", "PERFORM", "OMIT", "NaN"]],
    columns=["ipppssoot", "n_files", "total_mb", "DETECTOR", "SUBARRAY", "DRIZCORR", "PCTECORR", "CRSPLIT"],
)


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run holds and the registry does not know yet."""

    uri: str
    model_sha256: str  # of all its files, see `model_digest`
    bundle_sha256: str  # of its bundle.json, which lists the SHA-256 of every other file of the bundle
    networks: tuple[str, ...]


def write_bundle(models: Path, networks: Sequence[str], folder: Path) -> Path:
    """Copy networks of a training's ``models`` folder into a bundle of their own and list its files."""
    wanted = [table for network, table in TABLE_OF_NETWORK.items() if network in networks]
    wanted += [table for table in OWN_TABLES if not all((models / name / table).exists() for name in networks)]
    wanted.append(LADDER_FILE)
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
    if (models / EVIDENCE).is_dir():
        shutil.copytree(models / EVIDENCE, folder / EVIDENCE)
    write_manifest(folder)
    return folder


def log_model(models: Path, networks: Sequence[str], name: str, metadata: Mapping[str, Any]) -> LoggedModel:
    """Log networks (one, or all three for a bundle) of a training's ``models`` folder as a pyfunc of the active run.

    The ``MLmodel`` file keeps the metadata.
    """
    run = mlflow.active_run()
    assert run is not None  # noqa: S101 - a caller without a run is a bug
    run_id, client = run.info.run_id, MlflowClient()
    run_data = client.get_run(run_id).data
    # What `mlflow.pyfunc.log_model` does, with the digest of the files, and without a request for each metric.
    logged = mlflow.initialize_logged_model(name, source_run_id=run_id, params=run_data.params)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        bundle = write_bundle(models, networks, Path(temporary) / "bundle")
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVED),
            artifacts={"bundle": str(bundle)},
            code_paths=[str(_copy_sources(Path(temporary)))],
            signature=ModelSignature(INPUTS, outputs_of(networks)),
            input_example=EXAMPLE,
            pip_requirements=[f"{package}=={version(package)}" for package in NEEDS],
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata=dict(metadata),
            ),
        )
        for compiled in folder.rglob("__pycache__"):
            shutil.rmtree(compiled)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        # With their own times and steps: otherwise each would be one more point of the run's curve.
        metrics = [
            Metric(one.key, one.value, one.timestamp, one.step, logged.model_id, run_id=run_id)
            for one in run_data._metric_objs
        ]
        client.log_batch(run_id, metrics=metrics)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        bundle_sha256 = hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()
        return LoggedModel(f"models:/{logged.model_id}", model_digest(folder), bundle_sha256, tuple(networks))


def outputs_of(networks: Sequence[str]) -> Schema:
    """Columns of the answer that these networks give."""
    keys = [key for network in networks for key in ANSWER_KEYS[network]]
    return Schema([ColSpec(OUTPUTS[key], key) for key in (*keys, *COMMON_KEYS)])


def model_digest(folder: Path) -> str:
    """SHA-256 of all files of a model's folder, with their names: what runs or is read when the model serves."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # MLflow adds a note of its own to what it downloads.
        if path.is_file() and name != REGISTERED_MODEL_META_FILE_NAME:
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _copy_sources(folder: Path) -> Path:
    """Copy the modules of the package that serving imports, and nothing else: each file is uploaded by itself."""
    package = Path(calmlflow.__file__).parent
    for module in sorted(_imported_by(SERVED, package)):
        target = folder / module.relative_to(package.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
    return folder / package.name


def _imported_by(source: Path, package: Path) -> set[Path]:
    """Files of a package that a module imports when it is imported itself, directly or not."""
    found: set[Path] = set()
    sources = [source]
    while sources:
        names = set()
        for node in ast.parse(sources.pop().read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        for name in names:
            parts = name.split(".")
            for path in (package.parent.joinpath(*parts[: n + 1]) for n in range(len(parts))):
                for file in (path.with_suffix(".py"), path / "__init__.py"):
                    if parts[0] == package.name and file.is_file() and file not in found:
                        found.add(file)
                        sources.append(file)
    return found


def register(models: Mapping[str, LoggedModel], lineage: Lineage) -> dict[str, int]:
    """Register logged models, by the name of the registered model, all or none; gives the new version of each.

    Tags of a version: the lineage of the networks it holds, ``model_sha256`` and ``bundle_sha256``.
    """
    client = MlflowClient()
    created: dict[str, int] = {}
    try:
        for name, model in models.items():
            digests = {"model_sha256": model.model_sha256, "bundle_sha256": model.bundle_sha256}
            tags = {**lineage.tags(model.networks), **digests}
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
