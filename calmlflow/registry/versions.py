"""What a registered model looks like at one moment: who is in which stage, and how that came."""

import getpass
import os
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.history import Event, events_of, next_number
from calmlflow.settings import hide_password

EXCLUSIVE = ("Staging", "Production")
"""Stages that hold one version: who comes in sends the one before to Archived."""


@dataclass(frozen=True)
class State:
    """What a registered model looked like at one moment.

    Attributes
    ----------
    stages : dict of int to str
        Version -> stage.
    aliases : dict of str to int
    events : tuple of Event
    next_number : int
        Of the next event.
    """

    stages: dict[int, str]
    aliases: dict[str, int]
    events: tuple[Event, ...]
    next_number: int

    def held_by(self, stage: str) -> int | None:
        """The newest version in a stage."""
        return max((version for version, found in self.stages.items() if found == stage), default=None)

    def open_events(self) -> list[Event]:
        """Moves that were cut short, oldest first."""
        return [event for event in self.events if event.is_open]


def read_state(client: MlflowClient, model: str) -> State:
    """Ask the registry; an InputError where there is no such model."""
    try:
        registered = client.get_registered_model(model)
        versions = all_versions(client, model)
    except MlflowException as error:
        raise explained(error, f"registered model {model}") from None
    return State(
        {int(found.version): str(found.current_stage) for found in versions},
        {alias: int(version) for alias, version in registered.aliases.items()},
        tuple(events_of(registered)),
        next_number(registered.tags),
    )


def who() -> str:
    """Name that moves are written down under: the user of the tracking server, or else of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return "unknown"


def now_iso() -> str:
    """The present as events are dated: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def all_versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """Every version of a registered model, however many pages that takes."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{model}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def explained(error: MlflowException, what: str, act: str = "read", permission: str = "READ") -> CalmlflowError:
    """One sentence for what the registry refuses to do with a model or a version."""
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return InputError(f"{what} does not exist in the registry; expected a registered version")
    if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return CalmlflowError(
            f"the registry lets {who()} not {act} {what}; expected the permission {permission} on the registered model "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who asks)"
        )
    reason = hide_password(str(error.message).strip().partition("\n")[0])
    return CalmlflowError(f"the registry cannot {act} {what}: {reason or type(error).__name__}")
