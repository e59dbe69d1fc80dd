"""Ask the model registry by plain HTTP which version a stage holds, and fetch its files, without importing MLflow."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Container
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.manifest import MANIFEST, MAX_BYTES, parse_manifest, read_files, read_listed, read_manifest
from calmlflow.settings import hide_password

T = TypeVar("T")

MAX_RESPONSE_BYTES = 4_194_304
# Of requests that have no alternative to the server; and what importing MLflow may take on two busy cores.
PATIENCE_S, IMPORT_S = 15.0, 20.0
# Among the files of a logged model.
BUNDLE_FOLDER = "artifacts/bundle/"
# Tag of a version: the SHA-256 of its ``bundle.json``.
DIGEST_TAG = "bundle_sha256"


class RegistryUnavailableError(CalmlflowError):
    """The registry does not answer, or its answer is unusable."""


class NoEndpointError(RegistryUnavailableError):
    """The server has no such endpoint: another version of MLflow, or not MLflow."""


class AccessDeniedError(CalmlflowError):
    """The registry refuses the credentials."""


class NoSuchVersionError(CalmlflowError):
    """The stage holds no version."""


@dataclass(frozen=True)
class StagedVersion:
    """The version of the bundle that a stage holds; ``sha256`` is that of its ``bundle.json``, empty if unknown."""

    version: str
    source: str
    sha256: str = field(default="", compare=False)

    @property
    def folder(self) -> str:
        """Folder name in the cache; includes the source, because a new registry counts from 1 again."""
        return f"{self.version}-{hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    def check_manifest(self, content: bytes) -> None:
        """Compare ``bundle.json``, which lists the SHA-256 of every other file, with the registry's digest of it."""
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 and found != self.sha256:
            raise InputError(
                f"{MANIFEST} of version {self.version} has the SHA-256 {found[:12]}...; expected "
                f"{self.sha256[:12]}..., as the registry has it"
            )


def is_http(uri: str) -> bool:
    """Tell an HTTP server from a database or a folder."""
    return uri.lower().startswith(("http://", "https://"))


def check_reachable(uri: str) -> None:
    """Raise a RegistryUnavailableError if ``uri`` is an HTTP server that does not answer."""
    if is_http(uri):
        _request(uri, "/health", PATIENCE_S)


# -- The version in a stage -------------------------------------------------------------------------------------------


def resolve_stage(stage: str, registry_uri: str) -> StagedVersion:
    """Ask the registry which version of the bundle a stage, or else the alias of the same name, holds."""
    found = _ask_http(stage, registry_uri) if is_http(registry_uri) else _ask_mlflow(stage, registry_uri)
    shown = hide_password(registry_uri)
    if found is None:
        raise NoSuchVersionError(
            f"no version of {settings.BUNDLE_MODEL} is in stage {stage} on {shown}; expected one: promote it with "
            f"`calmlflow promote --stage {stage}`"
        )
    if not (re.fullmatch("[0-9]{1,18}", found.version) and found.source.isprintable()):
        raise RegistryUnavailableError(
            f"{shown} named the version {found.version[:60]!r}; expected a number, as MLflow gives"
        )
    return found


def _ask_http(stage: str, registry_uri: str) -> StagedVersion | None:
    model, versions = quote(settings.BUNDLE_MODEL), None
    faults: list[NoEndpointError] = []
    for query, key in (
        (f"get-latest-versions?name={model}&stages={quote(stage)}", "model_versions"),
        (f"alias?name={model}&alias={quote(stage.lower())}", "model_version"),
    ):
        try:
            answer = get_json(registry_uri, f"/api/2.0/mlflow/registered-models/{query}", (key,)) or {}
        except NoEndpointError as error:
            # A server without stages, which MLflow has announced. Without aliases too it is not a registry.
            faults.append(error)
            continue
        if versions := answer.get(key):
            break
    if len(faults) == 2:
        raise faults[0]
    if not versions:
        return None
    try:
        version = versions[0] if isinstance(versions, list) else versions
        number, source = str(version["version"]), str(version["source"])
        digests = [str(tag.get("value", "")) for tag in version.get("tags", ()) if tag["key"] == DIGEST_TAG]
        return StagedVersion(number, source, *digests[:1])
    except (TypeError, KeyError):
        return StagedVersion("", "")


def _ask_mlflow(stage: str, registry_uri: str) -> StagedVersion | None:
    path = registry_uri.removeprefix("sqlite:///").partition("?")[0]
    if path not in (registry_uri, "", ":memory:") and not Path(path).exists():
        # MLflow would create an empty database.
        raise RegistryUnavailableError(
            f"the registry {hide_password(registry_uri)} does not exist; expected a database"
        )

    def ask() -> StagedVersion:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=settings.tracking_uri(), registry_uri=registry_uri)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            versions = client.get_latest_versions(settings.BUNDLE_MODEL, [stage])
        found = versions[0] if versions else client.get_model_version_by_alias(settings.BUNDLE_MODEL, stage.lower())
        return StagedVersion(str(found.version), str(found.source), str(found.tags.get(DIGEST_TAG, "")))

    try:
        # MLflow retries a database that does not answer for minutes.
        return within(IMPORT_S + settings.timeout_s(), ask)
    except Exception as error:
        # MLflow's own exceptions, or those of the database or file store behind it.
        reason = getattr(error, "error_code", type(error).__name__)
        if reason in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        reason = "no answer in time" if isinstance(error, TimeoutError) else reason
        raise RegistryUnavailableError(
            f"{hide_password(registry_uri)} cannot be asked ({reason}); expected a model registry"
        ) from error


# -- The files of a version -------------------------------------------------------------------------------------------


def fetch(staged: StagedVersion, registry_uri: str, patience_s: float) -> dict[str, bytes]:
    """Fetch the files of a version's bundle, ``bundle.json`` included, within ``patience_s``.

    Each is compared with its SHA-256 in ``bundle.json``, and that file with its digest in the registry.
    """
    name = f"version {staged.version} of {settings.BUNDLE_MODEL}"
    deadline = time.monotonic() + patience_s

    def unavailable(what: str) -> RegistryUnavailableError:
        return RegistryUnavailableError(
            f"{name} cannot be downloaded from {hide_password(registry_uri)} ({what}); expected its artifacts"
        )

    def ask(file: str) -> tuple[int, bytes]:
        query = {"path": BUNDLE_FOLDER + file, "name": settings.BUNDLE_MODEL, "version": staged.version}
        path = f"/model-versions/get-artifact?{urlencode(query, quote_via=quote)}"
        status, content = _request(registry_uri, path, max(deadline - time.monotonic(), 0.0), MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise unavailable(f"more than {MAX_BYTES:,} bytes")
        return status, content

    def read(file: str) -> bytes:
        status, content = ask(file)
        if status != 200:
            raise unavailable(file)
        return content

    if is_http(registry_uri):
        status, content = ask(MANIFEST)
        # Another status: the server does not have it, or cannot read the artifact store.
        if status == 200:
            staged.check_manifest(content)
            return {MANIFEST: content, **read_listed(parse_manifest(content, name), name, read)}
    try:
        files = within(max(deadline - time.monotonic(), 0.0), lambda: _download(staged, registry_uri, name))
    except CalmlflowError:
        raise
    except Exception as error:
        # MLflow, requests and boto3 raise exceptions of their own.
        raise unavailable("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__) from error
    staged.check_manifest(files[MANIFEST])
    return files


def _download(staged: StagedVersion, registry_uri: str, name: str) -> dict[str, bytes]:
    """Fetch the files with MLflow, which knows every kind of registry and artifact store."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="calmlflow-") as target:
        # The tracking server knows where the artifacts of a version are, whatever the registry is.
        places = {"tracking_uri": settings.tracking_uri(), "registry_uri": registry_uri}
        download_artifacts(f"models:/{settings.BUNDLE_MODEL}/{staged.version}", dst_path=target, **places)
        folder = Path(target) / BUNDLE_FOLDER
        if not (folder / MANIFEST).is_file():
            raise InputError(f"{name} holds no {BUNDLE_FOLDER}{MANIFEST}; expected a bundle")
        return {MANIFEST: (folder / MANIFEST).read_bytes(), **read_files(folder, read_manifest(folder))}


# -- HTTP -------------------------------------------------------------------------------------------------------------


def get_json(
    registry_uri: str, path: str, keys: Container[str], timeout_s: float | None = None
) -> dict[str, Any] | None:
    """Send one GET request; None if MLflow knows no such model, stage or alias. The answer may hold ``keys`` only."""
    shown = hide_password(registry_uri)
    status, body = _request(registry_uri, path, timeout_s or settings.timeout_s())
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    code = answer.get("error_code") if isinstance(answer, dict) else None
    # MLflow answers RESOURCE_DOES_NOT_EXIST to an unknown model, and INVALID_PARAMETER_VALUE to an unknown alias.
    if status != 200 and code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return None
    if status in (404, 405, 501):
        raise NoEndpointError(f"{shown} answered with status {status}; expected an MLflow server's registry there")
    if status != 200 or not isinstance(answer, dict) or any(key not in keys for key in answer):
        what = str(code)[:60] if code else "other content"
        raise RegistryUnavailableError(f"{shown} answered with status {status} ({what}); expected an MLflow server")
    return answer


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of ``work``, or raise a TimeoutError after ``seconds``; the work then ends unattended."""
    # Only a thread of its own bounds everything that may block, such as name lookup and headers that arrive slowly.
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds)


def _request(uri: str, path: str, patience_s: float, limit: int = MAX_RESPONSE_BYTES) -> tuple[int, bytes]:
    """Status and body (at most ``limit`` bytes plus one) of one GET request that takes at most ``patience_s``."""
    shown = hide_password(uri)
    # Each wait for the server is bounded too; a large file may take longer in all.
    timeout_s = patience_s if limit == MAX_RESPONSE_BYTES else settings.timeout_s()
    try:
        status, body = within(patience_s, lambda: _get(uri, path, timeout_s, limit))
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise RegistryUnavailableError(
            f"no MLflow server answers at {shown} ({reason}); expected one: set MLFLOW_TRACKING_URI, or start the "
            "embedded one with `calmlflow server --detach`"
        ) from error
    if status in (401, 403):
        raise AccessDeniedError(
            f"{shown} refused the request with status {status}; expected MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user who may read it"
        )
    return status, body


def _get(uri: str, path: str, timeout_s: float, limit: int) -> tuple[int, bytes]:
    address = urlsplit(uri)
    host, port = address.hostname or "", address.port
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    if address.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=_tls())
    with contextlib.closing(connection):
        headers = _authorization(address.username, address.password)
        connection.request("GET", address.path.rstrip("/") + path, headers=headers)
        response = connection.getresponse()
        body = response.read(limit + 1)
        if response.length and len(body) <= limit:
            # http.client reports a cut body only if it reads without a limit.
            raise http.client.IncompleteRead(body, response.length)
        return response.status, body


def _tls() -> ssl.SSLContext:
    """TLS settings of MLflow's own client."""
    tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        tls.load_cert_chain(certificate)
    return tls


def _authorization(username: str | None, password: str | None) -> dict[str, str]:
    """The header that MLflow's own client sends."""
    username = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(password or "")
    if username and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
