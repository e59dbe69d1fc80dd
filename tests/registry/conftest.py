"""Registered models of a test's own, and versions with real files."""

import itertools
import shutil
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from mlflow import MlflowClient

from calmlflow.registry.package import model_digest
from calmlflow.registry.versions import read_state
from tests.conftest import turned_to

NUMBERS = itertools.count()
SOURCE = "s3://calcloud-artifacts/of-a-test"
"""Where no files are."""


class Files(NamedTuple):
    """Where the files of a version are, the run that logged them, and their digest."""

    source: str
    run_id: str
    digest: str


def log_files(folder: Path, jobs: Path | None = None) -> Files:
    """Log a folder as the files of a version, of a run with these training jobs."""
    with mlflow.start_run() as run:
        if jobs:
            mlflow.log_artifact(str(jobs), "data")
        mlflow.log_artifacts(str(folder), "model")
        return Files(mlflow.get_artifact_uri("model"), run.info.run_id, model_digest(folder))


@pytest.fixture
def client(tracking) -> MlflowClient:
    mlflow.set_experiment("registry-test")
    return MlflowClient()


@pytest.fixture
def model(client) -> str:
    """A registered model of this test's own, without versions."""
    name = f"registry-test-{next(NUMBERS)}"
    client.create_registered_model(name)
    return name


@pytest.fixture(scope="session")
def files(server, tmp_path_factory) -> Files:
    """Small files of a version."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "MLmodel").write_text("of a test")
    with turned_to(server):
        mlflow.set_experiment("registry-test")
        return log_files(folder)


@pytest.fixture
def four(client, model, files) -> str:
    """A registered model with four versions that a rollback may go back to."""
    for _ in range(4):
        tags = {"model_sha256": files.digest}
        client.create_model_version(model, files.source, files.run_id, tags, await_creation_for=0)
    return model


def add(client, model, count=1, **more) -> None:
    """Versions without files."""
    for _ in range(count):
        client.create_model_version(model, SOURCE, await_creation_for=0, **more)


def stages(model: str) -> dict[int, str]:
    """Version -> stage, of those that have one."""
    return {version: stage for version, stage in read_state(model).stages.items() if stage != "None"}


@pytest.fixture(scope="session")
def downloaded(trained, server, tmp_path_factory) -> Path:
    """The folder of the session's version."""
    folder = tmp_path_factory.mktemp("version")
    with turned_to(server):
        return Path(mlflow.artifacts.download_artifacts("models:/calcloud-predictor/1", dst_path=str(folder)))


@pytest.fixture
def copy(downloaded, tmp_path) -> Path:
    """A copy of the version's folder that a test may spoil."""
    return shutil.copytree(downloaded, tmp_path / "model")
