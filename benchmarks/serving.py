"""Requests per second of `mlflow models serve`: the version in Production, and a model that looks at nothing."""

import http.client
import itertools
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow import settings
from calmlflow.console import script
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.sample import draw_sample
from calmlflow.server.processes import wait_until

CONCURRENCY = 8
JOBS = 20_000
ROUND_S = 1.0
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0


@contextmanager
def serving(
    model: str, port: int, environment: Mapping[str, str], options: Sequence[str], folder: Path
) -> Iterator[None]:
    """`mlflow models serve` in a process group of its own, which has ended when the block has.

    Parameters
    ----------
    model : str
        URI, or a model's folder.
    port : int
    environment : mapping
        All environment variables; ``mlflow`` is looked for along its ``PATH``.
    options : list of str
        Of the command, such as ``--env-manager local``.
    folder : Path
        Where the command runs, and leaves ``serve-PORT.log``.
    """
    command = ["mlflow", "models", "serve", "-m", model, "-h", settings.HOST, "-p", str(port), *options]
    with running(command, port, environment, folder):
        yield


@contextmanager
def running(command: Sequence[str], port: int, environment: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Any command that starts MLflow's scoring server on a port, see `serving`."""
    path = folder / f"serve-{port}.log"
    with path.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(port), START_TIMEOUT_S)
        if process.poll() is not None or not _answers(port):
            raise CalmlflowError(f"{' '.join(command)} does not answer; expected 200 from /ping: {path.read_text()}")
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    # The command goes before the server that it started. All of them hold the other end of this pipe, and to have
    # nobody there is an error, which poll tells unasked.
    everybody = select.poll()
    everybody.register(process.stdin, 0)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if everybody.poll(1000 * STOP_TIMEOUT_S):
            break
    process.wait()
    process.stdin.close()


def _answers(port: int) -> bool:
    with closing(http.client.HTTPConnection(settings.HOST, port, timeout=5)) as connection:
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def ask(connection: http.client.HTTPConnection, body: bytes) -> None:
    """One request, answered."""
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise CalmlflowError(f"the scoring server refuses jobs of the sample: {content.decode()}")


def requests_per_s(port: int, bodies: Iterator[bytes], seconds: float) -> float:
    """Ask for some seconds, with `CONCURRENCY` clients that each keep their connection and ask anew once answered."""
    deadline = time.perf_counter() + seconds

    def client(_: int) -> int:
        answered = 0
        with closing(http.client.HTTPConnection(settings.HOST, port, timeout=60)) as connection:
            while time.perf_counter() < deadline:
                ask(connection, next(bodies))
                answered += 1
        return answered

    began = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENCY) as clients:
        answered = sum(clients.map(client, range(CONCURRENCY)))
    return answered / (time.perf_counter() - began)


def in_turns(ports: Sequence[int], bodies: Sequence[bytes], seconds: float) -> list[list[float]]:
    """Requests per second of each server, by round; in turns, because the clients need the processors too."""
    # Not a generator: threads share it.
    asked = {port: itertools.cycle(bodies) for port in ports}
    for port in ports:
        requests_per_s(port, asked[port], ROUND_S)
    rounds = []
    for number in range(max(1, round(seconds / ROUND_S))):
        # Neither is always the one that comes after the other.
        order = ports if number % 2 == 0 else ports[::-1]
        found = {port: requests_per_s(port, asked[port], ROUND_S) for port in order}
        rounds.append([found[port] for port in ports])
    return rounds


def requests_for(jobs: pd.DataFrame, size: int = 1) -> list[bytes]:
    """Requests for so many jobs each, with the control file's keys."""
    keys = pd.DataFrame(
        {
            "ipppssoot": jobs.ipst,
            "n_files": jobs.n_files.astype(int),
            "total_mb": jobs.total_mb,
            "DETECTOR": np.where(jobs.detector == 1, "WFC", "HRC"),
            "SUBARRAY": np.where(jobs.subarray == 1, "True", "False"),
            "DRIZCORR": np.where(jobs.drizcorr == 1, "PERFORM", "OMIT"),
            "PCTECORR": np.where(jobs.pctecorr == 1, "PERFORM", "OMIT"),
            "CRSPLIT": np.array(["NaN", "1.0", "2.0"])[jobs.crsplit.astype(int)],
        }
    )
    columns = list(keys)
    rows = keys.to_numpy(dtype=object).tolist()
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [json.dumps({"dataframe_split": {"columns": columns, "data": part}}).encode() for part in parts]


def measure_serving(tracking_uri: str, seconds: float = 20.0) -> dict[str, float]:
    """Serve the version in Production and a constant with the same signature, and ask both in turns.

    Each is served by one worker and asked for one job at a time, drawn like the jobs of the archive: of those, most
    have features that others had before, so both are told as many jobs beforehand. And then, half as long, for jobs
    that each have features of their own.

    Parameters
    ----------
    tracking_uri : str
        Server whose registry holds the version.
    seconds : float
        How long each of the two is asked, in turns of one second.

    Returns
    -------
    dict
        ``requests_per_s``, ``constant_requests_per_s``, their ``ratio``, and ``ratio_new_features``; all medians of
        the turns.
    """
    import mlflow

    from calmlflow.registry.package import EXAMPLE

    mlflow.set_tracking_uri(tracking_uri)
    model = f"models:/{settings.BUNDLE_MODEL}/Production"
    drawn = draw_sample(2 * JOBS)
    earlier, jobs = drawn[:JOBS], drawn[JOBS:]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    options = ["--env-manager", "local", "--workers", "1"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mlflow.pyfunc.save_model(
            path=str(folder / "constant"),
            python_model=str(Path(__file__).with_name("constant_model.py")),
            signature=mlflow.models.get_model_info(model).signature,
            input_example=EXAMPLE,
            pip_requirements=["mlflow"],
        )
        ports = _free_ports()
        with (
            serving(model, ports[0], environment, options, folder),
            serving(str(folder / "constant"), ports[1], environment, options, folder),
        ):
            for port in ports:
                ask(http.client.HTTPConnection(settings.HOST, port), *requests_for(earlier, JOBS))
            usual = in_turns(ports, requests_for(jobs), seconds)
            new = in_turns(ports, requests_for(jobs.assign(total_mb=np.arange(JOBS))), seconds / 2)
    ours, theirs = (statistics.median(column) for column in zip(*usual, strict=True))
    return {
        "requests_per_s": ours,
        "constant_requests_per_s": theirs,
        "ratio": statistics.median(one / other for one, other in usual),
        "ratio_new_features": statistics.median(one / other for one, other in new),
    }


def _free_ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind((settings.HOST, 0))
        return [probe.getsockname()[1] for probe in (one, other)]


def main(seconds: float = 20.0) -> None:
    """Print how many requests per second the version in Production answers, and the constant."""
    for name, value in measure_serving(settings.tracking_uri(), seconds).items():
        print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    script(main)
