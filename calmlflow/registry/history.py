"""What happened to the stages of a registered model: one event per move, kept as tags of the model itself.

An event is written before anything moves, with all that the move needs, and closed after it. An open event is a move
that was cut short: whoever comes next can finish it.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel

log = logging.getLogger(__name__)

PREFIX = "calmlflow.history."
MAX_REASON = 500
"""Characters."""

MAX_EVENT = 5000
"""Characters that a registry's database keeps in a tag."""


class Check(NamedTuple):
    """One check of the gate: its name, whether it passed, what was found, and what was expected."""

    name: str
    passed: bool
    figure: str
    expected: str


@dataclass(frozen=True)
class Event:
    """One move of a version to a stage.

    Attributes
    ----------
    number : int
        Counts from 1 for each registered model.
    action : {"promotion", "rollback", "repair"}
    version, before : int, int or None
        The version that moved, and the one that held the stage until then.
    stage : str
    who, at, reason : str
        ``at`` is ISO 8601, UTC.
    forced : bool
        Went through although a check failed.
    run_id : str
        The promotion run, empty for a rollback.
    checks : tuple of Check
    is_open : bool
        The move has begun and is not known to have ended.
    """

    number: int
    action: str
    version: int
    stage: str
    before: int | None
    who: str
    at: str
    reason: str = ""
    forced: bool = False
    run_id: str = ""
    checks: tuple[Check, ...] = ()
    is_open: bool = True

    def to_json(self) -> str:
        """The text of the tag. Checks are told as fully as it has room for: those that failed before all others."""
        failed = [check for check in self.checks if not check.passed]
        brief = [check if not check.passed else check._replace(expected="") for check in self.checks]
        cut = [check._replace(figure=check.figure[:100], expected=check.expected[:100]) for check in failed]
        for checks in (self.checks, brief, failed, cut, cut[:5]):
            fields = asdict(self) | {"checks": [list(check) for check in checks]}
            text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
            if len(text) <= MAX_EVENT:
                break
        return text

    @classmethod
    def from_json(cls, text: str) -> "Event":
        """Read the text of a tag; a ValueError or TypeError where it is none."""
        fields = dict(json.loads(text))
        checks = tuple(
            Check(printable(str(n)), bool(p), printable(str(f)), printable(str(e)))
            for n, p, f, e in fields.pop("checks")
        )
        fields = {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
        event = cls(**fields, checks=checks)
        numbers = (event.number, event.version, event.before or 0)
        if not all(isinstance(number, int) for number in numbers) or not isinstance(event.stage, str):
            raise ValueError("an event's numbers are whole and its stage is text")
        return event


def printable(text: str) -> str:
    """Text without what a terminal would obey: anybody who may edit the registry can write an event."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", " ", text)


def events_of(model: RegisteredModel) -> list[Event]:
    """The events of a registered model, oldest first; a tag that is no event is left out with a warning."""
    events = []
    for key, text in model.tags.items():
        if key.startswith(PREFIX):
            try:
                events.append(Event.from_json(text))
            except (ValueError, TypeError, KeyError, RecursionError):
                log.warning("tag %s of %s is damaged and left out", key, model.name)
    return sorted(events, key=lambda event: event.number)


def read_history(client: MlflowClient, model: str) -> list[Event]:
    """The events of a registered model, oldest first."""
    return events_of(client.get_registered_model(model))


def next_number(tags: Mapping[str, str]) -> int:
    """Number of the next event: above every number in use, also those of damaged tags."""
    used = [key.removeprefix(PREFIX) for key in tags if key.startswith(PREFIX)]
    return 1 + max((int(number) for number in used if number.isdecimal()), default=0)


def write_event(client: MlflowClient, model: str, event: Event) -> None:
    """Write an event, or write it anew."""
    client.set_registered_model_tag(model, _key(event), event.to_json())


def close_event(client: MlflowClient, model: str, event: Event) -> Event:
    """Note that the move has ended."""
    closed = replace(event, is_open=False)
    write_event(client, model, closed)
    return closed


def withdraw_event(client: MlflowClient, model: str, event: Event) -> None:
    """Take an event back whose move has changed nothing."""
    client.delete_registered_model_tag(model, _key(event))


def way_back(events: Iterable[Event]) -> list[int]:
    """Versions that were in Production, each once, the way a rollback goes: the last one is in Production now.

    A promotion puts a version on top; a rollback takes off what lies above the version that it goes back to. So two
    rollbacks in a row go back two steps, and never to a version that was rolled back from.
    """
    stack: list[int] = []
    for event in events:
        if event.stage != "Production":
            continue
        if event.before is not None and event.before not in stack[-1:]:
            # Somebody put it there without calmlflow, or before there was a history.
            stack = [*(version for version in stack if version != event.before), event.before]
        if event.action == "rollback" and event.version in stack:
            del stack[stack.index(event.version) + 1 :]
        else:
            stack = [*(version for version in stack if version != event.version), event.version]
    return stack


def _key(event: Event) -> str:
    return f"{PREFIX}{event.number:06d}"
