"""Which version a stage holds, and its files in a local cache.

The question to the registry is one small HTTP request made with the standard library; MLflow is imported only to fetch
a version that is not on disk yet, or for a registry that is no HTTP server.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.predictor.bundle import MANIFEST, Bundle, read_manifest
from calmlflow.predictor.registry_http import RegistryUnavailableError, get_json, public_uri

log = logging.getLogger(__name__)


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
    answer = get_json(
        registry_uri, f"/api/2.0/mlflow/registered-models/get-latest-versions?name={model}&stages={quote(stage)}"
    )
    versions = answer.get("model_versions") if answer else None
    if not versions:
        answer = get_json(
            registry_uri, f"/api/2.0/mlflow/registered-models/alias?name={model}&alias={quote(stage.lower())}"
        )
        versions = [answer.get("model_version")] if answer else []
    try:
        found = StagedVersion(str(versions[0]["version"]), str(versions[0]["source"])) if versions else None
    except (TypeError, KeyError, IndexError):
        found = StagedVersion("", "")
    if found and not found.version.isdecimal():
        raise RegistryUnavailableError(
            f"{public_uri(registry_uri)} named the version {found.version!r}; expected a number, as MLflow gives"
        )
    return found


def _ask_mlflow(stage: str, registry_uri: str) -> StagedVersion | None:
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=settings.tracking_uri(), registry_uri=registry_uri)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            versions = client.get_latest_versions(settings.BUNDLE_MODEL, [stage])
        found = versions[0] if versions else client.get_model_version_by_alias(settings.BUNDLE_MODEL, stage.lower())
    except Exception as error:
        # MLflow's own kind, or that of the database or file store behind it.
        reason = getattr(error, "error_code", type(error).__name__)
        if reason in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryUnavailableError(
            f"{public_uri(registry_uri)} cannot be asked ({reason}); expected a model registry"
        ) from None
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
        """Load a version, from disk if it is there and whole, else from the registry.

        Raises
        ------
        CalmlflowError
            It can be had from neither, the folder cannot be written, or the version is no bundle.
        """
        folder = self.path(staged)
        if folder.is_dir():
            try:
                return Bundle.load(folder, settings.NETWORKS)
            except InputError:
                # Damaged on disk: fetch it again, as if it had never been here.
                shutil.rmtree(folder, ignore_errors=True)
        try:
            return self._fetch(staged, folder)
        except OSError as error:
            raise CalmlflowError(
                f"cache folder {self.folder} cannot be written ({error.strerror}); expected a folder of yours: "
                "name one with CALMLFLOW_CACHE"
            ) from None

    def path(self, staged: StagedVersion) -> Path:
        """Folder of the files of a version that was loaded."""
        return self.folder / staged.folder

    def remember(self, stage: str, staged: StagedVersion) -> None:
        """Note what a stage holds, for a time when the registry cannot be asked; a failure to is only logged."""
        text = json.dumps({"version": staged.version, "source": staged.source})
        path = self.folder / f"{stage}.json"
        try:
            if not path.exists() or path.read_bytes() != text.encode():
                with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".note-", delete=False) as file:
                    file.write(text)
                Path(file.name).replace(path)
        except OSError as error:
            log.warning("%s cannot be written (%s)", path, error.strerror)

    def recall(self, stage: str) -> StagedVersion | None:
        """What a stage held when the registry was last asked, or None."""
        try:
            noted = json.loads((self.folder / f"{stage}.json").read_text())
            return StagedVersion(str(noted["version"]), str(noted["source"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _fetch(self, staged: StagedVersion, folder: Path) -> Bundle:
        """Download a version beside the cache, check it, and move it into place in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".fetch-") as temporary:
            downloaded = _download(staged, self._registry_uri, temporary)
            bundle = Bundle.load(downloaded, settings.NETWORKS)
            try:
                downloaded.rename(folder)
            except OSError:
                # Another process was first; its copy is as good if it is whole, and ours is in memory already.
                read_manifest(folder)
            return bundle


def _download(staged: StagedVersion, registry_uri: str, target: str) -> Path:
    """Fetch the bundle of a version with MLflow, which knows every kind of artifact store."""
    # As quick to give up as the rest of the predictor; a user's own setting counts.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # Bars of MLflow's own would be drawn where nobody looks.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    # Where a version's artifacts lie is known to the tracking server, whatever the registry.
    mlflow.set_tracking_uri(settings.tracking_uri())
    uri = f"models:/{settings.BUNDLE_MODEL}/{staged.version}"
    try:
        mlflow.artifacts.download_artifacts(uri, dst_path=target, registry_uri=registry_uri)
    except Exception as error:
        # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
        raise RegistryUnavailableError(
            f"version {staged.version} of {settings.BUNDLE_MODEL} cannot be downloaded from "
            f"{public_uri(registry_uri)} ({type(error).__name__}); expected its artifacts"
        ) from None
    # In a logged model the bundle lies among the artifacts; a version may also be a bundle as such.
    manifests = sorted(Path(target).rglob(MANIFEST))
    if not manifests:
        raise InputError(f"version {staged.version} of {settings.BUNDLE_MODEL} holds no {MANIFEST}; expected a bundle")
    return manifests[0].parent
