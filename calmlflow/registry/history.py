"""Record who moved which version to which stage, when and why, as tags of the version."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from typing import Any

from calmlflow.predictor.registry_client import HISTORY_TAG, PLANNED_TAG

log = logging.getLogger(__name__)

PREFIX = HISTORY_TAG
"""One tag per move that was made, with the move's number."""

PLANNED = PLANNED_TAG
"""Tag of a version that passed the gate: the promotion that comes next, written before the stage changes."""

ROLLED_BACK = "calmlflow.rolled_back"
"""Tag of a version that a rollback leaves: that rollback, written before the stage changes."""

MAX_REASON = 500
"""Characters."""

MAX_FAILED = 10
"""Failed checks that an event names, each with at most 200 characters. The run of the gate has them all."""

MAX_UNDECIDED = 20
"""Names of checks that were not decided, each with at most 80 characters."""


@dataclass(frozen=True)
class Event:
    """One move of a version to a stage."""

    number: int  # counts from 1 for each registered model
    action: str  # promotion, rollback, or outside: a move without the gate that a repair recorded
    version: int
    stage: str
    before: int | None  # the version that held the stage until then
    who: str
    at: str  # ISO 8601, UTC
    reason: str = ""
    forced: bool = False
    run_id: str = ""  # of the gate
    failed: tuple[str, ...] = ()  # checks, a sentence each
    from_stage: str = ""  # of the version, until then
    undecided: tuple[str, ...] = ()  # names of checks that too few jobs told anything about

    @property
    def tag(self) -> str:
        """Name of the tag that records it."""
        return f"{PREFIX}{self.number:06d}"

    def to_json(self) -> str:
        """The text of the tag."""
        lists = {
            "failed": [text[:200] for text in self.failed[:MAX_FAILED]],
            "undecided": [text[:80] for text in self.undecided[:MAX_UNDECIDED]],
        }
        return json.dumps(asdict(self) | lists, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Event":
        """Read the text of a tag; a ValueError or TypeError where it is not an event.

        Fields that only a later release knows are left out.
        """
        known = {field.name for field in fields_of(cls)}
        fields: dict[str, Any] = {name: value for name, value in dict(json.loads(text)).items() if name in known}
        fields |= {name: printable(value) for name, value in fields.items() if isinstance(value, str)}
        # An event of before has none that are not decided.
        lists = {"failed": fields["failed"], "undecided": fields.get("undecided", ())}
        event = cls(**fields | {name: tuple(printable(str(text)) for text in texts) for name, texts in lists.items()})
        if not all(isinstance(number, int) for number in (event.number, event.version, event.before or 0)):
            raise ValueError("the numbers of an event are not whole")
        if not all(isinstance(word, str) for word in (event.action, event.stage, event.who, event.at, event.reason)):
            raise ValueError("the words of an event are not text")
        return event


def printable(text: str) -> str:
    """Replace what a terminal would obey: anybody who may edit the registry can write an event."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", " ", text)


def recorded_events(tags: Mapping[str, str], version: str) -> list[Event]:
    """The events among the tags of a version; a damaged one is left out with a warning."""
    return _events((key for key in tags if key.startswith(PREFIX)), tags, version)


def planned_events(tags: Mapping[str, str], version: str) -> list[Event]:
    """The promotion and the rollback that were planned last, made or not."""
    return _events((key for key in (PLANNED, ROLLED_BACK) if tags.get(key)), tags, version)


def _events(keys: Iterable[str], tags: Mapping[str, str], version: str) -> list[Event]:
    events = []
    for key in keys:
        try:
            events.append(Event.from_json(tags[key]))
        except (ValueError, TypeError, KeyError, RecursionError):
            log.warning("tag %s of %s is damaged and left out", key, version)
    return events


def production_order(events: Iterable[Event]) -> list[int]:
    """Versions that were in Production, each once, the one that came last at the end.

    A version that an event found there, and no event brought there, was moved without the gate.
    """
    order: dict[int, None] = {}
    for event in events:
        if event.stage == "Production":
            if event.before is not None:
                order.setdefault(event.before)
            order.pop(event.version, None)
            order[event.version] = None
    return list(order)


def in_production_since(events: Iterable[Event], moment: datetime) -> set[int]:
    """Versions that were in Production at some time after a moment, as the events tell."""
    found: set[int] = set()
    held: int | None = None
    for event in events:
        if event.stage != "Production":
            continue
        if _moment(event.at) >= moment:
            found |= {number for number in (held, event.before) if number is not None}
        held = event.version
    return found | ({held} if held is not None else set())


def _moment(text: str) -> datetime:
    """When an event was; anybody may edit it, and one that cannot be read counts as recent."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.max.replace(tzinfo=UTC)
