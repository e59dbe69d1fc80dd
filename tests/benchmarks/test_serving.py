"""The benchmark of serving: both models answer, and what was started has ended."""

import os
import sys
from pathlib import Path

import mlflow
import pytest

# Benchmarks are no part of the installed package.
from benchmarks import serving as benchmark
from calmlflow import settings
from calmlflow.errors import CalmlflowError
from tests.samples.serving_samples import free_port, publish


@pytest.fixture
def mark(tmp_path, monkeypatch) -> bytes:
    """A variable of the environment that tells the processes of one test from those of others."""
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    return f"STARTED_BY={tmp_path}".encode()


def scoring_servers(mark: bytes) -> set[str]:
    """Process numbers of a test's scoring servers, and of the commands that start them."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            is_own = mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_own and (b"scoring_server" in words or b"models\0serve" in words):
            found.add(process.name)
    return found


@pytest.mark.slow
def test_both_models_are_asked_and_no_process_stays(server, tracking, tmp_path, monkeypatch, mark):
    published = publish(server, tmp_path)
    mlflow.set_tracking_uri(server.tracking_uri)
    monkeypatch.setattr(settings, "BUNDLE_MODEL", published.uri.split("/")[1])
    found = benchmark.measure_serving(server.tracking_uri, seconds=2)
    assert set(found) == {"requests_per_s", "constant_requests_per_s", "ratio", "ratio_new_features"}
    assert all(value > 0 for value in found.values())
    assert scoring_servers(mark) == set()


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_and_ended(tmp_path, mark):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    missing = str(tmp_path / "no-model")
    with (
        pytest.raises(CalmlflowError, match=r"no-model.* does not answer"),
        benchmark.serving(missing, free_port(), environment, ["--env-manager", "local"], tmp_path),
    ):
        pass
    assert scoring_servers(mark) == set()
