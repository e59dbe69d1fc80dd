"""Garbage is found by what is deleted or old, and nothing that a version which stays refers to is touched."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from calmlflow import settings
from calmlflow.registry import garbage, overview
from calmlflow.registry.promote import promote, roll_back
from calmlflow.registry.versions import read_state
from tests.registry.conftest import log_files
from tests.samples.console_command import run_here

MONTH_MS = 31 * 86_400_000


class Home:
    """The home of the test run's server, with a model of this project that nobody else has."""

    def __init__(self, server, model, tmp_path):
        self.server, self.model, self.tmp_path, self.api = server, model, tmp_path, MlflowClient()

    def version(self, text="of a test", **tags) -> int:
        """A version with files of its own."""
        folder = self.tmp_path / os.urandom(4).hex()
        folder.mkdir()
        (folder / "MLmodel").write_text(text)
        files = log_files(folder)
        tags = {"model_sha256": files.digest, **tags}
        made = self.api.create_model_version(self.model, files.source, files.run_id, tags, await_creation_for=0)
        return int(made.version)

    def age(self) -> None:
        """Let all that is there be a month old."""
        with closing(sqlite3.connect(self.server.home / "mlflow.db", timeout=30)) as base, base:
            base.execute("UPDATE model_versions SET creation_time = creation_time - ?", (MONTH_MS,))
            base.execute(
                "UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - ?", (MONTH_MS,)
            )
            base.execute("UPDATE runs SET deleted_time = deleted_time - ? WHERE deleted_time IS NOT NULL", (MONTH_MS,))

    def has_files(self, number: int) -> bool:
        source = self.api.get_model_version(self.model, str(number)).source
        return bool(mlflow.artifacts.list_artifacts(source))


@pytest.fixture
def home(server, client, model, tmp_path, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_HOME", str(server.home))
    monkeypatch.setattr(garbage, "BUNDLE_MODEL", model)
    # Those of other tests count as another project's.
    monkeypatch.setattr(garbage, "NETWORK_MODELS", {})
    yield Home(server, model, tmp_path)
    # For the next test this would be another project's, with parts of a bundle.
    client.delete_registered_model(model)


def collect(capsys, *words) -> dict[str, tuple[int, int]]:
    """Name -> files and bytes."""
    status, out, err = run_here(capsys, "server", "gc", *words)
    assert status == 0, err
    found = {name: (int(files), int(size)) for name, files, size in (line.split("\t") for line in out.splitlines())}
    files, size = (sum(figures[i] for figures in found.values()) for i in (0, 1))
    assert err == f"{'' if '--delete' in words else 'nothing '}removed" + (
        f"{'' if '--delete' in words else '; --delete would remove'}: {files:,} files, {size:,} bytes\n"
    )
    return found


def of(found, home) -> set[int]:
    return {int(name.split()[1]) for name in found if name.endswith(f"of {home.model}")}


def test_old_versions_go_and_those_that_something_refers_to_stay(home, capsys):
    for _ in range(8):
        home.version()
    home.version(**{"part.mem_clf": "version 2"})  # 9
    for number in (3, 4, 5, 6):
        promote(read_state(home.model), number, "Production")
    home.api.set_registered_model_alias(home.model, "reference", "1")
    assert of(collect(capsys, "--keep", "1"), home) == set()
    home.age()
    # 6 is in Production, 5 archived with the alias of that and the next of the way back, 9 the newest and of part 2, 3
    # the reference of the gate.
    found = collect(capsys, "--keep", "1")
    assert of(found, home) == {4, 7, 8}
    assert found[f"version 7 of {home.model}"] == (1, len("of a test"))
    assert all(home.has_files(number) for number in range(1, 10))
    assert of(collect(capsys, "--keep", "1", "--delete"), home) == {4, 7, 8}
    assert [number for number in range(1, 10) if not home.has_files(number)] == [4, 7, 8]
    assert collect(capsys, "--keep", "1", "--delete") == {}
    # The marks and the way back are right afterwards.
    assert overview.gone_files(read_state(home.model)) == {4}
    assert roll_back(home.model, None, "a test").version == 5


def test_a_version_that_is_promoted_while_others_are_removed_stays(home, capsys, monkeypatch):
    for _ in range(4):
        home.version()
    home.age()
    remove = garbage._remove

    def slowly(*words):
        remove(*words)
        if read_state(home.model).stages[2] == "None":
            promote(read_state(home.model), 2, "Production")
            home.api.set_registered_model_alias(home.model, "reference", "3")

    monkeypatch.setattr(garbage, "_remove", slowly)
    assert of(collect(capsys, "--keep", "1", "--delete"), home) == {1}
    assert [number for number in range(1, 5) if not home.has_files(number)] == [1]


def test_the_way_back_counts_versions_whose_files_are_there(home, capsys):
    for number in range(1, 6):
        home.version()
        promote(read_state(home.model), number, "Production")
    home.version()
    home.api.delete_registered_model_alias(home.model, "archived")
    home.age()
    source = home.api.get_model_version(home.model, "4").source
    get_artifact_repository(source).delete_artifacts()
    assert of(collect(capsys, "--keep", "1", "--delete"), home) == {2}
    assert roll_back(home.model, None, "a test").version == 3


def test_deleted_runs_go_with_their_models_but_not_those_that_a_bundle_names(home, capsys):
    def trained() -> tuple[str, str]:
        with mlflow.start_run() as run:
            mlflow.log_text("seventeen datasets", "notes.txt")
            model = mlflow.initialize_logged_model("m", source_run_id=run.info.run_id)
            home.api.log_model_artifact(model.model_id, __file__)
        return run.info.run_id, model.model_id

    (gone, model), (named, its_model), (lately, _), (active, _) = trained(), trained(), trained(), trained()
    home.version(**{"run.mem_reg": named})
    for run in (gone, named):
        home.api.delete_run(run)
    home.age()
    home.api.delete_run(lately)
    found = collect(capsys)
    assert found[f"run {gone}"] == (1, len("seventeen datasets"))
    assert found[f"model {model}"] == (1, Path(__file__).stat().st_size)
    assert not {f"run {named}", f"model {its_model}", f"run {lately}", f"run {active}"} & set(found)
    assert home.api.get_run(gone).info.lifecycle_stage == "deleted"
    collect(capsys, "--delete")
    with pytest.raises(mlflow.MlflowException, match="not found"):
        home.api.get_run(gone)
    with pytest.raises(mlflow.MlflowException, match="not found"):
        home.api.get_logged_model(model)
    for run in (named, lately, active):
        assert (
            mlflow.artifacts.load_text(f"{home.api.get_run(run).info.artifact_uri}/notes.txt") == "seventeen datasets"
        )


def test_files_of_a_run_that_another_version_has_and_places_of_many_runs_stay(home, client, capsys):
    number = home.version()
    made = home.api.get_model_version(home.model, str(number))
    bucket, place = f"s3://{settings.ARTIFACT_BUCKET}", made.source.removeprefix("mlflow-artifacts:/")
    other = f"{home.model}-of-another-project"
    client.create_registered_model(other)
    client.create_model_version(other, f"{bucket}/{place}", await_creation_for=0)
    # A wrong source must not take the files of all runs along.
    experiment = client.create_experiment(f"{home.model}-experiment")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("seventeen datasets", "notes.txt")
    client.create_model_version(home.model, f"{bucket}/{experiment}", await_creation_for=0)
    model = mlflow.initialize_logged_model("m")
    client.log_model_artifact(model.model_id, __file__)
    location = model.artifact_location.removeprefix("mlflow-artifacts:/")
    client.create_model_version(other, f"{bucket}/{location}", await_creation_for=0)
    home.version()
    client.delete_run(made.run_id)
    client.delete_logged_model(model.model_id)
    home.age()
    found = collect(capsys, "--keep", "1", "--delete")
    assert of(found, home) == set()
    assert not {f"run {made.run_id}", f"model {model.model_id}"} & set(found)
    assert home.has_files(number)
    assert client.list_artifacts(run.info.run_id)


def test_a_home_without_a_server_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path))
    status, _, err = run_here(capsys, "server", "gc")
    assert (status, err) == (1, f"error: no server was ever started in {tmp_path}; expected CALMLFLOW_HOME of one\n")
