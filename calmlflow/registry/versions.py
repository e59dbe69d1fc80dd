"""Read a registered model: its versions, their stages, aliases and history."""

import getpass
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.registry_client import PATIENCE_S, get_json, is_http
from calmlflow.registry.history import Event, planned_events, recorded_events

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

EXCLUSIVE = ("Staging", "Production")
"""Stages that hold one version: the one before goes to Archived."""

PAGE = 100
"""Versions that one request asks for."""

FORMS = f"a number, {', '.join(settings.STAGES[1:])}, @ALIAS, or models:/NAME/ and one of these"
"""How a user names a version."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model, as the registry holds it.

    Attributes
    ----------
    model, number : str, int
    stage, status : str
    source, run_id, description : str
        Empty where it has none.
    created_ms : int
        Milliseconds since the epoch.
    tags : dict of str to str
    """

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


@dataclass(frozen=True)
class State:
    """A registered model at one moment.

    Attributes
    ----------
    model : str
    versions : dict of int to Version
    aliases : dict of str to int
    """

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

    def is_recorded(self, number: int) -> bool:
        """Whether the history says how a version came to the stage that it is in."""
        stage = self.stages[number]
        came = self._came_to(number, stage)
        return came > 0 and not any(
            event.number > came and (event.before == number if event.stage == stage else event.version == number)
            for event in self.events
        )

    def _came_to(self, number: int, stage: str) -> int:
        """Number of the last event that brought a version to a stage; 0 where there is none."""
        return max(
            (event.number for event in self.events if (event.version, event.stage) == (number, stage)), default=0
        )

    def unrecorded(self) -> list[Version]:
        """Versions in Staging or Production of which the history does not say how they came there."""
        return [v for v in self.versions.values() if v.stage in EXCLUSIVE and not self.is_recorded(v.number)]

    def cut_short(self, number: int) -> Event | None:
        """The move that brought a version to its stage and was not recorded; None where nobody planned it."""
        stage = self.stages[number]
        last = max((event.number for event in self.events if event.stage == stage), default=0)
        found = [e for e in self.planned if (e.version, e.stage) == (number, stage) and e.number > last]
        return max(found, key=lambda event: event.number, default=None)

    def was_rolled_back(self, number: int) -> bool:
        """Whether a rollback left a version that did not go to Production again."""
        marks = [e for e in planned_events(self.versions[number].tags, str(number)) if e.action == "rollback"]
        came = self._came_to(number, "Production")
        return any(mark.number > came for mark in marks)

    def wrong_aliases(self) -> dict[str, int | None]:
        """Aliases that do not name the newest version of their stage -> that version, None where there is none."""
        right = {stage.lower(): self.held_by(stage) for stage in settings.STAGES[1:]}
        return {alias: number for alias, number in right.items() if self.aliases.get(alias) != number}


def read_state(model: str) -> State:
    """Ask the registry for a registered model; an InputError where there is none of that name."""
    uri = settings.registry_uri()
    # Plain HTTP saves the import of MLflow, which takes longer than all else that `calmlflow stages` does. Where a
    # plugin of MLflow's signs the requests, only MLflow can ask.
    signed = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"))
    found, pages = (_by_http if is_http(uri) and not signed else _by_client)(uri, model)
    versions = {int(version["version"]): _version(version) for page in pages for version in page}
    aliases = {str(entry["alias"]): int(entry["version"]) for entry in found.get("aliases", ())}
    return State(model, dict(sorted(versions.items())), aliases)


def _by_http(uri: str, model: str) -> tuple[dict[str, Any], Iterator[list[dict[str, Any]]]]:
    def ask(path: str, query: dict[str, Any], *keys: str) -> dict[str, Any]:
        found = get_json(uri, f"/api/2.0/mlflow/{path}?{urlencode(query)}", keys, PATIENCE_S)
        if found is None:
            raise _unknown(f"registered model {model}")
        return found

    def pages() -> Iterator[list[dict[str, Any]]]:
        query = {"filter": f"name = '{model}'", "max_results": PAGE}
        while True:
            page = ask("model-versions/search", query, "model_versions", "next_page_token")
            yield page.get("model_versions", [])
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    return ask("registered-models/get", {"name": model}, "registered_model")["registered_model"], pages()


def _by_client(uri: str, model: str) -> tuple[dict[str, Any], Iterator[list[dict[str, Any]]]]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.proto_json_utils import message_to_json

    def plain(entity: Any) -> dict[str, Any]:
        return json.loads(message_to_json(entity.to_proto()))

    client = MlflowClient(registry_uri=uri)
    try:
        found = plain(client.get_registered_model(model))
        pages: list[list[dict[str, Any]]] = []
        token = None
        while not pages or token:
            page = client.search_model_versions(f"name = '{model}'", max_results=PAGE, page_token=token)
            pages.append([plain(version) for version in page])
            token = page.token
    except MlflowException as error:
        raise explained(error, f"registered model {model}") from error
    return found, iter(pages)


def _version(found: Mapping[str, Any]) -> Version:
    return Version(
        str(found["name"]),
        int(found["version"]),
        str(found.get("current_stage") or "None"),
        str(found.get("status", "")),
        str(found.get("source", "")),
        str(found.get("run_id", "")),
        str(found.get("description", "")),
        int(found.get("creation_timestamp", 0)),
        {str(tag["key"]): str(tag.get("value", "")) for tag in found.get("tags", ())},
    )


def find_version(text: str, model: str = settings.BUNDLE_MODEL) -> Version:
    """Find a version by what a user calls it.

    Parameters
    ----------
    text : str
        A number, a stage, an ``@alias``, or ``models:/NAME/`` and one of these (``models:/NAME@alias`` too). A registry
        without stages has the aliases of the same names.
    model : str
        Registered model, where ``text`` names none.

    Raises
    ------
    InputError
        There is no such version.
    CalmlflowError
        The registry cannot be asked.
    """
    name, which = model, text
    if uri := re.fullmatch(r"models:/+([^/@]+)(?:/([^/@]+)|(@[^/@]+))", text):
        name, which = uri[1], uri[2] or uri[3]
    is_number = which.isascii() and which.isdecimal()
    is_alias = which.startswith("@") and len(which) > 1
    is_stage = which.lower() in {stage.lower() for stage in settings.STAGES[1:]}
    if not (is_number or is_alias or is_stage):
        raise InputError(f"version {text!r} does not exist; expected {FORMS}")
    state = read_state(name)
    number: int | None
    if is_stage:
        stage = settings.parse_stage(which)
        number = state.held_by(stage) or state.aliases.get(stage.lower())
        if number is None:
            raise InputError(f"no version of {name} is in {stage}; expected one")
    else:
        number = int(which) if is_number else state.aliases.get(which[1:])
    if number is None or number not in state.versions:
        raise InputError(f"version {which} of {name} does not exist in the registry; expected {FORMS}")
    return state.versions[number]


def writing_client() -> "MlflowClient":
    """MLflow's client of the registry that `read_state` reads."""
    from mlflow import MlflowClient

    return MlflowClient(registry_uri=settings.registry_uri())


def who() -> str:
    """Name that moves are recorded under: the user of the tracking server, or else of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return "unknown"


def now_iso() -> str:
    """The present as events are dated: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def explained(error: "MlflowException", what: str, act: str = "read", permission: str = "READ") -> CalmlflowError:
    """Translate what MLflow refuses to do with a model or a version into one sentence."""
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return _unknown(what)
    if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return CalmlflowError(
            f"the registry lets {who()} not {act} {what}; expected the permission {permission} on the registered model "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say who asks)"
        )
    reason = settings.hide_password(str(error.message).strip().partition("\n")[0])
    return CalmlflowError(f"the registry cannot {act} {what}: {reason or type(error).__name__}")


def _unknown(what: str) -> InputError:
    return InputError(f"{what} does not exist in the registry; expected a registered version")
