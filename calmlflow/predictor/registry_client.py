"""Ask the model registry by plain HTTP which version a stage holds, and fetch its files, without importing MLflow."""

import contextlib
import hashlib
import importlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.http_client import RegistryUnavailableError, get, within
from calmlflow.predictor.manifest import MANIFEST, MAX_BYTES, parse_manifest, read_files, read_listed, read_manifest
from calmlflow.settings import hide_password

T = TypeVar("T")

# Of requests that have no alternative to the server; and what importing MLflow may take on two busy cores.
PATIENCE_S, IMPORT_S = 15.0, 20.0
NEWEST_FIRST = "version_number DESC"
# Among the files of a logged model.
BUNDLE_FOLDER = "artifacts/bundle/"
# Tag of a version: the SHA-256 of its ``bundle.json``.
DIGEST_TAG = "bundle_sha256"
# Tags of a version that calmlflow moved, see `calmlflow.registry.history`: a move made, and one that comes next.
HISTORY_TAG, PLANNED_TAG = "calmlflow.history.", "calmlflow.planned"


class NoEndpointError(RegistryUnavailableError):
    """The server has no such endpoint: another version of MLflow, or not MLflow."""


class NoSuchVersionError(CalmlflowError):
    """The stage is empty, or the registry has no such version or alias."""


@dataclass(frozen=True)
class StagedVersion:
    """The version of the bundle that a stage holds; ``sha256`` is that of its ``bundle.json``, empty if unknown."""

    version: str
    source: str
    sha256: str = ""
    # Whether the version's history says that calmlflow brought it to the stage.
    recorded: bool = field(default=True, compare=False)

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


def registry_name(uri: str) -> str:
    """Name of a registry's folder in the cache: two registries, or two workspaces of one, must not share versions."""
    selected_by = [hide_password(uri), settings.workspace()]
    if not is_http(uri):
        # The tracking server hands out the artifacts.
        selected_by.append(hide_password(settings.tracking_uri()))
    return hashlib.sha256("\n".join(filter(None, selected_by)).encode()).hexdigest()[:12]


def check_reachable(uri: str) -> None:
    """Raise a RegistryUnavailableError if ``uri`` is an HTTP server that does not answer."""
    if is_http(uri):
        get(uri, "/health", max(PATIENCE_S, settings.timeout_s()))


# -- The version in a stage -------------------------------------------------------------------------------------------


def resolve_stage(which: str, registry_uri: str, timeout_s: float | None = None) -> StagedVersion:
    """Ask the registry for the version of the bundle that `settings.parse_choice` names.

    For a stage that holds none, or on a server without stages, the alias of the same name counts. Takes ``timeout_s``
    at most, by default `calmlflow.settings.timeout_s`.
    """
    timeout_s = settings.timeout_s() if timeout_s is None else timeout_s
    ask = _ask_http if is_http(registry_uri) else _ask_mlflow
    found = ask(which, registry_uri, timeout_s)
    shown = hide_password(registry_uri)
    if found is None:
        raise NoSuchVersionError(_nothing_found(which, shown))
    if not (re.fullmatch("[0-9]{1,18}", found.version) and found.source.isprintable()):
        raise RegistryUnavailableError(
            f"{shown} named the version {found.version[:60]!r}; expected a number, as MLflow gives"
        )
    return found


def _nothing_found(which: str, shown: str) -> str:
    workspace = settings.workspace()
    place = f"{shown}, workspace {workspace}" if workspace else shown
    if which in settings.STAGES:
        return (
            f"no version of {settings.BUNDLE_MODEL} is in stage {which} on {place}; expected one: promote it with "
            f"`calmlflow promote --stage {which}`"
        )
    if which.isdecimal() or which == settings.LATEST:
        what = "no version" if which == settings.LATEST else f"no version {which}"
        return f"{settings.BUNDLE_MODEL} has {what} on {place}; expected one that `calmlflow stages --all` lists"
    return f"no version of {settings.BUNDLE_MODEL} has the alias {which[1:]} on {place}; expected {settings.CHOICES}"


def _questions(which: str) -> list[tuple[str, str]]:
    """Paths and queries that are asked in turn, with the key that holds the answer."""
    model = quote(settings.BUNDLE_MODEL)
    if which.isdecimal():
        return [(f"model-versions/get?name={model}&version={which}", "model_version")]
    if which == settings.LATEST:
        query = {"filter": f"name = '{settings.BUNDLE_MODEL}'", "order_by": NEWEST_FIRST, "max_results": 1}
        return [(f"model-versions/search?{urlencode(query)}", "model_versions")]
    alias = which.removeprefix("@")
    if alias != which:
        return [(f"registered-models/alias?name={model}&alias={quote(alias)}", "model_version")]
    return [
        (f"registered-models/get-latest-versions?name={model}&stages={quote(which)}", "model_versions"),
        *_questions(f"@{which.lower()}"),
    ]


def _ask_http(which: str, registry_uri: str, timeout_s: float) -> StagedVersion | None:
    deadline = time.monotonic() + timeout_s
    versions, questions = None, _questions(which)
    faults: list[NoEndpointError] = []
    for query, key in questions:
        try:
            answer = get_json(registry_uri, f"/api/2.0/mlflow/{query}", key, left_until(deadline)) or {}
        except NoEndpointError as error:
            # A server without stages, which MLflow has announced. Without aliases too it is not a registry.
            faults.append(error)
            continue
        if versions := answer.get(key):
            break
    if len(faults) == len(questions):
        raise faults[0]
    if not versions:
        return None
    try:
        version = versions[0] if isinstance(versions, list) else versions
        tags = {str(tag["key"]): str(tag.get("value", "")) for tag in version.get("tags", ())}
        return _staged(version["version"], version["source"], tags, which)
    except (TypeError, KeyError, AttributeError):
        return StagedVersion("", "")


def _staged(version: object, source: object, tags: Mapping[str, str], which: str) -> StagedVersion:
    """A version of which the tags tell the digest, and whether a promotion to the stage was made or has begun."""
    events = [value for key, value in tags.items() if key.startswith(HISTORY_TAG) or key == PLANNED_TAG]
    recorded = which not in settings.STAGES or any(f'"stage":"{which}"' in event for event in events)
    return StagedVersion(str(version), str(source), tags.get(DIGEST_TAG, ""), recorded)


def _ask_mlflow(which: str, registry_uri: str, timeout_s: float) -> StagedVersion | None:
    path = registry_uri.removeprefix("sqlite:///").partition("?")[0]
    if path not in (registry_uri, "", ":memory:") and not Path(path).exists():
        # MLflow would create an empty database.
        raise RegistryUnavailableError(
            f"the registry {hide_password(registry_uri)} does not exist; expected a database"
        )

    def ask() -> StagedVersion | None:
        from mlflow import MlflowClient

        model = settings.BUNDLE_MODEL
        client = MlflowClient(tracking_uri=settings.tracking_uri(), registry_uri=registry_uri)
        if which.isdecimal():
            found = client.get_model_version(model, which)
        elif which == settings.LATEST:
            newest = client.search_model_versions(f"name = '{model}'", max_results=1, order_by=[NEWEST_FIRST])
            if not newest:
                return None
            found = newest[0]
        elif which.startswith("@"):
            found = client.get_model_version_by_alias(model, which[1:])
        else:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                versions = client.get_latest_versions(model, [which])
            found = versions[0] if versions else client.get_model_version_by_alias(model, which.lower())
        return _staged(found.version, found.source, found.tags, which)

    try:
        # MLflow retries a database that does not answer for minutes.
        return _with_mlflow(timeout_s, ask)
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


def fetch(
    staged: StagedVersion, registry_uri: str, timeout_s: float, partial: Path | None = None, whole: bool = False
) -> dict[str, bytes]:
    """Fetch the files of a version's bundle, ``bundle.json`` included.

    Each is compared with its SHA-256 in ``bundle.json``, and that file with its digest in the registry.

    Parameters
    ----------
    staged : StagedVersion
    registry_uri : str
    timeout_s : float
        Seconds for all files together. Where MLflow must fetch them, its import is not counted.
    partial : Path, optional
        Folder that keeps each file as it comes, for the next try; default: none.
    whole : bool
        Fetch the networks for further training too, which no answer reads.

    Raises
    ------
    CalmlflowError
        The registry or its artifact store does not give a file in time, or a file is not the one that is registered.
    """
    name = f"version {staged.version} of {settings.BUNDLE_MODEL}"
    shown = hide_password(registry_uri)
    deadline = time.monotonic() + timeout_s

    def unavailable(what: str, expected: str = "expected its artifacts") -> RegistryUnavailableError:
        return RegistryUnavailableError(f"{name} cannot be downloaded from {shown} ({what}); {expected}")

    def ask(file: str) -> tuple[int, bytes]:
        query = {"path": BUNDLE_FOLDER + file, "name": settings.BUNDLE_MODEL, "version": staged.version}
        path = f"/model-versions/get-artifact?{urlencode(query, quote_via=quote)}"
        try:
            status, content = get(registry_uri, path, left_until(deadline), MAX_BYTES)
        except RegistryUnavailableError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            # The registry itself has just answered.
            raise unavailable(
                f"its artifact store gave no {file} in time",
                "expected all files within CALMLFLOW_TIMEOUT: set that higher, or try again",
            ) from error
        if len(content) > MAX_BYTES:
            raise unavailable(f"more than {MAX_BYTES:,} bytes")
        return status, content

    def read(file: str, digest: str) -> bytes:
        with contextlib.suppress(OSError):
            content = (partial / file).read_bytes() if partial else b""
            if hashlib.sha256(content).hexdigest() == digest:
                return content
        status, content = ask(file)
        if status != 200 and file == MANIFEST:
            # The server does not have it, or cannot read the artifact store.
            return b""
        if status != 200:
            raise unavailable(f"its artifact store gave no {file}, but status {status}")
        if partial:
            with contextlib.suppress(OSError):
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).write_bytes(content)
        return content

    if is_http(registry_uri) and (content := read(MANIFEST, staged.sha256)):
        staged.check_manifest(content)
        return {MANIFEST: content, **read_listed(parse_manifest(content, name), name, read, whole)}
    try:
        files = _with_mlflow(left_until(deadline), lambda: _download(staged, registry_uri, name, whole))
    except CalmlflowError:
        raise
    except ModuleNotFoundError as error:
        what = f"its tracking server gave no {MANIFEST}, and its artifact store cannot be asked without {error.name}"
        raise unavailable(what) from error
    except Exception as error:
        # MLflow, requests and boto3 raise exceptions of their own.
        raise unavailable("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__) from error
    staged.check_manifest(files[MANIFEST])
    return files


def _download(staged: StagedVersion, registry_uri: str, name: str, whole: bool) -> dict[str, bytes]:
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
        return {MANIFEST: (folder / MANIFEST).read_bytes(), **read_files(folder, read_manifest(folder), whole)}


# -- Answers of the registry ------------------------------------------------------------------------------------------


def get_json(registry_uri: str, path: str, key: str, timeout_s: float | None = None) -> dict[str, Any] | None:
    """Send one GET request; None if MLflow knows no such model, stage, version or alias.

    An answer holds ``key``, or nothing at all: what another server answers must not pass for an empty stage. Other keys
    may stand beside it.
    """
    shown = hide_password(registry_uri)
    status, body = get(registry_uri, path, timeout_s or settings.timeout_s())
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    code = str(answer.get("error_code", "")) if isinstance(answer, dict) else ""
    # MLflow answers RESOURCE_DOES_NOT_EXIST to an unknown model, and INVALID_PARAMETER_VALUE to an unknown alias.
    if status != 200 and code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return None
    if status in (404, 405, 501):
        raise NoEndpointError(f"{shown} answered with status {status}; expected an MLflow server's registry there")
    if code == "FEATURE_DISABLED" and settings.workspace():
        raise RegistryUnavailableError(
            f"{shown} has no workspaces; expected a server that runs with --enable-workspaces, or no MLFLOW_WORKSPACE"
        )
    if status != 200 or not isinstance(answer, dict) or (answer and key not in answer):
        what = code[:60] or ("no JSON" if answer is None else f"no {key}")
        raise RegistryUnavailableError(f"{shown} answered with status {status} ({what}); expected an MLflow server")
    return answer


def left_until(deadline: float) -> float:
    """Seconds until a deadline of the monotonic clock; a little, where it has passed."""
    return max(deadline - time.monotonic(), 0.001)


def _with_mlflow(timeout_s: float, work: Callable[[], T]) -> T:
    """Run work that needs MLflow within ``timeout_s``, not counting the import of MLflow."""
    within(IMPORT_S, lambda: importlib.import_module("mlflow.artifacts"))
    return within(timeout_s, work)
