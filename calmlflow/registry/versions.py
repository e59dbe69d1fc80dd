"""Read a registered model: its versions, their stages, aliases and history."""

import getpass
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.registry_client import PATIENCE_S, get_json, is_http
from calmlflow.registry.history import Event, planned_events, recorded_events
from calmlflow.storage.files import is_locked

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

EXCLUSIVE = ("Staging", "Production")
"""Stages that hold one version: the one before goes to Archived."""

PAGE = 100
"""Versions that one request asks for."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model; texts that the registry does not have are empty."""

    model: str
    number: int
    stage: str
    status: str
    source: str
    run_id: str
    description: str
    created_ms: int
    tags: Mapping[str, str]

    def __str__(self) -> str:
        """Name it in a sentence."""
        return f"version {self.number} of {self.model}"

    @property
    def past_the_gate(self) -> str:
        """How a version moved that no promotion moved, and what the gate said of it."""
        said = {"passed": "", "forced": "", "refused": ", which had refused it"}
        return f"without the gate{said.get(self.tags.get('gate', ''), ', which never judged it')}"


@dataclass(frozen=True)
class State:
    """A registered model at one moment."""

    model: str
    versions: Mapping[int, Version]
    aliases: Mapping[str, int]

    @cached_property
    def stages(self) -> dict[int, str]:
        """Version -> stage."""
        return {number: version.stage for number, version in self.versions.items()}

    @cached_property
    def events(self) -> list[Event]:
        """The history, oldest first."""
        found = [event for version in self.versions.values() for event in recorded_events(version.tags, str(version))]
        return sorted(found, key=lambda event: (event.number, event.at))

    @cached_property
    def planned(self) -> list[Event]:
        """Moves that were planned, made or not."""
        return [event for version in self.versions.values() for event in planned_events(version.tags, str(version))]

    @property
    def next_number(self) -> int:
        """Number of the next event."""
        return 1 + max((event.number for event in (*self.events, *self.planned)), default=0)

    def held_by(self, stage: str) -> int | None:
        """The newest version in a stage."""
        return max((number for number, found in self.stages.items() if found == stage), default=None)

    @cached_property
    def told(self) -> dict[int, str]:
        """Version -> stage, as the history left it."""
        found = {}
        for event in self.events:
            if event.before is not None:
                found[event.before] = "Archived"
            found[event.version] = event.stage
        return found

    def unrecorded(self) -> list[Version]:
        """Versions that came to Staging or Production, or left it, and the history does not say how."""
        moved = [v for v in self.versions.values() if v.stage != self.told.get(v.number, "None")]
        came = [v for v in moved if v.stage in EXCLUSIVE]
        left = [v for v in moved if v not in came and self.told.get(v.number) in EXCLUSIVE]
        return came + [v for v in left if not self._was_replaced(v.number)]

    def _was_replaced(self, number: int) -> bool:
        """Whether another version holds the place that a version had, or was about to take: that one archived it."""
        planned = {event.stage for event in self.planned if event.version == number}
        return any(self.held_by(stage) for stage in {self.told[number], *planned})

    def cut_short(self, number: int) -> Event | None:
        """The move that brought a version to its stage and was not recorded; None where nobody planned it."""
        stage = self.stages[number]
        last = max((event.number for event in self.events if event.stage == stage), default=0)
        found = [e for e in self.planned if (e.version, e.stage) == (number, stage) and e.number > last]
        return max(found, key=lambda event: event.number, default=None)

    def was_rolled_back(self, number: int) -> bool:
        """Whether a rollback left a version that did not go to Production again."""
        marks = [e for e in planned_events(self.versions[number].tags, str(number)) if e.action == "rollback"]
        came = [e.number for e in self.events if (e.version, e.stage) == (number, "Production")]
        return any(mark.number > max(came, default=0) for mark in marks)

    @property
    def has_stages(self) -> bool:
        """Whether any version is in one; else aliases are all there is."""
        return bool(set(self.stages.values()) - {"None"})

    def wrong_aliases(self) -> dict[str, int | None]:
        """Aliases that do not name the newest version of their stage -> that version, None where there is none."""
        if not self.has_stages:
            # A server without stages: its aliases are all there is.
            return {}
        right = {stage.lower(): self.held_by(stage) for stage in settings.STAGES[1:]}
        return {alias: number for alias, number in right.items() if self.aliases.get(alias) != number}


def check_named(*variables: str) -> None:
    """Raise a CalmlflowError where none of these variables names a server and no embedded server of `home` runs.

    By its default port alone a command might reach the server of another folder.
    """
    if not any(map(os.environ.get, variables)) and not is_locked(settings.home() / "server.lock"):
        raise CalmlflowError(
            f"no MLflow server is named and none runs in {settings.home()}; expected MLFLOW_TRACKING_URI, or an "
            "embedded server of this folder: start it with `calmlflow server --detach`"
        )


def read_state(model: str, registry_uri: str = "") -> State:
    """Ask the registry (default `settings.registry_uri`) for a registered model; an InputError where it has none."""
    if not registry_uri:
        check_named("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI")
    uri = registry_uri or settings.registry_uri()
    # Plain HTTP saves the import of MLflow, which takes longer than all else that `calmlflow stages` does.
    found, versions = (_by_http if is_http(uri) else _by_client)(uri, model)
    aliases = {str(entry["alias"]): int(entry["version"]) for entry in found.get("aliases", ())}
    return State(model, {v.number: v for v in sorted(map(_version, versions), key=lambda v: v.number)}, aliases)


def _by_http(uri: str, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def ask(path: str, query: dict[str, Any], key: str) -> dict[str, Any]:
        found = get_json(uri, f"/api/2.0/mlflow/{path}?{urlencode(query)}", key, PATIENCE_S)
        if found is None:
            raise _unknown(f"registered model {model}")
        return found

    registered = ask("registered-models/get", {"name": model}, "registered_model")["registered_model"]
    query = {"filter": f"name = '{model}'", "max_results": PAGE}
    versions: list[dict[str, Any]] = []
    while True:
        page = ask("model-versions/search", query, "model_versions")
        versions += page.get("model_versions", [])
        if not page.get("next_page_token"):
            return registered, versions
        query["page_token"] = page["next_page_token"]


def _by_client(uri: str, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils import get_results_from_paginated_fn
    from mlflow.utils.proto_json_utils import message_to_json

    client = MlflowClient(registry_uri=uri)
    try:
        registered = client.get_registered_model(model)
        versions = get_results_from_paginated_fn(
            lambda count, token: client.search_model_versions(f"name = '{model}'", count, page_token=token), PAGE
        )
    except MlflowException as error:
        raise explained(error, f"registered model {model}") from error
    found, *listed = (json.loads(message_to_json(entity.to_proto())) for entity in (registered, *versions))
    return found, listed


def _version(found: Mapping[str, Any]) -> Version:
    status, source, run_id, description = (
        str(found.get(name, "")) for name in ("status", "source", "run_id", "description")
    )
    tags = {str(tag["key"]): str(tag.get("value", "")) for tag in found.get("tags", ())}
    stage, created_ms = str(found.get("current_stage") or "None"), int(found.get("creation_timestamp", 0))
    number = int(found["version"])
    return Version(str(found["name"]), number, stage, status, source, run_id, description, created_ms, tags)


def find_version(text: str, model: str = settings.BUNDLE_MODEL) -> Version:
    """Find a version by what a user calls it; an InputError where there is none.

    Parameters
    ----------
    text : str
        As for `settings.parse_choice`, or ``models:/NAME/`` and one of these (``models:/NAME@alias`` too). A registry
        without stages has the aliases of the same names.
    model : str
        Registered model, where ``text`` names none.
    """
    name, which = model, text
    if uri := re.fullmatch(r"models:/+([^/@]+)(?:/([^/@]+)|(@[^/@]+))", text):
        name, which = uri[1], uri[2] or uri[3]
    elif text.startswith("models:"):
        raise InputError(f"{text[:100]!r} names no version; expected models:/NAME/ and {settings.CHOICES}")
    choice = settings.parse_choice(which)
    state = read_state(name)
    number: int | None
    if choice in settings.STAGES:
        number = state.held_by(choice) or state.aliases.get(choice.lower())
        if number is None:
            raise InputError(f"no version of {name} is in {choice}; expected one")
    elif choice == settings.LATEST:
        number = max(state.versions, default=None)
    else:
        number = int(choice) if choice.isdecimal() else state.aliases.get(choice[1:])
    if number is None or number not in state.versions:
        raise InputError(f"version {choice} of {name} does not exist in the registry; expected {settings.CHOICES}")
    return state.versions[number]


def who() -> str:
    """Name that moves are recorded under: the user of the tracking server, or else of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return "unknown"


def explained(
    error: "MlflowException", what: str, act: str = "read", permission: str = "READ on the registered model"
) -> CalmlflowError:
    """Translate what MLflow refuses to do with a model, a version or an experiment into one sentence."""
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return _unknown(what)
    if error.error_code == "UNAUTHENTICATED":
        return CalmlflowError(
            f"the server does not know the name or password of {who()}; expected MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user"
        )
    if error.error_code == "PERMISSION_DENIED":
        return CalmlflowError(
            f"the server lets {who()} not {act} {what}; expected the permission {permission} "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who asks)"
        )
    reason = settings.hide_password(str(error.message).strip().partition("\n")[0])
    return CalmlflowError(f"the server cannot {act} {what}: {reason or type(error).__name__}")


def _unknown(what: str) -> InputError:
    return InputError(f"{what} does not exist in the registry; expected a registered version")
