"""`make bench-predict`: how long an answer takes, cold, warm, by the million and over HTTP; ratios within one run."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, show
from calmlflow import settings
from calmlflow.console import say, script
from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import job_features
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor import Predictor
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import DEFAULT_STRENGTH, FOLDER, Evidence, Finished, build_evidence
from calmlflow.predictor.manifest import MANIFEST, write_manifest
from calmlflow.server import supervisor as embedded

ROOT = Path(__file__).parent.parent
JOB = "j8c601020"
CONTROL_FILE = ROOT / "examples" / "j8c601020_MemModelFeatures.txt"
PORTS = 5617, 8737

DATASETS, MANY_DATASETS = 50_000, 1_000_000
COLD_ROUNDS = 9
WARM_ANSWERS = 20_000
KERAS_ROUNDS = 30
THREADS = 64
CHANGES = 50


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds that a new process takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def measure_cold(folder: Path) -> list[Figure]:
    """A new `calmlflow predict`, from the version on disk and from images with and without evidence, in turns."""
    predict = [str(Path(sys.executable).parent / "calmlflow"), "predict", JOB, "--control", str(CONTROL_FILE)]
    usual = dict(os.environ)
    in_image = {name: value for name, value in usual.items() if not name.startswith("MLFLOW_")}
    in_image["CALMLFLOW_HOME"] = str(folder / "nowhere")
    commands = [
        (predict, usual),
        ([sys.executable, "-c", "import tensorflow"], usual),
        (predict, in_image | {"CALMLFLOW_BUNDLE": str(image(folder, "with", Predictor().serving.bundle.evidence))}),
        (predict, in_image | {"CALMLFLOW_BUNDLE": str(image(folder, "without", None))}),
    ]
    for command in commands:
        timed(*command)
    rounds = [[timed(*command) for command in commands] for _ in range(COLD_ROUNDS)]
    ours, tensorflow, *_ = (statistics.median(column) for column in zip(*rounds, strict=True))
    more = statistics.median(with_evidence - without for *_, with_evidence, without in rounds)
    return [
        Figure("cold answer, s", ours, "<=", 0.4),
        Figure("cold answer / import tensorflow", ours / tensorflow, "<=", 1 / 12),
        Figure(f"cold answer, more with {DATASETS:,} datasets of evidence, ms", 1000 * more, "<=", 15),
    ]


def image(folder: Path, name: str, evidence: Evidence | None) -> Path:
    """A copy of the bundle that the cache holds, with other evidence, as an image carries it."""
    held = next((folder / "cache").rglob(MANIFEST)).parent
    shutil.copytree(held, folder / name, ignore=shutil.ignore_patterns(FOLDER))
    for file, content in (evidence.files() if evidence else {}).items():
        (folder / name / file).parent.mkdir(exist_ok=True)
        (folder / name / file).write_bytes(content)
    write_manifest(folder / name)
    (folder / name / "version.json").write_text('{"version": "1"}')
    return folder / name


def measure_warm(folder: Path) -> list[Figure]:
    """One answer in a running process, and three Keras `predict` calls on the same version's networks."""
    from mlflow.artifacts import download_artifacts

    predictor = Predictor()
    jobs = draw_sample(DATASETS).sample(1_000, random_state=0)
    keys = [{"n_files": n_files, "total_mb": mb} for n_files, mb in zip(jobs.n_files, jobs.total_mb, strict=True)]
    asked = list(islice(cycle(zip(jobs.ipst, keys, strict=True)), WARM_ANSWERS))
    # The networks' answer to equal features is kept; here every job has features of its own.
    different = [(JOB, {"n_files": 17, "total_mb": number}) for number in range(WARM_ANSWERS)]
    usual, first = (_milliseconds(predictor, some) for some in (asked, different))
    ours, slowest = np.quantile(first, [0.5, 0.99])

    with tempfile.TemporaryDirectory() as place:
        download_artifacts(f"models:/{settings.BUNDLE_MODEL}/{predictor.serving.version}", dst_path=place)
        import keras

        networks = [keras.saving.load_model(path, compile=False) for path in sorted(Path(place).rglob("*.keras"))]
    row = np.asarray([job_features(*asked[0])], dtype=np.float32)
    seconds = []
    for _ in range(KERAS_ROUNDS + 1):
        began = time.perf_counter()
        for network in networks:
            network.predict(row, verbose=0)
        seconds.append(time.perf_counter() - began)
    theirs = 1000 * statistics.median(seconds[1:])

    evidence = build_evidence(
        Finished.of(draw_sample(MANY_DATASETS)), DEFAULT_STRENGTH, np.zeros((len(INSTRUMENTS), 2))
    )
    megabytes = sum(map(len, evidence.files().values())) / 1e6
    predictor.serving = replace(predictor.serving, bundle=Bundle.load(image(folder, "many", evidence)))
    many = [_milliseconds(predictor, some) for some in (asked, different)]
    return [
        Figure("answer, new features, ms, median", ours, "<=", 0.2),
        Figure("answer, new features, ms, 99th percentile", slowest, "<=", 1.0),
        Figure("answer, features asked before, ms, median", float(np.median(usual)), "<=", 0.2),
        Figure(f"{len(networks)} Keras predict calls / answer, new features", theirs / ours, ">=", 300),
        Figure(f"evidence of {MANY_DATASETS:,} datasets, MB", megabytes, "<=", 40),
        Figure("the same, answer, new features, ms, median", float(np.median(many[1])), "<=", 0.3),
        Figure("the same, answer, features asked before, ms, median", float(np.median(many[0])), "<=", 0.3),
    ]


def _milliseconds(predictor: Predictor, jobs: list[tuple[str, dict]]) -> list[float]:
    """Of each answer, but for the first ones."""
    found = []
    for name, keys in jobs:
        began = time.perf_counter()
        predictor.predict(name, keys)
        found.append(1000 * (time.perf_counter() - began))
    return found[200:]


def measure_changes() -> list[Figure]:
    """Threads on one Predictor while the version in Production changes: errors, and answers that no version gives."""
    from mlflow import MlflowClient

    client = MlflowClient()
    versions = sorted(client.search_model_versions(f"name='{settings.BUNDLE_MODEL}'"), key=lambda one: int(one.version))
    numbers = [one.version for one in versions[-2:]]
    keys = {"n_files": 17, "total_mb": 9.6}
    expected = {}
    for number in numbers:
        client.transition_model_version_stage(settings.BUNDLE_MODEL, number, "Production", True)
        expected[number] = {**Predictor().predict(JOB, keys), "source": None}
    predictor = Predictor(refresh=0)
    over = threading.Event()
    wrong, answers = [0], [0]
    seen: set[str] = set()

    def ask() -> None:
        # A breath between two answers: Python runs one thread at a time, and another one changes stages.
        while not over.wait(0.002):
            try:
                answer = predictor.predict(JOB, keys)
                seen.add(answer["version"])
                if {**answer, "source": None} != expected[answer["version"]]:
                    wrong[0] += 1
            except Exception:
                wrong[0] += 1
            answers[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for change in range(CHANGES):
        client.transition_model_version_stage(settings.BUNDLE_MODEL, numbers[change % 2], "Production", True)
    over.set()
    for thread in threads:
        thread.join()
    say(f"{answers[0]:,} answers of {THREADS} threads while the version changed {CHANGES} times")
    return [
        Figure("errors and mixed answers", wrong[0], "<=", 0),
        Figure("versions that answered", len(seen), ">=", 2),
    ]


@contextmanager
def published() -> Iterator[Path]:
    """An embedded server of its own with two trainings of the sample, the first in Production; gives a folder."""
    with tempfile.TemporaryDirectory() as name, _environment():
        folder = Path(name)
        server = embedded.start(*PORTS, folder / "home")
        try:
            os.environ.update(server.environment())
            os.environ.update(CALMLFLOW_CACHE=str(folder / "cache"), MLFLOW_DISABLE_TELEMETRY="true")
            os.environ.update(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", PYTHONWARNINGS="ignore")
            warnings.simplefilter("ignore", FutureWarning)
            bin_folder = Path(sys.executable).parent
            path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
            for seed, jobs in enumerate((DATASETS, 5_000)):
                say(f"training, {jobs:,} jobs")
                parameters = (f"data=sample:{jobs}", f"seed={seed}", f"output={folder / 'data'}")
                command = [str(bin_folder / "mlflow"), "run", str(ROOT), "--env-manager", "local"]
                command += [word for parameter in parameters for word in ("-P", parameter)]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
            from mlflow import MlflowClient

            MlflowClient().transition_model_version_stage(settings.BUNDLE_MODEL, "1", "Production")
            yield folder
        finally:
            embedded.stop(folder / "home")


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(output: str = "out/bench-predict.json") -> None:
    """Measure the predictor; print what was to reach and what was, and write it as JSON."""
    from benchmarks.many_jobs import measure_many
    from benchmarks.serving import measure_serving

    load = [os.getloadavg()[0]]
    with published() as folder:
        say("a new process")
        figures = measure_cold(folder)
        say("a running process")
        figures += measure_warm(folder)
        say("a million jobs")
        many = measure_many(folder)
        figures += [
            Figure("1,000,000 jobs, Parquet to Parquet, s", many["seconds"], "<=", 5),
            Figure("1,000,000 jobs, peak memory, MB", many["peak_mb"], "<=", 1000),
        ]
        say("mlflow models serve")
        serving = measure_serving(settings.tracking_uri())
        figures.append(Figure("requests/s over those of a constant", serving["ratio"], ">=", 0.9))
        say(f"jobs of features that were never asked for: {serving['ratio_new_features']:.2f} of the constant's")
        say("changing versions")
        figures += measure_changes()
        shutil.rmtree(folder / "data")
    load.append(os.getloadavg()[0])
    show(figures, load, output, {"many": many, "serving": serving})


if __name__ == "__main__":
    script(main)
