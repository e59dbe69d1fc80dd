"""Bundles without a training, and registries that answer as a test tells them to."""

import base64
import functools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import DEFAULT, LADDER_FILE, Ladder, Rung
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.evidence import DEFAULT_STRENGTH, Evidence, Finished, build_evidence
from calmlflow.predictor.killtime import KillTime
from calmlflow.predictor.manifest import write_manifest
from calmlflow.predictor.registry_client import StagedVersion
from tests.samples.http_server import serving

NETWORKS = ("mem_clf", "mem_reg", "wall_reg")
SCALING = Scaling((-0.4, 0.1), (1.2, 3.0), (0.3, 1.7))
KILL_TIME = KillTime((400.0,), (3.5, 2.25), 0.99, (120, 80))
FIVE = Ladder("five", (DEFAULT[0], Rung("4g", 3.584, "c5a.2xlarge", 0.308, 4), *DEFAULT.rungs[1:]))
CONTROL = {"n_files": "17", "total_mb": "9.6", "DETECTOR": "SBC", "SUBARRAY": "False", "DRIZCORR": "PERFORM"}

STAGES = "/api/2.0/mlflow/registered-models/get-latest-versions"
ALIASES = "/api/2.0/mlflow/registered-models/alias"
VERSION = "/api/2.0/mlflow/model-versions/get"
NO_PAGE = (404, b"<!doctype html><title>404 Not Found</title>")
NO_ALIAS = (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias not found."}')
NOTHING = (200, b"{}")

FILES = "/model-versions/get-artifact"
PLACE = "/api/2.0/mlflow/model-versions/get-download-uri"


def write_network(path: Path, outputs: int, seed: int, says: float | None = None) -> None:
    """One dense layer with random weights: probabilities, or one positive number of about a thousand.

    With ``says`` one that says this number for every job.
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    generator = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(generator.normal(0, 0.4, (len(FEATURES), outputs)).astype(np.float32), "weights"),
        numpy_helper.from_array(np.full(outputs, 0 if outputs > 2 else 6, dtype=np.float32), "bias"),
    ]
    last = "Softmax" if outputs > 2 else "Exp"
    if says is not None:
        weights = [numpy_helper.from_array(np.zeros((len(FEATURES), outputs), np.float32), "weights"),
                   numpy_helper.from_array(np.full(outputs, says, np.float32), "bias")]  # fmt: skip
        last = "Identity"
    nodes = [
        helper.make_node("Gemm", ["features", "weights", "bias"], ["sums"]),
        helper.make_node(last, ["sums"], ["answer"]),
    ]
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, len(FEATURES)])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None, outputs])
    graph = helper.make_graph(nodes, "dense", [given], [answer], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_bundle(folder: Path, seed: int = 0, evidence: Finished | None = None, ladder: Ladder = DEFAULT) -> Path:
    """A whole bundle, with evidence of some jobs or without; another seed gives other answers."""
    for number, network in enumerate(NETWORKS):
        write_network(
            folder / network / f"{network}.onnx", len(ladder) if network == "mem_clf" else 1, 10 * seed + number
        )
    (folder / "tx_data.json").write_text(SCALING.to_json())
    (folder / "killtime.json").write_text(KILL_TIME.to_json())
    (folder / LADDER_FILE).write_text(ladder.to_json())
    if evidence:
        add_evidence(folder, evidence)
    write_manifest(folder)
    return folder


def add_evidence(folder: Path, jobs: Finished, campaign: tuple[float, float] = (0.0, 0.0)) -> Evidence:
    """Give a bundle evidence of some jobs, and a campaign that shifts ln GB and ln s."""
    evidence = build_evidence(jobs, DEFAULT_STRENGTH, np.tile(campaign, (4, 1)))
    (folder / "evidence").mkdir(exist_ok=True)
    for name, content in evidence.files().items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return evidence


def keep_in_cache(root: Path, uri: str, version: str, seed: int = 0) -> Path:
    """Put a bundle where the cache of a registry has it, as version with the source that `staged` names."""
    return write_bundle(Cache(uri, root).folder / StagedVersion(version, source(version)).folder, seed)


def source(version: str) -> str:
    return f"models:/m-{version}"


def staged(version: str, tags: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """The registry's answer where a stage holds a version."""
    found: dict[str, object] = {"name": "calcloud-predictor", "version": version, "source": source(version)}
    if tags:
        found["tags"] = [{"key": key, "value": value} for key, value in tags.items()]
    return 200, json.dumps({"model_versions": [found]}).encode()


def aliased(version: str) -> tuple[int, bytes]:
    """The registry's answer where an alias names a version."""
    found = {"name": "calcloud-predictor", "version": version, "source": source(version)}
    return 200, json.dumps({"model_version": found}).encode()


@functools.cache
def empty_database() -> bytes:
    """An MLflow registry in a database file, without versions; made once, as its tables take seconds."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/registry.db"
        MlflowClient(uri, uri).create_registered_model("calcloud-predictor")
        return (Path(folder) / "registry.db").read_bytes()


# Status, content, and perhaps a number of bytes that are promised beyond it.
Answer = tuple[int, bytes] | tuple[int, bytes, int] | None
Query = dict[str, list[str]]


def files_of(bundle: Path) -> Callable[[Query], Answer]:
    """How a tracking server hands out the files of a version, for `FILES`."""

    def answer(query: Query) -> Answer:
        place = "artifacts/bundle/"
        path = bundle / query["path"][0].removeprefix(place)
        there = query["path"][0].startswith(place) and path.is_file()
        return (200, path.read_bytes()) if there else (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')

    return answer


@dataclass
class HttpRegistry:
    """What an HTTP server answers for each path (None: too late), and what it was asked."""

    uri: str
    answers: dict[str, Answer | Callable[[Query], Answer]]
    queries: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)

    def passwords(self) -> set[str]:
        """User and password of every request."""
        return {base64.b64decode(found.removeprefix("Basic ")).decode() for found in self.authorizations}


@contextmanager
def http_registry(answers: Mapping[str, Answer | Callable[[Query], Answer]] | None = None) -> Iterator[HttpRegistry]:
    """A server on a free port; a path that is not among the answers gives 404 and an HTML page."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        # Connections are kept open, as MLflow's server does.
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if over.is_set():
                # A connection that was kept open, and another server has this port now.
                self.close_connection = True
                return
            path = urlsplit(self.path)
            registry.connections.add(self.client_address)
            registry.queries.append((path.path, parse_qs(path.query)))
            registry.authorizations.append(self.headers.get("Authorization", ""))
            answer = registry.answers.get(path.path, NO_PAGE)
            if callable(answer):
                answer = answer(parse_qs(path.query))
            if answer is None:
                # In the end it does answer: a client with more patience than it was told to have gets that.
                over.wait(5)
                answer = (200, b"{}")
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1]) + sum(answer[2:])))
            self.end_headers()
            self.wfile.write(answer[1])
            # Nothing comes after an answer that is shorter than it says.
            self.close_connection |= len(answer) > 2

        def log_message(self, *words: object) -> None:
            pass

    with serving(Handler) as uri:
        registry = HttpRegistry(uri, dict(answers or {}))
        try:
            yield registry
        finally:
            over.set()
