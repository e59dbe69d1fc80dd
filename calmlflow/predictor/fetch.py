"""The files of a version, from the registry into memory."""

import os
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.manifest import MANIFEST, MAX_BYTES, parse_manifest, read_files, read_listed, read_manifest
from calmlflow.predictor.registry_client import (
    NoEndpointError,
    RegistryUnavailableError,
    get_bytes,
    get_json,
    is_http,
    within,
)
from calmlflow.predictor.stage import StagedVersion
from calmlflow.settings import hide_password

PLACES = ("artifacts/bundle/", "")
"""Where a version's bundle lies: among the artifacts of a logged model, or the version is a bundle as such."""


def fetch(staged: StagedVersion, registry_uri: str, patience_s: float) -> dict[str, bytes]:
    """Fetch the files of a version's bundle, ``bundle.json`` among them, checked against the SHA-256 it lists.

    A tracking server hands them out by HTTP, whatever store they are in; MLflow is imported only where it does not.

    Parameters
    ----------
    staged : StagedVersion
    registry_uri : str
    patience_s : float
        Seconds that all of it may take.

    Raises
    ------
    RegistryUnavailableError
        They cannot be had, or not in time.
    InputError
        The version holds no bundle, or a damaged one.
    """
    name = f"version {staged.version} of {settings.BUNDLE_MODEL}"
    deadline = time.monotonic() + patience_s
    if is_http(registry_uri):
        for place in PLACES:
            content = _get(staged, registry_uri, place + MANIFEST, deadline)
            if content is not None:

                def read(file: str, place: str = place) -> bytes:
                    found = _get(staged, registry_uri, place + file, deadline)
                    if found is None:
                        raise _not_there(name, registry_uri, file)
                    return found

                return {MANIFEST: content, **read_listed(parse_manifest(content, name), name, read)}
        if _is_proxied(staged, registry_uri):
            # MLflow would ask the same server.
            raise _not_there(name, registry_uri, MANIFEST)
    try:
        return within(max(deadline - time.monotonic(), 0.0), lambda: _download(staged, registry_uri, name))
    except TimeoutError:
        raise _not_there(name, registry_uri, "no answer in time") from None


def _get(staged: StagedVersion, registry_uri: str, file: str, deadline: float) -> bytes | None:
    query = urlencode({"path": file, "name": settings.BUNDLE_MODEL, "version": staged.version}, quote_via=quote)
    return get_bytes(registry_uri, f"/model-versions/get-artifact?{query}", MAX_BYTES, deadline)


def _is_proxied(staged: StagedVersion, registry_uri: str) -> bool:
    """Whether nobody but the server enters the store that the version lies in."""
    query = urlencode({"name": settings.BUNDLE_MODEL, "version": staged.version})
    try:
        path = f"/api/2.0/mlflow/model-versions/get-download-uri?{query}"
        answer = get_json(registry_uri, path, ("artifact_uri",)) or {}
    except NoEndpointError:
        return False
    return str(answer.get("artifact_uri")).startswith("mlflow-artifacts:")


def _not_there(name: str, registry_uri: str, what: str) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        f"{name} cannot be downloaded from {hide_password(registry_uri)} ({what}); expected its artifacts"
    )


def _download(staged: StagedVersion, registry_uri: str, name: str) -> dict[str, bytes]:
    """The same with MLflow, which knows every kind of registry and of artifact store."""
    # As quick to give up as the rest of the predictor; a user's own setting counts.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # Bars of MLflow's own would be drawn where nobody looks.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory(prefix="calmlflow-") as target:
            uri = f"models:/{settings.BUNDLE_MODEL}/{staged.version}"
            # Where a version's artifacts lie is known to the tracking server, whatever the registry.
            places = {"tracking_uri": settings.tracking_uri(), "registry_uri": registry_uri}
            download_artifacts(uri, dst_path=target, **places)
            manifests = sorted(Path(target).rglob(MANIFEST))
            if not manifests:
                raise InputError(f"{name} holds no {MANIFEST}; expected a bundle")
            folder = manifests[0].parent
            return {MANIFEST: manifests[0].read_bytes(), **read_files(folder, read_manifest(folder))}
    except CalmlflowError:
        raise
    except Exception as error:
        # Whatever stands between here and the artifact store (MLflow, requests, boto3) raises its own kind.
        raise _not_there(name, registry_uri, type(error).__name__) from None
