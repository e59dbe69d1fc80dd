"""A Dask scheduler and workers, as processes of this machine."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from calmlflow.server.processes import wait_until


class Cluster:
    """Its processes may be killed by whoever tests; workers may be added."""

    def __init__(self, folder: Path, ending: ExitStack, environment: dict[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self._folder, self._ending, self._environment = folder, ending, environment
        self.scheduler = self._start("scheduler", "--port", str(port), "--dashboard-address", "127.0.0.1:0")
        self.workers = [self.add_worker() for _ in range(2)]
        assert wait_until(lambda: self.log("scheduler").count("Register worker") == 2, 60)

    def add_worker(self) -> subprocess.Popen:
        """Without its nanny, which would start another in its place."""
        return self._start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def _start(self, *words: str) -> subprocess.Popen:
        with (self._folder / f"{words[0]}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1"],
                cwd=self._folder, env={**(self._environment or os.environ), "PYTHONPATH": str(Path.cwd())},
                stdout=log, stderr=log,
            )  # fmt: skip

        def end() -> None:
            process.send_signal(signal.SIGKILL)
            process.wait(30)

        self._ending.callback(end)
        return process


@contextmanager
def dask_cluster(folder: Path, environment: dict[str, str] | None = None) -> Iterator[Cluster]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ending:
        yield Cluster(folder, ending, environment)
