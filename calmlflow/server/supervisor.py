"""Start, supervise and stop the embedded server: an S3 store and an MLflow tracking server on this machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from calmlflow import console, settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import processes
from calmlflow.storage.files import LockedError, is_locked, locked, replacing

# A first start on a slow disk compiles MLflow's bytecode and makes its database.
_READY_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Server:
    """A running server: its ports, the process number of its supervisor, and the absolute folder of its data."""

    port: int
    s3_port: int
    pid: int
    home: Path

    @property
    def tracking_uri(self) -> str:
        return f"http://{settings.HOST}:{self.port}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{settings.HOST}:{self.s3_port}"

    def environment(self) -> dict[str, str]:
        """Variables that point MLflow and boto3 at this server. They hold no secret."""
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
    state = _read_state(home)
    is_ready = state.get("ready") and is_locked(home / "server.lock")
    return Server(state["port"], state["s3_port"], state["pid"], home) if is_ready else None


def start(port: int | None = None, s3_port: int | None = None, home: str | Path | None = None) -> Server:
    """Start the server in the background, unless it runs already, and return when it is ready.

    Ports default to those of the home folder's last server: clients and notes know it by its address.
    """
    port, s3_port, home = _prepare(port, s3_port, home)
    log = home / "logs" / "server.log"
    daemon = None
    if not is_locked(home / "server.lock"):
        console.say(f"starting the S3 store and the MLflow server in {home}")
        command = [sys.executable, "-m", "calmlflow.server.supervisor", str(port), str(s3_port), str(home)]
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
    if (server.port, server.s3_port) != (port, s3_port):
        raise CalmlflowError(
            f"the server of {home} already runs on {server.tracking_uri} (S3 store {server.s3_endpoint}); expected "
            f"ports {port} and {s3_port}: stop it first, or choose another folder with CALMLFLOW_HOME"
        )
    return server


def stop(home: str | Path | None = None) -> bool:
    """Stop the server and wait until nothing of it runs; True where there was anything to stop."""
    home = Path(home or settings.home()).resolve()
    found = is_locked(home / "server.lock")
    for number, patience_s in ((signal.SIGTERM, 40.0), (signal.SIGKILL, 5.0)):
        if is_locked(home / "server.lock"):
            # A supervisor that has only just begun may not have written its number yet.
            processes.wait_until(lambda: _read_state(home).get("pid"), 5.0)
            with contextlib.suppress(ProcessLookupError, KeyError):
                os.kill(_read_state(home)["pid"], number)
            processes.wait_until(lambda: not is_locked(home / "server.lock"), patience_s)
    return found


def serve(port: int | None = None, s3_port: int | None = None, home: str | Path | None = None) -> None:
    """Run the server in the foreground until Ctrl-C or TERM, or until one of its processes ends, and stop all then.

    Ports as for `start`.

    This process is the supervisor: while it lives it holds a lock on the home folder, which tells that a server runs.
    """
    port, s3_port, home = _prepare(port, s3_port, home)
    server = Server(port, s3_port, os.getpid(), home)
    with contextlib.ExitStack() as stack:
        try:
            # Patience for a look of another process, which holds the lock for a moment.
            stack.enter_context(locked(home / "server.lock", patience_s=1.0))
        except LockedError as error:
            raise CalmlflowError(f"a server of {home} runs already or starts; expected none: stop it first") from error
        _write_state(server, server.pid)
        stack.callback(_write_state, server, None)
        processes.require_free(port, "--port")
        processes.require_free(s3_port, "--s3-port")
        _run(server)


def _run(server: Server) -> None:
    """Start both processes and end them at a signal or when one of them ends."""
    home = server.home
    # Collected, instead of acting on them at any point of the code.
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: signals.append(number))
    credentials = processes.store_credentials(home)
    environment = processes.environment(home, server.s3_endpoint)
    internal_ports = processes.store_ports({server.port, server.s3_port})
    commands = {
        "S3 store": processes.store_command(server.s3_port, internal_ports),
        "MLflow server": processes.mlflow_command(server.port),
    }
    # MLflow first: it takes longer.
    answers = {
        "MLflow server": lambda: processes.mlflow_is_ready(server.port),
        "S3 store": lambda: processes.store_is_ready(server.s3_port, credentials),
    }
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
                    processes.make_experiment(server.port)
                    _write_state(server, server.pid, ready=True)
                    console.say(f"MLflow {server.tracking_uri}, S3 store {server.s3_endpoint}: ready")
                elif time.monotonic() - began > _READY_TIMEOUT_S:
                    fail(silent, f"did not answer within {_READY_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        console.say("stopping")


def _end_of(log: Path, count: int) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _prepare(port: int | None, s3_port: int | None, home: str | Path | None) -> tuple[int, int, Path]:
    home = Path(home or settings.home()).resolve()
    last = _read_state(home)
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
    return port, s3_port, home


def _read_state(home: Path) -> dict:
    try:
        return json.loads((home / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_state(server: Server, pid: int | None, ready: bool = False) -> None:
    with replacing(server.home / "server.json", private=True) as file:
        json.dump({"pid": pid, "port": server.port, "s3_port": server.s3_port, "ready": ready}, file)


if __name__ == "__main__":
    console.run_guarded(lambda: serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
