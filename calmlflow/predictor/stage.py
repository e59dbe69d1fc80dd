"""Which version of the bundle a stage holds: one small HTTP request, made with the standard library.

MLflow is imported only for a registry that is no HTTP server.
"""

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.predictor.registry_client import NoEndpointError, RegistryUnavailableError, get_json, is_http, within
from calmlflow.settings import hide_password

IMPORT_S = 20.0
"""What MLflow may take to be imported, where two cores have other work."""


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
        No usable answer within `calmlflow.settings.timeout_s` (and `IMPORT_S` where MLflow is needed to ask).
    NoSuchVersionError
        Neither stage nor alias holds a version.
    """
    found = _ask_http(stage, registry_uri) if is_http(registry_uri) else _ask_mlflow(stage, registry_uri)
    if found is None:
        raise NoSuchVersionError(
            f"no version of {settings.BUNDLE_MODEL} is in stage {stage} on {hide_password(registry_uri)}; expected "
            f"one: promote a version with `calmlflow promote --stage {stage}`"
        )
    return found


def _ask_http(stage: str, registry_uri: str) -> StagedVersion | None:
    model = quote(settings.BUNDLE_MODEL)
    query = f"get-latest-versions?name={model}&stages={quote(stage)}"
    versions = None
    try:
        answer = get_json(registry_uri, f"/api/2.0/mlflow/registered-models/{query}", ("model_versions",)) or {}
        versions = answer.get("model_versions", [])
    except NoEndpointError:
        # A server without stages, as MLflow announces it; if it has no aliases either, it is no registry.
        pass
    if not versions:
        query = f"alias?name={model}&alias={quote(stage.lower())}"
        try:
            named = get_json(registry_uri, f"/api/2.0/mlflow/registered-models/{query}", ("model_version",))
            versions = [named.get("model_version")] if named else []
        except NoEndpointError:
            if versions is None:
                raise
    try:
        found = StagedVersion(str(versions[0]["version"]), str(versions[0]["source"])) if versions else None
    except (TypeError, KeyError, IndexError):
        found = StagedVersion("", "")
    if found and not (re.fullmatch("[0-9]{1,18}", found.version) and found.source.isprintable()):
        raise RegistryUnavailableError(
            f"{hide_password(registry_uri)} named the version {found.version[:60]!r}; expected a whole number"
        )
    return found


def _ask_mlflow(stage: str, registry_uri: str) -> StagedVersion | None:
    path = registry_uri.removeprefix("sqlite:///").partition("?")[0]
    if path not in (registry_uri, "", ":memory:") and not Path(path).exists():
        # MLflow would make an empty one, in which nobody would look for what was lost.
        raise RegistryUnavailableError(
            f"the registry {hide_password(registry_uri)} does not exist; expected a database"
        )
    try:
        # MLflow tries a database that does not answer for minutes.
        return within(IMPORT_S + settings.timeout_s(), lambda: _ask_client(stage, registry_uri))
    except TimeoutError:
        raise RegistryUnavailableError(
            f"{hide_password(registry_uri)} cannot be asked (no answer in time); expected a model registry"
        ) from None


def _ask_client(stage: str, registry_uri: str) -> StagedVersion | None:
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
            f"{hide_password(registry_uri)} cannot be asked ({reason}); expected a model registry"
        ) from None
    return StagedVersion(str(found.version), str(found.source))
