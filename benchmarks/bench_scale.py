"""`make bench-scale`: seconds and memory of training's reading, prediction and ingest at 10^5, 10^6 and 10^7 jobs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from benchmarks.bench_jobs import READ
from benchmarks.bench_predict import published
from benchmarks.figures import Figure, show
from benchmarks.growth import fit_networks
from calmlflow.console import say, script
from calmlflow.jobs.copy import copy
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.config import read_config
from calmlflow.runs.data import load_training_data
from calmlflow.runs.train import TrainingRequest
from calmlflow.storage.tables import new_table

COUNTS = (10**5, 10**6, 10**7)
WORKERS = 2
DRAWN = 500_000

PREDICT = f"""
import resource, sys, time
from pathlib import Path
from calmlflow.runs.predict import predict_parts
began = time.perf_counter()
outcome = predict_parts(sys.argv[1], Path(sys.argv[2]), "Production", {WORKERS})
seconds = time.perf_counter() - began
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000, outcome.answered)
"""


def write_jobs(path: Path, jobs: int) -> None:
    """Jobs of the sample, drawn by the half million, each draw with visits of its own; two in a hundred ran before."""
    size = min(jobs, DRAWN)
    schema = pa.Schema.from_pandas(draw_sample(1), preserve_index=False)
    with new_table(path, schema.set(0, pa.field("ipst", pa.string()))) as writer:
        for seed in range(jobs // size):
            drawn = draw_sample(size, seed, 0.02)
            letters = drawn["ipst"].to_numpy(dtype="U9").view("U1").reshape(-1, 9).copy()
            letters[:, 6] = chr(ord("a") + seed)
            drawn["ipst"] = letters.view("U9")[:, 0]
            for batch in pa.Table.from_pandas(drawn, preserve_index=False).to_batches():
                writer.write(batch.cast(schema.set(0, pa.field("ipst", pa.string()))))


def measured(code: str, *arguments: str) -> tuple[float, float, float]:
    """Seconds, peak memory in MB and jobs of a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, peak_mb, jobs = map(float, done.stdout.split())
    return seconds, peak_mb, jobs


def measure_crossval(table: Path, folder: Path) -> dict[str, float]:
    """Seconds of one fold: the three networks, fitted as each fold of `crossval` fits them."""
    data = load_training_data(str(table), 0, 0.1)
    fit = fit_networks(data, TrainingRequest(data=str(table)), folder)[1]
    epochs = fit.epochs + sum(config.refit_epochs for config in read_config("default").values())
    return {
        "fold_s": fit.total_seconds,
        "fit_s": fit.fit_seconds,
        "epochs": epochs,
        "ns_per_job_and_epoch": 1e9 * fit.fit_seconds / epochs / fit.train_jobs,
        "us_per_row_and_epoch": 1e6 * fit.fit_seconds / epochs / fit.distinct_rows,
    }


def main(output: str = "out/bench-scale.json") -> None:
    load = [os.getloadavg()[0]]
    figures, more = [], {}
    with published(), tempfile.TemporaryDirectory(prefix="bench-scale-") as temporary:
        folder = Path(temporary)
        tables = {jobs: folder / f"{jobs}.parquet" for jobs in COUNTS}
        for jobs, table in tables.items():
            say(f"{jobs:,} jobs")
            write_jobs(table, jobs)
            read = measured(READ, str(table))
            answered = measured(PREDICT, str(table), str(folder / f"answers-{jobs}"))
            more[str(jobs)] = {"table_mb": table.stat().st_size / 1e6, "read": read, "predict": answered}
            say(f"{more[str(jobs)]}")
            figures += [
                Figure(f"{jobs:,} records into training, s", read[0], "<=", 40),
                Figure("the same, peak memory, MB", read[1], "<=", 3000),
                Figure(f"{jobs:,} jobs, Parquet to Parquet, {WORKERS} workers, s", answered[0], "<=", 30),
            ]
        say("SQLite")
        began = time.perf_counter()
        copy(str(tables[COUNTS[0]]), f"sqlite:///{folder}/jobs.db")
        seconds = time.perf_counter() - began
        size_mb = (folder / "jobs.db").stat().st_size / 1e6
        more["sqlite"] = {"records_per_s": COUNTS[0] / seconds, "mb": size_mb}
        say(f"{more['sqlite']}")
        for jobs in COUNTS[:2]:
            (folder / f"models-{jobs}").mkdir()
            more[str(jobs)]["crossval"] = measure_crossval(tables[jobs], folder / f"models-{jobs}")
            say(f"{more[str(jobs)]['crossval']}")
    load.append(os.getloadavg()[0])
    show(figures, load, output, more)


if __name__ == "__main__":
    script(main)
