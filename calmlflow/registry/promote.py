"""A version moves to a stage; the one before it is archived; aliases follow."""

import warnings

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, STAGES, parse_stage

# Stages are the interface that the users asked for; aliases of the same names are kept for the day MLflow drops them.
warnings.filterwarnings("ignore", message=".*[Ss]tages? (is|are|has been) deprecated.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*deprecated since 2.9.*", category=FutureWarning)


def promote(stage: str, version: int | None = None, model: str = BUNDLE_MODEL) -> ModelVersion:
    """Move a version to a stage.

    The version that held the stage is archived, and the aliases of the same names in lower case are set to match.
    Promoting a version to the stage it is in changes nothing.

    Parameters
    ----------
    stage : str
        Staging, Production or Archived.
    version : int, optional
        Default: for Production the version in Staging (or the one that is there already), for Staging the newest one
        that has no stage or is there already.
    model : str
        Registered model.

    Raises
    ------
    InputError
        No such stage, model or version.
    """
    stage = parse_stage(stage)
    client = MlflowClient()
    challenger = _choose(client, model, version, stage)
    if challenger.current_stage != stage:
        challenger = client.transition_model_version_stage(
            model, challenger.version, stage, archive_existing_versions=stage in ("Staging", "Production")
        )
    mirror_aliases(client, model)
    return challenger


def staged_versions() -> dict[str, dict[str, list[int]]]:
    """Versions of each registered model of calmlflow by stage, ascending."""
    client = MlflowClient()
    found: dict[str, dict[str, list[int]]] = {}
    for model in (BUNDLE_MODEL, *NETWORK_MODELS.values()):
        by_stage = found.setdefault(model, {})
        for version in client.search_model_versions(f"name = '{model}'"):
            by_stage.setdefault(str(version.current_stage), []).append(int(version.version))
    return {model: {stage: sorted(numbers) for stage, numbers in by_stage.items()} for model, by_stage in found.items()}


def mirror_aliases(client: MlflowClient, model: str) -> None:
    """Make the aliases ``staging``, ``production`` and ``archived`` name the newest version of each stage."""
    aliases = client.get_registered_model(model).aliases
    staged = {
        version.current_stage: str(version.version) for version in client.get_latest_versions(model, list(STAGES[1:]))
    }
    for stage in STAGES[1:]:
        alias, version = stage.lower(), staged.get(stage)
        if version is None and alias in aliases:
            client.delete_registered_model_alias(model, alias)
        elif version is not None and str(aliases.get(alias)) != version:
            client.set_registered_model_alias(model, alias, version)


def _choose(client: MlflowClient, model: str, version: int | None, stage: str) -> ModelVersion:
    try:
        if version is not None:
            return client.get_model_version(model, str(version))
        client.get_registered_model(model)
        versions = client.search_model_versions(f"name = '{model}'")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            what = f"version {version} of {model}" if version is not None else f"registered model {model}"
            raise InputError(f"{what} does not exist in the registry; expected a registered version") from None
        raise CalmlflowError(f"the registry cannot look up {model}: {error.message.splitlines()[0]}") from None
    if stage == "Archived":
        raise InputError("no version was named to archive; expected one: say which with its number")
    # Left to itself, a version only moves up: one that has been in Production never leaves it by a repeated command.
    wanted = ("Staging", "Production") if stage == "Production" else ("None", "Staging")
    candidates = [found for found in versions if found.current_stage in wanted]
    staged = [found for found in candidates if found.current_stage == "Staging"]
    if stage == "Production" and staged:
        candidates = staged
    if not candidates:
        raise InputError(
            f"no version of {model} is in stage {' or '.join(wanted)}; expected one: register a training first, or "
            "name a version"
        )
    return max(candidates, key=lambda found: int(found.version))
