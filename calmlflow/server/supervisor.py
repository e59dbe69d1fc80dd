"""The embedded server: an S3 store and an MLflow tracking server on this machine, started and stopped together.

A supervisor process starts both and holds a lock on the home folder while it lives; the lock, not a process number,
tells whether a server runs. Everything listens on the loopback address only.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from calmlflow import console, settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import lock as server_lock
from calmlflow.server import ports
from calmlflow.server import processes as parts

# A first start on a slow disk compiles MLflow's bytecode and makes its database.
_READY_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 40.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes
    ----------
    tracking_uri, s3_endpoint : str
        ``http://`` addresses.
    credentials_file : Path
        Shared-credentials file of the S3 store, profile ``default``.
    pid : int
        The supervisor.
    home : Path
        Folder of the data, absolute.
    """

    tracking_uri: str
    s3_endpoint: str
    credentials_file: Path
    pid: int
    home: Path

    @property
    def ports(self) -> tuple[int, int]:
        """Ports of MLflow and of S3."""
        mlflow, s3 = (int(address.rpartition(":")[2]) for address in (self.tracking_uri, self.s3_endpoint))
        return mlflow, s3

    def environment(self) -> dict[str, str]:
        """Variables that point MLflow and boto3 at this server. They hold no secret."""
        return {
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_S3_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.credentials_file),
            "AWS_DEFAULT_REGION": parts.REGION,
        }


def running(home: str | Path | None = None) -> Server | None:
    """Tell the server of a home folder; None where there is none, or none that is ready yet.

    Parameters
    ----------
    home : str or Path, optional
        Default `settings.home`.
    """
    home = _resolve(home)
    state = _read_state(home)
    return _server(home, state) if server_lock.is_held(home) and state.get("ready") else None


def start(port: int = settings.MLFLOW_PORT, s3_port: int = settings.S3_PORT, home: str | Path | None = None) -> Server:
    """Start the server in the background and return when it is ready; one that already runs is returned as it is.

    Parameters
    ----------
    port, s3_port : int
        Ports of MLflow and of the S3 store.
    home : str or Path, optional
        Folder of the data and of the logs. Default `settings.home`.

    Raises
    ------
    CalmlflowError
        It did not start (the reason, or the last lines of the log), or it already runs on other ports.
    """
    home = _prepare(port, s3_port, home)
    log = home / "logs" / "server.log"
    with log.open("ab") as output, log.open(encoding="utf-8", errors="replace") as told:
        told.seek(0, os.SEEK_END)
        daemon = None
        if not server_lock.is_held(home):
            command = [sys.executable, "-m", "calmlflow.server.supervisor", str(port), str(s3_port), str(home)]
            daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        server = _await_ready(home, daemon, told.read)
    if (server.tracking_uri, server.s3_endpoint) != (_address(port), _address(s3_port)):
        raise CalmlflowError(
            f"the server of {home} already runs on {server.tracking_uri} (S3 store {server.s3_endpoint}); expected "
            f"ports {port} and {s3_port}: stop it first, or choose another folder with CALMLFLOW_HOME"
        )
    return server


def stop(home: str | Path | None = None) -> bool:
    """Stop the server and wait until nothing of it runs; True where there was anything to stop."""
    home = _resolve(home)
    if not (home / "server.lock").exists():
        return False
    found = server_lock.is_held(home)
    if found:
        # A supervisor that has only just begun may not have written its number yet.
        parts.wait_until(lambda: _read_state(home).get("pid") or not server_lock.is_held(home), 5.0)
        for number, patience_s in ((signal.SIGTERM, _STOP_TIMEOUT_S), (signal.SIGKILL, 5.0)):
            pid = _read_state(home).get("pid")
            if pid and server_lock.is_held(home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if parts.wait_until(lambda: not server_lock.is_held(home), patience_s):
                break
    with server_lock.hold(home):
        return parts.end_leftovers(home) or found


def serve(port: int = settings.MLFLOW_PORT, s3_port: int = settings.S3_PORT, home: str | Path | None = None) -> None:
    """Run the server in the foreground until Ctrl-C or TERM, then stop it, leaving no process behind.

    Parameters
    ----------
    port, s3_port, home
        As for `start`.

    Raises
    ------
    CalmlflowError
        A server of this home runs already, a port is in use, SeaweedFS is not installed, or one of the two processes
        ended by itself (the other is stopped then).
    """
    home = _prepare(port, s3_port, home)
    with server_lock.hold(home), _stop_signals() as signals:
        before = _read_state(home).get("internal_ports", ())
        state: dict = {"pid": os.getpid(), "port": port, "s3_port": s3_port, "internal_ports": before}
        try:
            _write_state(home, state)
            parts.end_leftovers(home)
            ports.require_free(port, "--port")
            ports.require_free(s3_port, "--s3-port")
            state["internal_ports"] = ports.store_ports({port, s3_port}, before)
            _run(home, state, signals)
        finally:
            ports.remove_sockets(state["internal_ports"])
            _write_state(home, state | {"pid": None})


def _run(home: Path, state: dict, signals: list[int]) -> None:
    """Start both processes, tell when they are ready, and end them at a signal or when one of them ends."""
    server = _server(home, state)
    credentials = parts.store_credentials(home)
    environment = parts.parts_environment(home, server.s3_endpoint)
    logs = {"S3 store": home / "logs" / "s3.log", "MLflow server": home / "logs" / "mlflow.log"}
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def fail(name: str, what: str) -> NoReturn:
        lines = logs[name].read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise CalmlflowError(f"the {name} {what}; the last lines of {logs[name]}: {' | '.join(lines) or '(none)'}")

    def go_on() -> bool:
        for name, process in processes.items():
            if (status := process.poll()) is not None:
                fail(name, f"ended by itself with status {status}")
        return not signals

    def await_part(name: str, is_ready: Callable[[], bool]) -> None:
        if not parts.wait_until(lambda: not go_on() or is_ready(), _READY_TIMEOUT_S):
            fail(name, f"did not answer within {_READY_TIMEOUT_S:.0f} s")

    began = time.monotonic()
    try:
        store = parts.store_command(state["s3_port"], state["internal_ports"])
        # The store also reads settings from the user's home folder; those are not meant for this one.
        store_environment = environment | {"HOME": str(home)}
        processes["S3 store"] = parts.spawn(store, home, logs["S3 store"], store_environment)
        mlflow = parts.mlflow_command(state["port"])
        processes["MLflow server"] = parts.spawn(mlflow, home, logs["MLflow server"], environment)
        console.say(f"starting the S3 store and the MLflow server in {home}")
        await_part("S3 store", lambda: parts.store_is_ready(state["s3_port"], credentials))
        await_part("MLflow server", lambda: parts.mlflow_is_ready(state["port"]))
        if go_on():
            _write_state(home, state | {"ready": True})
            console.say(f"S3 store {server.s3_endpoint}, credentials in {server.credentials_file}")
            console.say(f"MLflow {server.tracking_uri}, ready after {time.monotonic() - began:.1f} s")
        while go_on():
            time.sleep(0.1)
        console.say("stopping")
    finally:
        # MLflow first: what it is still writing needs the store.
        for process in reversed(processes.values()):
            parts.end(process)


def _await_ready(home: Path, daemon: subprocess.Popen[bytes] | None, told: Callable[[], str]) -> Server:
    """Wait for the server of `start`, passing on what its supervisor tells."""
    last = "it was stopped while it started"
    try:
        while (server := running(home)) is None:
            ended = daemon is None or daemon.poll() is not None
            # Ended and not locked: had another supervisor been quicker than ours, it would hold the lock.
            gone = ended and not server_lock.is_held(home)
            for line in told().splitlines():
                last = line
                if not line.startswith("error: "):
                    console.say(line)
            if gone:
                raise CalmlflowError(f"the server did not start: {last.removeprefix('error: ')}")
            time.sleep(0.1)
    except KeyboardInterrupt:
        if daemon is not None:
            daemon.terminate()
        raise
    return server


# -- Home folder ----------------------------------------------------------------------------------------------------


def _resolve(home: str | Path | None) -> Path:
    return Path(home or settings.home()).resolve()


def _prepare(port: int, s3_port: int, home: str | Path | None) -> Path:
    """Check the ports, make the folders, and return the absolute home folder."""
    for name, number in (("port", port), ("s3_port", s3_port)):
        if not 1 <= number <= 65_535:
            raise InputError(f"{name} is {number}; expected 1 to 65535")
    if port == s3_port:
        raise InputError(f"port and s3_port are both {port}; expected two different ports")
    home = _resolve(home)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("logs", "s3"):
            (home / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise CalmlflowError(f"home folder {home}: {error.strerror}; expected a folder that can be written") from None
    return home


def _address(port: int) -> str:
    return f"http://{settings.HOST}:{port}"


def _server(home: Path, state: dict) -> Server:
    return Server(
        tracking_uri=_address(state["port"]),
        s3_endpoint=_address(state["s3_port"]),
        credentials_file=home / "credentials",
        pid=state["pid"],
        home=home,
    )


def _read_state(home: Path) -> dict:
    try:
        state = json.loads((home / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(home: Path, state: dict) -> None:
    parts.write_private(home / "server.json", json.dumps(state))


# -- Signals --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop, instead of acting on them at any point of the code."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    console.run_guarded(lambda: serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
