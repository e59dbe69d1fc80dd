"""The predictor against a real server that hangs, a disk that is full, and two hundred others."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from calmlflow import settings
from calmlflow.hst.features import job_features
from calmlflow.predictor import Bundle
from calmlflow.predictor.answers import as_answers
from tests.conftest import free_ports, turned_to
from tests.samples.commands import ROOT, environment, stopped
from tests.samples.predictor_samples import NETWORKS, write_bundle

pytestmark = pytest.mark.slow

JOB = "j8c601020"
CONTROL_FILE = ROOT / "examples" / "j8c601020_MemModelFeatures.txt"
CALMLFLOW = str(Path(sys.executable).parent / "calmlflow")


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator:
    """A server that may be hurt, with versions 1 to 3 registered; gives the server and what each version answers."""
    import mlflow

    from calmlflow.registry.package import log_model
    from calmlflow.server import supervisor as embedded

    folder = tmp_path_factory.mktemp("faults")
    port, s3_port = free_ports()
    server = embedded.start(port, s3_port, folder / "home")
    with turned_to(server):
        answers = {}
        for seed in (1, 2, 3):
            models = write_bundle(folder / f"models{seed}", seed)
            with mlflow.start_run():
                logged = log_model(models, NETWORKS, "bundle", {})
            found = mlflow.register_model(logged.uri, settings.BUNDLE_MODEL)
            keys = dict(line.split("=") for line in CONTROL_FILE.read_text().split())
            (answer,) = as_answers(Bundle.load(models).predict([job_features(JOB, keys)]))
            answers[str(found.version)] = answer
    try:
        yield server, answers
    finally:
        embedded.stop(folder / "home")


def stage(server, version: str) -> None:
    """Put a version in Production."""
    from mlflow import MlflowClient

    client = MlflowClient(server.tracking_uri)
    client.transition_model_version_stage(settings.BUNDLE_MODEL, version, "Production", True)


def predict(server, cache: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [CALMLFLOW, "predict", JOB, "--control", str(CONTROL_FILE), *options]
    shell = environment(server, CALMLFLOW_CACHE=str(cache), **more)
    return subprocess.run(command, env=shell, capture_output=True, text=True, timeout=120)


def answered(done: subprocess.CompletedProcess[str], answers: dict, version: str, source: str) -> None:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**answers[version], "version": version, "source": source}
    assert "Traceback" not in done.stderr


def test_a_full_disk_costs_the_cache_and_not_the_answer(own, tmp_path):
    server, answers = own
    stage(server, "3")
    disk = tmp_path / "disk"
    disk.mkdir()
    # A bundle of the samples has some kilobytes, of which the first fits.
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        for filled in (False, True):
            if filled:
                with contextlib.suppress(OSError):
                    (disk / "rest").write_bytes(b"x" * 100_000)
            done = predict(server, disk / "cache")
            answered(done, answers, "3", "registry")
            assert "No space left on device" in done.stderr
            left = [path.name for path in (disk / "cache").rglob("*") if path.is_file() and path.stat().st_size]
            assert all(name.endswith(".json") for name in left)
        (disk / "rest").unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    answered(predict(server, disk / "cache"), answers, "3", "registry")


def test_two_hundred_processes_on_an_empty_cache(own, tmp_path):
    server, answers = own
    stage(server, "2")
    command = [CALMLFLOW, "predict", JOB, "--control", str(CONTROL_FILE)]
    # Two cores are busy with two hundred processes: what is to be seen here is not how long the server takes.
    shell = environment(server, CALMLFLOW_CACHE=str(tmp_path / "cache"), CALMLFLOW_TIMEOUT="60")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, env=shell, text=True, **pipes) for _ in range(200)]
    found = [process.communicate(timeout=500) for process in started]
    for process, (out, err) in zip(started, found, strict=True):
        assert process.returncode == 0, err
        # The test moved the version without a gate, of which those who note it first warn.
        assert all("without the gate" in line for line in err.splitlines()), err
        assert json.loads(out) == {**answers["2"], "version": "2", "source": "registry"}
    (registry,) = (tmp_path / "cache").iterdir()
    names = [path.name for path in registry.iterdir()]
    assert not any(name.startswith((".fetch-", ".old-", ".note-")) for name in names)
    with stopped(server.home, "mlflow"):
        answered(predict(server, tmp_path / "cache", CALMLFLOW_TIMEOUT="0.2"), answers, "2", "cache")
