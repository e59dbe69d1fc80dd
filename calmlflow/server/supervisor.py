"""Start, supervise and stop the server: an MLflow tracking server and, unless it is given another S3, an S3 store."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from calmlflow import console, settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import access, database, processes
from calmlflow.server.processes import EMBEDDED, Deployment
from calmlflow.storage.files import LockedError, is_locked, locked, replacing
from calmlflow.storage.s3 import S3Object, asking, new_client, parse_s3

# A first start on a slow disk compiles MLflow's bytecode and makes its database.
_READY_TIMEOUT_S = 180.0
# The first request makes or opens the database.
_TRIAL = "mlflow/experiments/get?experiment_id=0"


@dataclass(frozen=True)
class Server:
    """A running server: its ports, the process number of its supervisor, and the absolute folder of its data."""

    port: int
    s3_port: int
    pid: int
    home: Path
    deployment: Deployment = EMBEDDED

    @property
    def tracking_uri(self) -> str:
        return f"http://{self.deployment.address}:{self.port}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{settings.HOST}:{self.s3_port}"

    @property
    def artifacts(self) -> str:
        """Where the artifacts are, for people."""
        return f"S3 {self.deployment.artifacts_destination or self.s3_endpoint}"

    def ask(self, method: str, path: str, **body: Any) -> int:
        """HTTP status of a request to MLflow's API, by its admin where users log in; 0 where nobody answers."""
        headers = {"Content-Type": "application/json"}
        if self.deployment.auth:
            headers |= access.admin_headers(self.home)
        payload = json.dumps(body).encode() if body else b""
        path = f"/api/2.0/{path}"
        return processes.status_of(self.deployment.address, self.port, method, path, payload, headers)

    def check(self) -> dict[str, bool]:
        """Whether the database and the artifact store answer, each asked through MLflow."""
        return {
            "database": self.ask("GET", _TRIAL) == 200,
            "artifacts": self.ask("GET", "mlflow-artifacts/artifacts?path=0") == 200,
        }

    def environment(self) -> dict[str, str]:
        """Variables that point MLflow and boto3 at this server. They hold no secret."""
        if self.deployment.artifacts_destination:
            return {"MLFLOW_TRACKING_URI": self.tracking_uri}
        return {
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.home / "credentials"),
            "AWS_DEFAULT_REGION": processes.REGION,
        }


def running(home: str | Path | None = None) -> Server | None:
    """The server of a home folder (default `settings.home`); None where there is none, or none that is ready yet."""
    home = Path(home or settings.home()).resolve()
    is_ready = _read_state(home).get("ready") and is_locked(home / "server.lock")
    return last(home) if is_ready else None


def last(home: Path) -> Server | None:
    """The server that a home folder has or had; None where it never had one."""
    state = _read_state(home)
    if not state:
        return None
    return Server(state["port"], state["s3_port"], state["pid"], home, Deployment(**state.get("deployment", {})))


def start(
    port: int | None = None,
    s3_port: int | None = None,
    home: str | Path | None = None,
    deployment: Deployment = EMBEDDED,
) -> Server:
    """Start the server in the background, unless it runs already, and return when it is ready.

    Ports default to those of the home folder's last server: clients and notes know it by its address.
    """
    wanted = _prepare(port, s3_port, home, deployment)
    home = wanted.home
    log = home / "logs" / "server.log"
    daemon = None
    if not is_locked(home / "server.lock"):
        console.say(f"starting the MLflow server in {home}")
        words = [str(wanted.port), str(wanted.s3_port), str(home), json.dumps(asdict(deployment))]
        command = [sys.executable, "-m", "calmlflow.server.supervisor", *words]
        with log.open("ab") as out:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        while (server := running(home)) is None:
            # Where another supervisor was quicker than ours, it holds the lock.
            if (daemon is None or daemon.poll() is not None) and not is_locked(home / "server.lock"):
                raise CalmlflowError(f"the server did not start: {_end_of(log, 1).removeprefix('error: ')}")
            time.sleep(0.05)
    except KeyboardInterrupt:
        if daemon is not None:
            daemon.terminate()
        raise
    if replace(server, pid=wanted.pid) != wanted:
        raise CalmlflowError(
            f"the server of {home} already runs on {server.tracking_uri} ({server.artifacts}); expected ports "
            f"{wanted.port} and {wanted.s3_port} and the same options: stop it first, or choose another folder with "
            "CALMLFLOW_HOME"
        )
    return server


def stop(home: str | Path | None = None) -> bool:
    """Stop the server and wait until nothing of it runs; True where there was anything to stop."""
    home = Path(home or settings.home()).resolve()
    found = is_locked(home / "server.lock")
    for number, patience_s in ((signal.SIGTERM, 90.0), (signal.SIGKILL, 5.0)):
        if is_locked(home / "server.lock"):
            # A supervisor that has only just begun may not have written its number yet.
            processes.wait_until(lambda: _read_state(home).get("pid"), 5.0)
            pid = _read_state(home).get("pid")
            if pid is None:
                raise CalmlflowError(
                    f"a command works on the stopped server of {home}; expected a server that runs: wait for its end"
                )
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            processes.wait_until(lambda: not is_locked(home / "server.lock"), patience_s)
    return found


def serve(
    port: int | None = None,
    s3_port: int | None = None,
    home: str | Path | None = None,
    deployment: Deployment = EMBEDDED,
) -> None:
    """Run the server in the foreground until Ctrl-C or TERM, or until one of its processes ends, and stop all then.

    Ports as for `start`.

    This process is the supervisor: while it lives it holds a lock on the home folder, which tells that a server runs.
    """
    server = _prepare(port, s3_port, home, deployment)
    home = server.home
    with contextlib.ExitStack() as stack:
        try:
            # Patience for a look of another process, which holds the lock for a moment.
            stack.enter_context(locked(home / "server.lock", patience_s=1.0))
        except LockedError as error:
            raise CalmlflowError(f"a server of {home} runs already or starts; expected none: stop it first") from error
        _write_state(server, server.pid)
        stack.callback(_write_state, server, None)
        processes.require_free(server.port, "--port", deployment.host)
        database.check_schema(deployment.database_uri(home))
        if deployment.artifacts_destination:
            target = parse_s3(deployment.artifacts_destination)
            with asking(target, "listed", "a bucket that the AWS_* variables open"):
                new_client(attempts=2).list_objects_v2(Bucket=target.bucket, Prefix=target.key, MaxKeys=1)
        else:
            processes.require_free(server.s3_port, "--s3-port")
        if deployment.auth:
            prepare_auth(home, deployment)
        _run(server)


def upgrade(backend_store_uri: str = "", home: str | Path | None = None) -> Path | None:
    """Bring the database of a stopped server to the installed MLflow's schema; gives its backup, None if it has it.

    ``backend_store_uri`` is by default the one that the server of the home was last started with.
    """
    home = Path(home or settings.home()).resolve()
    kept = _read_state(home).get("deployment", {}).get("backend_store_uri", "")
    with stopped(home):
        return database.upgrade(Deployment(backend_store_uri or kept).database_uri(home), home / "backups")


@contextlib.contextmanager
def stopped(home: Path) -> Iterator[None]:
    """Let no server of a home start while the block runs; a CalmlflowError where one runs."""
    try:
        with locked(home / "server.lock", patience_s=1.0):
            if server := last(home):
                # The number that a killed server left may be another process's by now: `stop` must not signal it.
                _write_state(server, None)
            yield
    except LockedError as error:
        raise CalmlflowError(f"the server of {home} runs; expected none: run `calmlflow server stop` first") from error


def remember(home: Path, deployment: Deployment) -> None:
    """Let a home that holds the data of a server start no other one, see `stopped`."""
    _write_state(Server(settings.MLFLOW_PORT, settings.S3_PORT, 0, home, deployment), None, ready=True)


@contextlib.contextmanager
def held_store(home: Path) -> Iterator[tuple[Server, Any, S3Object]]:
    """The server that a home has or had, and its store as by `artifact_store`; where it is stopped, it stays so."""
    server = last(home)
    if server is None:
        raise CalmlflowError(f"no server was ever started in {home}; expected CALMLFLOW_HOME of one")
    with contextlib.nullcontext() if running(home) else stopped(home), artifact_store(server) as (client, root):
        yield server, client, root


@contextlib.contextmanager
def artifact_store(server: Server) -> Iterator[tuple[Any, S3Object]]:
    """Open the artifacts of a server: a client of S3, and the prefix of all keys, which is empty or ends in a slash.

    The embedded store of a server that does not run is started for the block; let nobody else start it, see `stopped`.
    """
    if given := server.deployment.artifacts_destination:
        target = parse_s3(given.rstrip("/"))
        yield new_client(), S3Object(target.bucket, f"{target.key}/" if target.key else "")
        return
    home, port, is_running = server.home, server.s3_port, running(server.home)
    credentials = processes.store_credentials(home)
    with contextlib.ExitStack() as stack:
        if not is_running:
            with socket.create_server((settings.HOST, 0)) as probe:
                port = probe.getsockname()[1]
            for folder in ("logs", "s3"):
                (home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            ports, log = processes.store_ports({port}), home / "logs" / "s3.log"
            environment = processes.environment(home, EMBEDDED, "")
            stack.callback(processes.remove_sockets, ports)
            process = processes.spawn(processes.store_command(port, ports), home, log, environment)
            stack.callback(processes.end, process)
            if not processes.wait_until(lambda: processes.store_is_ready(port, credentials), _READY_TIMEOUT_S):
                raise CalmlflowError(f"the S3 store did not answer; {log} ends with: {_end_of(log, 5)}")
        yield processes.store_client(port, credentials), S3Object(settings.ARTIFACT_BUCKET, "")


def prepare_auth(home: Path, deployment: Deployment) -> None:
    """Write the configuration of basic-auth, and show a new password of the admin, on a terminal alone."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = access.write_config(home, deployment.database_uri(home))
    if password:
        # Standard error of a service is a log.
        shown = f", password {password}" if sys.stderr.isatty() else ""
        console.say(f"user {access.ADMIN}{shown}: the password is in {home / 'auth.ini'}")


def _set_up(server: Server) -> None:
    """Make the experiment of the entry points, which two `mlflow run` at once would each try to make."""
    if server.ask("POST", "mlflow/experiments/create", name=settings.EXPERIMENT) == 401:
        console.say(f"warning: the database knows another password of {access.ADMIN} than {server.home / 'auth.ini'}")


def _run(server: Server) -> None:
    """Start the processes and end them at a signal or when one of them ends."""
    home = server.home
    # Collected, instead of acting on them at any point of the code.
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: signals.append(number))
    environment = processes.environment(home, server.deployment, server.s3_endpoint)
    commands = {}
    # MLflow first: it takes longer. One that knows another password of the admin's serves its users.
    answers = {"MLflow server": lambda: server.ask("GET", _TRIAL) in (200, *([401] if server.deployment.auth else []))}
    internal_ports: list[int] = []
    if not server.deployment.artifacts_destination:
        credentials = processes.store_credentials(home)
        internal_ports = processes.store_ports({server.port, server.s3_port})
        commands["S3 store"] = processes.store_command(server.s3_port, internal_ports)
        answers["S3 store"] = lambda: processes.store_is_ready(server.s3_port, credentials)
    commands["MLflow server"] = processes.mlflow_command(server.port, server.deployment.host)
    logs = {name: home / "logs" / f"{name.split()[0].lower()}.log" for name in commands}

    def fail(name: str, what: str) -> NoReturn:
        raise CalmlflowError(f"the {name} {what}; {logs[name]} ends with: {_end_of(logs[name], 5)}")

    began = time.monotonic()
    is_ready = False
    with contextlib.ExitStack() as stack:
        stack.callback(processes.remove_sockets, internal_ports)
        started = {}
        for name, command in commands.items():
            started[name] = processes.spawn(command, home, logs[name], environment)
            # In reverse order: what MLflow is still writing needs the store.
            stack.callback(processes.end, started[name])
        while not signals:
            ended = next((name for name, process in started.items() if process.poll() is not None), None)
            if ended:
                fail(ended, f"ended by itself with status {started[ended].returncode}")
            if not is_ready:
                silent = next((name for name, answer in answers.items() if not answer()), None)
                if silent is None:
                    is_ready = True
                    _set_up(server)
                    _write_state(server, server.pid, ready=True)
                    console.say(f"MLflow {server.tracking_uri}, {server.artifacts}: ready")
                elif time.monotonic() - began > _READY_TIMEOUT_S:
                    fail(silent, f"did not answer within {_READY_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        console.say("stopping")


def _end_of(log: Path, count: int) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _prepare(port: int | None, s3_port: int | None, home: str | Path | None, deployment: Deployment) -> Server:
    """The server to start, of this process, in a home folder that is there."""
    if deployment.host not in (settings.HOST, "localhost") and not deployment.auth:
        raise InputError(
            f"everybody could change what a server on {deployment.host} keeps; expected --auth with --host"
        )
    home = Path(home or settings.home()).resolve()
    last = _read_state(home)
    kept = asdict(EMBEDDED) | last.get("deployment", {})
    for name in ("backend_store_uri", "artifacts_destination", "auth"):
        if kept[name] and not getattr(deployment, name):
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"the last server of {home} had {option}{'' if name == 'auth' else f' {kept[name]}'}, and without it "
                "would show other data, or to everybody; expected that option, or another folder with CALMLFLOW_HOME"
            )
    port = port or last.get("port", settings.MLFLOW_PORT)
    s3_port = s3_port or last.get("s3_port", settings.S3_PORT)
    if port == s3_port:
        raise InputError(f"port and s3_port are both {port}; expected two different ports")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("logs", "s3"):
            (home / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise CalmlflowError(f"home folder {home}: {error.strerror}; expected a folder that can be written") from error
    return Server(port, s3_port, os.getpid(), home, deployment)


def _read_state(home: Path) -> dict:
    try:
        return json.loads((home / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_state(server: Server, pid: int | None, ready: bool = False) -> None:
    with replacing(server.home / "server.json", private=True) as file:
        # One that was never ready had no data.
        deployment = asdict(server.deployment) if ready else _read_state(server.home).get("deployment", {})
        state = {"pid": pid, "port": server.port, "s3_port": server.s3_port, "ready": ready, "deployment": deployment}
        json.dump(state, file)


if __name__ == "__main__":
    port, s3_port, home, deployment = sys.argv[1:]
    console.run_guarded(lambda: serve(int(port), int(s3_port), home, Deployment(**json.loads(deployment))))
