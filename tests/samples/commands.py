"""Commands as a user runs them: in a shell that has turned to a server, in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAST = str(ROOT / "tests" / "fast.json")


def environment(server, **more: str) -> dict[str, str]:
    """What a user's shell holds that has turned to the server; nothing of the test process's own MLflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "CALMLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    cache = str(server.home.parent / "cache")
    return {
        **kept,
        **server.environment(),
        "PATH": path,
        "CALMLFLOW_CACHE": cache,
        # Two busy cores are no slow registry.
        "CALMLFLOW_TIMEOUT": "30",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }


def run(server, *command: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(server, **more), capture_output=True, text=True, timeout=300
    )


def mlflow_run(server, entry: str, **parameters: object) -> subprocess.CompletedProcess[str]:
    given = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    options = f"-e {entry} --env-manager local --experiment-name calcloud".split()
    return run(server, "mlflow", "run", str(ROOT), *options, *given)


def client(server):
    from mlflow import MlflowClient

    return MlflowClient(server.tracking_uri, server.tracking_uri)


def runs_named(server, name: str) -> list:
    """Runs of that name in the experiment of the entry points, newest first."""
    api = client(server)
    experiment = api.get_experiment_by_name("calcloud")
    return api.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")


def processes_of(home: Path, word: str = "") -> dict[int, str]:
    """Process -> command line of everything that works in a server's home and whose command line holds a word."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cwd").resolve() == home:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {pid: command for pid, command in found.items() if word in command}


@contextlib.contextmanager
def stopped(home: Path, word: str) -> Iterator[None]:
    """Processes that hang for a while: connections are taken, and nothing is said."""
    hanging = processes_of(home, word)
    assert hanging
    try:
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in hanging:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the block, whatever happens there."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
