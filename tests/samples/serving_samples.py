"""A registered model without a training, and the environment of somebody who has that model and no calmlflow."""

import http.client
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import job_features, switch_warnings
from calmlflow.predictor import Bundle
from calmlflow.predictor.answers import as_answers, mosaic_policy
from calmlflow.predictor.evidence import Finished
from tests.conftest import free_ports, turned_to
from tests.samples import commands
from tests.samples.predictor_samples import NETWORKS, write_bundle

NUMBERS = itertools.count()

SEEN = {
    "ipppssoot": "j8c601020",
    "n_files": 17,
    "total_mb": 9.6,
    "DETECTOR": "WFC",
    "SUBARRAY": "False",
    "DRIZCORR": "PERFORM",
    "PCTECORR": "OMIT",
    "CRSPLIT": "1.0",
}
SPARSE = {"ipppssoot": "oabc06090", "n_files": 7, "total_mb": 11.1}
MOSAIC = {"ipppssoot": "acs_8ph_01", "n_files": 1, "total_mb": 1.0}
UNLIKE = {**SPARSE, "ipppssoot": "IEXU3A010", "total_mb": 50_000.0, "DETECTOR": "UVIS"}
JOBS = [SEEN, SPARSE, MOSAIC, UNLIKE]


def write_models(folder: Path) -> Path:
    """The ``models`` folder of a training that had jobs like some of those above."""
    rows = [job_features(str(job["ipppssoot"]), job) for job in (SEEN, SPARSE)]
    # Of the same programme and row as the first job, and its own last run.
    names = ["j8c601010", "j8c602010", SEEN["ipppssoot"]]
    sizes = np.array([2.5, 3.0, 2.75]), np.array([900.0, 1000.0, 1100.0])
    write_bundle(folder, evidence=Finished(np.array([rows[0]] * 3, float), names, *sizes, np.arange(3)))
    (folder / "seen_rows.json").write_text(json.dumps(rows))
    (folder / "decision.json").write_text(json.dumps({"risk": 0.0, "wallclock_ratio": np.ones((3, 4)).tolist()}))
    return folder


def answer_of(bundle: Bundle, name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """What a bundle answers to a job, with warnings of its switches."""
    answer = as_answers(bundle.predict([job_features(name, keys)], [name]))[0]
    return {**answer, "warnings": answer["warnings"] + switch_warnings(name, keys)}


@dataclass(frozen=True)
class Published:
    """A version in Production, and the bundle it holds."""

    uri: str
    bundle: Bundle

    def expected(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """What it must answer, one job after the other."""
        found = []
        for job in jobs:
            name = parse_dataset(job["ipppssoot"])
            answer = mosaic_policy() if name.is_hap else answer_of(self.bundle, name.name, job)
            found.append({key: answer[key] for key in self.bundle.answer_keys})
        return found


def publish(server, folder: Path) -> Published:
    """Log and register a model and put it in Production, on the server of the test run."""
    import mlflow

    from calmlflow.registry.lineage import Lineage
    from calmlflow.registry.package import log_model, register, write_bundle

    models = write_models(folder / "models")
    name = f"serving-test-{next(NUMBERS)}"
    with turned_to(server):
        mlflow.set_experiment("serving-test")
        with mlflow.start_run():
            logged = log_model(models, NETWORKS, name, {})
        register({name: logged}, Lineage("sample", 0, 0, None, {}, {}))
        mlflow.MlflowClient().transition_model_version_stage(name, "1", "Production")
    return Published(f"models:/{name}/Production", Bundle.load(write_bundle(models, NETWORKS, folder / "bundle")))


def outside(server, folder: Path, **more: str) -> dict[str, str]:
    """Environment of a user of the server to whom ``import calmlflow`` is an error, but for what a model brings."""
    (folder / "no" / "calmlflow").mkdir(parents=True, exist_ok=True)
    (folder / "no" / "calmlflow" / "__init__.py").write_text("raise ImportError('not the code of the model')\n")
    return commands.environment(server, PYTHONPATH=str(folder / "no"), **more)


@dataclass(frozen=True)
class Scorer:
    """A scoring server on a port of this machine."""

    port: int

    def post(self, body: object, content_type: str = "application/json") -> tuple[int, Any]:
        """Status and parsed answer."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/invocations", content, {"Content-Type": content_type})
        response = connection.getresponse()
        answer = response.status, json.loads(response.read())
        connection.close()
        return answer

    def answers(self, body: object, content_type: str = "application/json") -> list[dict[str, Any]]:
        status, answer = self.post(body, content_type)
        assert status == 200, answer
        return answer["predictions"]


def close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal but for the last digit of probabilities: one job alone and among others differ in the seventh."""
    for answer, one in zip(found, expected, strict=True):
        assert answer == {**one, "probabilities": pytest.approx(one["probabilities"], abs=2e-6)}


def free_port() -> int:
    return free_ports(1)[0]
