"""Which version a stage holds, and its files in a local cache.

The question to the registry is one small HTTP request made with the standard library; MLflow is imported only to fetch
a version that is not on disk yet, or for a registry that is no HTTP server.
"""

import base64
import hashlib
import http.client
import json
import os
import shutil
import ssl
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.predictor.bundle import MANIFEST, Bundle, read_manifest

MAX_RESPONSE_BYTES = 4_194_304


class RegistryUnavailableError(CalmlflowError):
    """The registry could not be asked, or what it said cannot be used."""


class NoSuchVersionError(CalmlflowError):
    """The registry answered: no version is in that stage."""


@dataclass(frozen=True)
class StagedVersion:
    """The version of the bundle that a stage holds."""

    version: str
    source: str

    @property
    def folder(self) -> str:
        """Name in the cache. The source is part of it: a registry that was set up anew counts from 1 again."""
        return f"{self.version}-{hashlib.sha256(self.source.encode()).hexdigest()[:12]}"


def resolve_stage(stage: str, registry_uri: str) -> StagedVersion:
    """Ask the registry which version of the bundle a stage holds, or else the alias of the same name.

    Raises
    ------
    RegistryUnavailableError
        No usable answer within `calmlflow.settings.timeout_s`.
    NoSuchVersionError
        Neither stage nor alias holds a version.
    """
    found = (
        _ask_http(stage, registry_uri)
        if registry_uri.startswith(("http://", "https://"))
        else _ask_mlflow(stage, registry_uri)
    )
    if found is None:
        raise NoSuchVersionError(
            f"no version of {settings.BUNDLE_MODEL} is in stage {stage} on {public_uri(registry_uri)}; expected one: "
            f"promote a version with `calmlflow promote --stage {stage}`"
        )
    return found


def _ask_http(stage: str, registry_uri: str) -> StagedVersion | None:
    model = quote(settings.BUNDLE_MODEL)
    answer = _get(
        registry_uri, f"/api/2.0/mlflow/registered-models/get-latest-versions?name={model}&stages={quote(stage)}"
    )
    versions = answer.get("model_versions") if answer else None
    if not versions:
        answer = _get(
            registry_uri, f"/api/2.0/mlflow/registered-models/alias?name={model}&alias={quote(stage.lower())}"
        )
        versions = [answer.get("model_version")] if answer else []
    try:
        return StagedVersion(str(versions[0]["version"]), str(versions[0]["source"])) if versions else None
    except (TypeError, KeyError, IndexError):
        raise RegistryUnavailableError(
            f"{public_uri(registry_uri)} did not answer as an MLflow registry does"
        ) from None


def _get(registry_uri: str, path: str) -> dict[str, Any] | None:
    """One GET request; None where the registry has no such model, stage or alias."""
    address = urlsplit(registry_uri)
    shown = public_uri(registry_uri)
    timeout = settings.timeout_s()
    try:
        if address.scheme == "https":
            tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
            connection = http.client.HTTPSConnection(address.hostname or "", address.port, timeout=timeout, context=tls)
        else:
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)  # type: ignore[assignment]
        try:
            connection.request(
                "GET", address.path.rstrip("/") + path, headers=_authorization(address.username, address.password)
            )
            response = connection.getresponse()
            body = response.read(MAX_RESPONSE_BYTES)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise RegistryUnavailableError(
            f"no MLflow server answers at {shown} ({reason}); expected one: set MLFLOW_TRACKING_URI, or start the "
            "embedded one with `calmlflow server --detach`"
        ) from None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RegistryUnavailableError(
            f"{shown} answered with status {response.status} and no JSON; expected an MLflow server"
        )
    if response.status == 200:
        return answer
    # MLflow says RESOURCE_DOES_NOT_EXIST for an unknown model, and INVALID_PARAMETER_VALUE for an unknown alias.
    if answer.get("error_code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return None
    raise RegistryUnavailableError(
        f"{shown} answered with status {response.status} ({answer.get('error_code')}); expected 200"
    )


def _authorization(username: str | None, password: str | None) -> dict[str, str]:
    """The header that MLflow's own client would send."""
    username = os.environ.get("MLFLOW_TRACKING_USERNAME") or username
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or password
    if username and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def public_uri(uri: str) -> str:
    """A URI without user and password, for logs and errors."""
    address = urlsplit(uri)
    if not address.username and not address.password:
        return uri
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _ask_mlflow(stage: str, registry_uri: str) -> StagedVersion | None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(registry_uri=registry_uri)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            versions = client.get_latest_versions(settings.BUNDLE_MODEL, [stage])
        found = versions[0] if versions else client.get_model_version_by_alias(settings.BUNDLE_MODEL, stage.lower())
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryUnavailableError(f"{public_uri(registry_uri)} cannot be asked ({error.error_code})") from None
    return StagedVersion(str(found.version), str(found.source))


class Cache:
    """Bundles of one registry on disk, a folder per version, and for each stage the version it last held."""

    def __init__(self, registry_uri: str, root: Path | None = None):
        self._registry_uri = registry_uri
        # Two registries must not share versions.
        self.folder = (root or settings.cache_dir()) / hashlib.sha256(public_uri(registry_uri).encode()).hexdigest()[
            :12
        ]

    def load(self, staged: StagedVersion) -> Bundle:
        """Load a version, from disk if it is there and whole, else from the registry."""
        folder = self.folder / staged.folder
        if folder.is_dir():
            try:
                return Bundle.load(folder)
            except InputError:
                # Damaged on disk: fetch it again, as if it had never been here.
                shutil.rmtree(folder, ignore_errors=True)
        self._fetch(staged, folder)
        return Bundle.load(folder)

    def remember(self, stage: str, staged: StagedVersion) -> None:
        """Note what a stage holds, for a time when the registry cannot be asked."""
        text = json.dumps({"version": staged.version, "source": staged.source})
        path = self.folder / f"{stage}.json"
        if not path.exists() or path.read_text() != text:
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".", delete=False) as file:
                file.write(text)
            Path(file.name).replace(path)

    def recall(self, stage: str) -> StagedVersion | None:
        """What a stage held when the registry was last asked, or None."""
        try:
            noted = json.loads((self.folder / f"{stage}.json").read_text())
            return StagedVersion(noted["version"], noted["source"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _fetch(self, staged: StagedVersion, folder: Path) -> None:
        """Download a version beside the cache, check it, and move it into place in one step."""
        import mlflow.artifacts

        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".fetch-") as temporary:
            try:
                mlflow.artifacts.download_artifacts(
                    f"models:/{settings.BUNDLE_MODEL}/{staged.version}",
                    dst_path=temporary,
                    registry_uri=self._registry_uri,
                )
            except Exception as error:
                # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
                raise RegistryUnavailableError(
                    f"version {staged.version} of {settings.BUNDLE_MODEL} cannot be downloaded from "
                    f"{public_uri(self._registry_uri)} ({type(error).__name__}); expected its artifacts"
                ) from None
            manifests = sorted(Path(temporary).rglob(MANIFEST))
            if not manifests:
                raise InputError(
                    f"version {staged.version} of {settings.BUNDLE_MODEL} holds no {MANIFEST}; expected a bundle"
                )
            Bundle.load(manifests[0].parent)
            try:
                manifests[0].parent.rename(folder)
            except OSError:
                # Another process was first; its copy is as good if it is whole.
                read_manifest(folder)
