"""Every version at a glance: its stage, its scores, the jobs it saw, and where it is served."""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.registry_client import StagedVersion
from calmlflow.registry.lineage import HEADLINES
from calmlflow.registry.versions import EXCLUSIVE, all_versions, explained


def overview(client: MlflowClient) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Registered model -> stage -> versions, newest first; ready for JSON.

    A version has ``version``, ``created`` (ISO 8601, UTC) and ``age_days``, ``status`` (READY), ``data`` (URI of its
    jobs), ``jobs`` (how many), ``newest_job`` (date) and ``data_age_days``, ``scores`` (target -> score -> value, of
    its held-out jobs), ``runs`` (network -> run id), ``gate`` (passed, refused or forced), ``aliases``, ``uri`` (what
    it is served by) and ``cached_here`` (whether the predictor of this machine has it on disk). What a version does
    not know of itself is None or empty.

    Raises
    ------
    CalmlflowError
        The registry cannot be asked.
    """
    return {model: _by_stage(client, model) for model in (settings.BUNDLE_MODEL, *settings.NETWORK_MODELS.values())}


def _by_stage(client: MlflowClient, model: str) -> dict[str, list[dict[str, Any]]]:
    try:
        aliases = client.get_registered_model(model).aliases
        versions = sorted(all_versions(client, model), key=lambda found: int(found.version), reverse=True)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise explained(error, f"registered model {model}") from None
    found: dict[str, list[dict[str, Any]]] = {}
    for version in versions:
        names = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
        found.setdefault(str(version.current_stage), []).append(_described(version, names))
    return {stage: found[stage] for stage in ("Production", "Staging", "None", "Archived") if stage in found}


def _described(version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    tags: Mapping[str, str] = version.tags
    stage = version.current_stage
    created_s = version.creation_timestamp / 1000
    newest_s = _number(tags.get("newest_job"))
    # 0 stands for a table without timestamps; past the year 5138 it is no second.
    known = newest_s is not None and 0 < newest_s < 1e11
    jobs = _number(tags.get("jobs"))
    scores = {
        target: {name: value for name in names if (value := _number(tags.get(f"score.{target}.{name}"))) is not None}
        for target, names in HEADLINES.items()
    }
    staged = StagedVersion(str(version.version), str(version.source))
    return {
        "version": int(version.version),
        "created": datetime.fromtimestamp(created_s, UTC).isoformat(timespec="seconds"),
        "age_days": _days_since(created_s),
        "status": version.status,
        "data": tags.get("data"),
        "jobs": None if jobs is None else int(jobs),
        "newest_job": datetime.fromtimestamp(newest_s or 0, UTC).date().isoformat() if known else None,
        "data_age_days": _days_since(newest_s or 0) if known else None,
        "scores": {target: found for target, found in scores.items() if found},
        "runs": {name.removeprefix("run."): run_id for name, run_id in tags.items() if name.startswith("run.")},
        "gate": tags.get("gate"),
        "aliases": aliases,
        "uri": f"models:/{version.name}/{stage if stage in EXCLUSIVE else version.version}",
        "cached_here": Cache(settings.registry_uri()).path(staged).is_dir(),
    }


def _days_since(epoch_s: float) -> float:
    return round((time.time() - epoch_s) / 86_400, 1)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
