"""Runs at a server that goes, comes back, or is not ours: what is said, and what becomes of the run."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from mlflow import MlflowClient

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.tracking import connect, noting, open_experiment, tracked_run
from tests.conftest import free_ports
from tests.registry.conftest import NUMBERS
from tests.samples.console_command import run_here


class Passing:
    """A TCP port that passes everything on to a server, until it is cut."""

    def __init__(self, port: int, own: int):
        self.port, self.own = port, own
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        code = f"""
import asyncio

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def pass_on(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", {self.port})
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(pass_on, "127.0.0.1", {self.own})
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert self.process.stdout.readline()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def passing(tracking, monkeypatch, tmp_path):
    """The server behind a port that a test may cut and open again."""
    found = Passing(tracking.port, free_ports(1)[0])
    found.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{found.own}")
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path / "home"))
    # What `connect` sets is taken back at the end.
    for name, value in {"MAX_RETRIES": "3", "BACKOFF_FACTOR": "1", "BACKOFF_JITTER": "0"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"tracking-test-{next(NUMBERS)}")
    yield found
    found.stop()


def test_a_server_that_goes_is_one_sentence_and_the_next_command_marks_the_run(passing, tracking, tmp_path):
    words = rf"127.0.0.1:{passing.own} stopped answering; expected it .*, and all is kept in X: .* run \w+ as FAILED"
    with (
        pytest.raises(CalmlflowError, match=words),
        tracked_run("outer") as outer,
        noting("all is kept in X"),
        tracked_run("inner", nested=True) as inner,
    ):
        passing.stop()
        mlflow.log_metric("a", 1)
    direct = MlflowClient(tracking.tracking_uri)
    runs = [outer.info.run_id, inner.info.run_id]
    assert [direct.get_run(run).info.status for run in runs] == ["RUNNING", "RUNNING"]
    assert mlflow.active_run() is None
    passing.start()
    connect()
    assert [direct.get_run(run).info.status for run in runs] == ["FAILED", "FAILED"]
    assert list((tmp_path / "home" / "unfinished-runs").iterdir()) == []


def test_a_server_that_is_gone_before_a_run_below_is_made_is_told_by_the_run_above(passing):
    with (
        pytest.raises(CalmlflowError, match="stopped answering; expected it until the end, and all is kept in X: "),
        tracked_run("outer"),
        noting("all is kept in X"),
    ):
        passing.stop()
        with tracked_run("inner", nested=True):
            pass
    passing.start()


def test_a_run_that_is_taken_over_without_a_server_is_marked_by_the_next_command(passing, tracking, monkeypatch):
    direct = MlflowClient(tracking.tracking_uri)
    run = direct.create_run(direct.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    passing.stop()
    with pytest.raises(CalmlflowError, match="no MLflow server answers"), tracked_run("x"):
        pass
    assert direct.get_run(run).info.status == "RUNNING"
    passing.start()
    connect()
    assert direct.get_run(run).info.status == "FAILED"


def test_a_server_that_comes_back_in_time_costs_nothing(passing, tracking):
    with tracked_run("patient") as run, ThreadPoolExecutor(1) as later:
        passing.stop()
        back = later.submit(lambda: (time.sleep(1), passing.start()))
        mlflow.log_metric("a", 1)
        back.result()
    found = MlflowClient(tracking.tracking_uri).get_run(run.info.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"a": 1})


def test_mlflow_is_patient_for_a_minute_unless_the_user_says_otherwise(tracking, monkeypatch):
    names = [f"MLFLOW_HTTP_REQUEST_{name}" for name in ("MAX_RETRIES", "BACKOFF_FACTOR", "BACKOFF_JITTER", "TIMEOUT")]
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(names[3], "7")
    connect()
    retries, factor, jitter, timeout = (int(os.environ[name]) for name in names)
    # As urllib3 waits: not before the first retry, and twice as long before each that follows.
    assert sum(factor * 2**n for n in range(1, retries)) == 60
    assert (jitter, timeout) == (0, 7)


def test_an_experiment_that_is_there_is_no_error(tracking, monkeypatch):
    name = f"tracking-test-{next(NUMBERS)}"
    client, real = MlflowClient(), MlflowClient.get_experiment_by_name
    asked = []

    def late(self, name):
        # Both processes look before either has made it.
        asked.append(name)
        return None if len(asked) <= 2 else real(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert open_experiment(client, name) == open_experiment(client, name)


def test_the_embedded_server_begins_with_the_experiment_of_the_entry_points(tracking):
    assert MlflowClient().get_experiment_by_name(settings.EXPERIMENT)


def test_a_deleted_experiment_is_named(tracking, monkeypatch):
    name = f"tracking-test-{next(NUMBERS)}"
    client = MlflowClient()
    client.delete_experiment(client.create_experiment(name))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with pytest.raises(CalmlflowError, match=f"experiment {name} is deleted; expected .*restore"), tracked_run("x"):
        pass


@pytest.mark.parametrize(
    "command",
    [("rollback", "--reason", "x"), ("promote",), ("stages",), ("stages", "--repair"), ("diff", "1", "2")],
)
def test_no_command_turns_to_a_server_that_nobody_named(tracking, monkeypatch, tmp_path, capsys, command):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_HOME", str(tmp_path))
    # Another checkout's server; this folder's own ran there once, and has ended.
    (tmp_path / "server.json").write_text(f'{{"port": {tracking.port}, "ready": true}}')
    (tmp_path / "server.lock").touch()
    status, out, err = run_here(capsys, *command)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: no MLflow server is named and none runs in {tmp_path}; expected MLFLOW_TRACKING_URI")
    assert len(err.splitlines()) == 1


def test_the_embedded_server_of_the_folder_needs_no_name(tracking, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_HOME", str(tracking.home))
    connect()
    assert mlflow.get_tracking_uri() == tracking.tracking_uri


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_a_line_end_in_an_address_is_named(tracking, monkeypatch, name):
    monkeypatch.setenv(name, f"{tracking.tracking_uri}\r")
    with pytest.raises(InputError, match=rf"variable {name} is .*\\r'; expected an address without blanks"):
        connect(registry_only=True)
