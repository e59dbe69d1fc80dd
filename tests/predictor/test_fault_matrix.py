"""Source and warning of the answer at each fault of registry, artifact store, cache and image."""

import contextlib
import hashlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.registry_client import StagedVersion
from tests.conftest import free_ports, turned_to
from tests.samples.commands import stopped
from tests.samples.http_server import serving
from tests.samples.predictor_samples import CONTROL, write_bundle

JOB = "jabc03020"
EMPTY = "no version of .* is in stage Production on .*; expected one"
# Registry -> what the error or the warning says, and what answers: "-" stands for the error, or the image if there is
# one. The registry, where it answers, names version 3. Versions 2 and 3 are in the cache, except where it is empty;
# 3 is damaged there, or was rolled back to from 4 and is damaged.
COLUMNS = ("empty", "damaged", "rolled back", "read-only", "warm")
TABLE = {
    "well": ("", "3 registry", "3 registry", "3 registry", "3 registry", "3 registry"),
    "away": ("no MLflow server answers", "-", "2 cache", "-", "3 cache", "3 cache"),
    "slow": ("no answer in time", "-", "2 cache", "-", "3 cache", "3 cache"),
    "model unknown": (EMPTY, "-", "2 cache", "-", "3 cache", "3 cache"),
    "stage empty": (EMPTY, "-", "2 cache", "-", "3 cache", "3 cache"),
    "redirect": ("redirects to http://elsewhere.invalid/login", "-", "2 cache", "-", "3 cache", "3 cache"),
    "wrong host": ("refuses the host name", "-", "2 cache", "-", "3 cache", "3 cache"),
    "other workspace": ("has no workspaces", "-", "2 cache", "-", "3 cache", "3 cache"),
    "no user": ("refused the request with status 401", "-", "2 cache", "-", "3 cache", "3 cache"),
    "denied": ("refused the request with status 403", "-", "2 cache", "-", "3 cache", "3 cache"),
    "another server": ("answered with status 200", "-", "2 cache", "-", "3 cache", "3 cache"),
    "slow store": ("its artifact store gave no bundle.json in time", "-", "2 cache", "-", "3 registry", "3 registry"),
    # The digest of version 3 in the registry is that of other files.
    "swapped": ("of version 3 has the SHA-256 .*; expected 000000", "-", "2 cache", "-", "2 cache", "2 cache"),
}
ANSWERS = {
    "/redirect": (302, b"", {"Location": "http://elsewhere.invalid/login"}),
    "/no user": (401, b"You are not authenticated.", {}),
    "/denied": (403, b"Permission denied", {}),
    "/another server": (200, b'{"status": "well"}', {}),
}


class Handler(BaseHTTPRequestHandler):
    """Faults that MLflow's server cannot be brought to."""

    def do_GET(self) -> None:
        place = next(place for place in ANSWERS if self.path.startswith(place.replace(" ", "-")))
        status, body, headers = ANSWERS[place]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """Version -> folder of its bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {version: write_bundle(folder / version, int(version)) for version in "2347"}
    (found["7"] / "version.json").write_text('{"version": "7"}')
    return found


@pytest.fixture(scope="module")
def registry(server, bundles) -> Iterator[SimpleNamespace]:
    """A real server with models of every state, a server that plays faults, and the source of version 3."""
    import mlflow

    digest = hashlib.sha256((bundles["3"] / "bundle.json").read_bytes()).hexdigest()
    with turned_to(server), serving(Handler) as odd:
        client = mlflow.MlflowClient()
        with mlflow.start_run() as run:
            mlflow.log_artifacts(str(bundles["3"]), "model/artifacts/bundle")
        source = f"{run.info.artifact_uri}/model"
        for model, sha256 in (("matrix-well", digest), ("matrix-swapped", "0" * 64)):
            client.create_registered_model(model)
            tags = {"bundle_sha256": sha256, "calmlflow.history.000001": '{"stage":"Production"}'}
            for _ in range(3):
                client.create_model_version(model, source, run.info.run_id, tags=tags)
            client.transition_model_version_stage(model, "3", "Production")
        client.create_registered_model("matrix-empty")
        yield SimpleNamespace(home=server.home, uri=server.tracking_uri, odd=odd, source=source)


@contextlib.contextmanager
def faulty(registry, fault: str, monkeypatch) -> Iterator[str]:
    """The address of a registry with a fault."""
    models = {"model unknown": "nobody", "stage empty": "matrix-empty", "swapped": "matrix-swapped"}
    monkeypatch.setattr(settings, "BUNDLE_MODEL", models.get(fault, "matrix-well"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", {"slow": "0.3", "slow store": "1"}.get(fault, "10"))
    if f"/{fault}" in ANSWERS:
        yield f"{registry.odd}/{fault.replace(' ', '-')}"
    elif fault == "away":
        yield f"http://127.0.0.1:{free_ports(1)[0]}"
    elif fault in ("slow", "slow store"):
        with stopped(registry.home, "mlflow" if fault == "slow" else "weed"):
            yield registry.uri
    elif fault == "wrong host":
        look_up = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1", *rest, **more))
        yield registry.uri.replace("127.0.0.1", "registry.example")
    else:
        if fault == "other workspace":
            monkeypatch.setenv("MLFLOW_WORKSPACE", "theirs")
        yield registry.uri


@contextlib.contextmanager
def kept(column: str, cache: Cache, source: str, bundles: dict[str, Path]) -> Iterator[None]:
    """A cache in a state."""
    for version in {"empty": "", "rolled back": "43"}.get(column, "23"):
        staged = StagedVersion(version, source)
        shutil.copytree(bundles[version], cache.path(staged))
        cache.remember("Production", staged)
    if column in ("damaged", "rolled back"):
        (cache.path(StagedVersion("3", source)) / "tx_data.json").write_text("{}")
    if column != "read-only":
        yield
        return
    # Root may write where no permission says so.
    folder = str(cache.folder)
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a folder read-only")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("image", ["no image", "image"])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("fault", TABLE)
def test_the_last_good_version_at_hand_answers(fault, column, image, registry, bundles, monkeypatch, tmp_path, caplog):
    words, *cells = TABLE[fault]
    version, source = cells[COLUMNS.index(column)].split() if cells[COLUMNS.index(column)] != "-" else ("", "")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    if image == "image":
        monkeypatch.setenv("CALMLFLOW_BUNDLE", str(bundles["7"]))
        version, source = version or "7", source or "cache"
    with faulty(registry, fault, monkeypatch) as uri, kept(column, Cache(uri), registry.source, bundles):
        if not version:
            with pytest.raises(CalmlflowError, match=words) as caught:
                Predictor(registry_uri=uri)
            assert "\n" not in str(caught.value)
            return
        answer = Predictor(registry_uri=uri).predict(JOB, CONTROL)
    assert (answer["version"], answer["source"]) == (version, source)
    expected = Bundle.load(bundles[version]).predict([job_features(JOB, CONTROL)])["wall_pred"][0]
    assert answer["clockTime"] == int(expected)
    place = "of the image" if version == "7" else "from the cache"
    told = re.search(f"({words}).*; answering with version {version} {place}", caplog.text)
    assert bool(told) == (source == "cache"), caplog.text
