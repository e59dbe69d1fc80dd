"""Move versions between stages: promote, roll back, repair."""

# The commit point of a move is one request, MLflow's `transition_model_version_stage`, a transaction of the registry.
# What comes before it changes no stage; what comes after it (aliases, description, history) can be repeated by anybody.

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.checks import Check, check_files, counted
from calmlflow.registry.history import MAX_REASON, PLANNED, ROLLED_BACK, Event, printable, production_order
from calmlflow.registry.versions import EXCLUSIVE, State, Version, explained, read_state, who

BEGIN, END = "<!-- calmlflow -->", "<!-- /calmlflow -->"
MAX_DESCRIPTION = 5000
"""Characters that a registry's database keeps."""

# Stages are the interface that the users asked for; aliases of the same names are kept for the day MLflow drops them.
warnings.filterwarnings("ignore", message=".*[Ss]tages? (is|are|has been) deprecated.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*deprecated since 2.9.*", category=FutureWarning)


class ConflictError(CalmlflowError):
    """Somebody else moved a version of the same model first."""


# -- Promotion ------------------------------------------------------------------------------------------------------


def choose(state: State, version: int | None, stage: str) -> Version:
    """Find the version to promote: the one that is named, or the one whose turn it is.

    For Production that is the version in Staging, or else the one in Production; for Staging the newest one that has
    no stage or is in Staging. An InputError where there is none, or where Production would be left empty.
    """
    if version is None:
        version = _whose_turn(state, stage)
    if version not in state.versions:
        raise InputError(f"version {version} of {state.model} does not exist in the registry; expected one that does")
    chosen = state.versions[version]
    if stage != "Production" and chosen.stage == "Production":
        raise InputError(
            f"{chosen} is in Production and cannot go to {stage}; expected another version to take its place first: "
            "promote one, or `calmlflow rollback`"
        )
    if chosen.status != "READY":
        raise InputError(f"{chosen} is {chosen.status}; expected READY: register it anew")
    return chosen


def _whose_turn(state: State, stage: str) -> int:
    if stage == "Archived":
        raise InputError("no version was named to archive; expected one: say which with its number")
    if stage == "Production":
        number = state.held_by("Staging") or state.held_by("Production")
    else:
        # Never the one in Production: a repeated command must not take it from there.
        number = max((number for number, now in state.stages.items() if now in ("None", "Staging")), default=None)
    if number is None:
        raise InputError(
            f"no version of {state.model} waits for {stage}; expected one: train one first, or name a version"
        )
    return number


def promote(
    seen: State, version: int, stage: str, reason: str = "", run_id: str = "", checks: Sequence[Check] = ()
) -> Event:
    """Move a version to a stage, and the one before it to Archived.

    Parameters
    ----------
    seen : State
        The state that the decision rests on. If something moved since, a ConflictError names it and nothing is done.
    version : int
    stage : {"Staging", "Production", "Archived"}
    reason : str
    run_id : str
        The run of the gate.
    checks : sequence of Check
        One that failed makes it a forced promotion.
    """
    before = seen.held_by(stage) if stage in EXCLUSIVE else None
    failed = tuple(str(check) for check in checks if check.passed is False)
    undecided = tuple(check.name for check in checks if check.passed is None)
    more = {"reason": reason, "forced": bool(failed), "run_id": run_id, "failed": failed, "undecided": undecided}
    event = _event(seen, "promotion", version, stage, before, **more)
    with _moving(seen.model) as client:
        if checks:
            _write_gate(client, seen.versions[version], "forced" if failed else "passed", checks)
        client.set_model_version_tag(seen.model, str(version), PLANNED, event.to_json())
        try:
            _move(client, seen, event)
        except ConflictError:
            client.set_model_version_tag(seen.model, str(version), PLANNED, "")
            raise
        return _record(client, seen.model, event, checks)


def write_refusal(version: Version, stage: str, checks: Sequence[Check], run_id: str) -> None:
    """Write the checks that a version did not pass on the version."""
    with _moving(version.model) as client:
        _write_gate(client, version, "refused", checks)
        head = f"Refused for **{stage}**: {counted(checks)}."
        _describe(client, version, head, checks, run_id)


# -- Rollback -------------------------------------------------------------------------------------------------------


def roll_back(model: str, to: int | None, reason: str) -> Event:
    """Put an earlier version back into Production, without a gate and without the tracking server.

    Without ``to`` that is the newest one of the history that no rollback has left, and whose files match their digest;
    an InputError where there is none.
    """
    seen = read_state(model)
    present = seen.held_by("Production")
    if present is None:
        raise InputError(f"no version of {model} is in Production; expected one to roll back from")
    begun = None if seen.told.get(present) == "Production" else seen.cut_short(present)
    if begun and begun.action == "rollback" and to in (None, present):
        # The same command, cut short before: one step back, not two.
        with _moving(model) as client:
            return _record(client, model, begun)
    target = _earlier(seen, present) if to is None else _named(seen, present, to)
    event = _event(seen, "rollback", target, "Production", present, reason=reason)
    order = [number for number in production_order(seen.events) if number != present]
    left = [present, *(order[order.index(target) + 1 :] if target in order else ())]
    marked = {number: seen.versions[number].tags.get(ROLLED_BACK, "") for number in left if number in seen.versions}
    with _moving(model) as client:
        for number in marked:
            client.set_model_version_tag(model, str(number), ROLLED_BACK, event.to_json())
        try:
            _move(client, seen, event)
        except ConflictError:
            for number, mark in marked.items():
                client.set_model_version_tag(model, str(number), ROLLED_BACK, mark)
            raise
        return _record(client, model, event)


def _earlier(state: State, present: int) -> int:
    for number in reversed(production_order(state.events)):
        if number == present or number not in state.versions or state.was_rolled_back(number):
            continue
        try:
            check_files(state.versions[number])
        except InputError as error:
            say(f"version {number} is passed over: {error}")
            continue
        return number
    raise InputError(
        f"the history of {state.model} knows no version in Production before {present} that can be gone back to; "
        "expected one: name an archived version with --to"
    )


def _named(state: State, present: int, number: int) -> int:
    name = f"version {number} of {state.model}"
    if number == present:
        raise InputError(f"{name} is in Production; expected an earlier one to go back to")
    if number not in state.versions:
        raise InputError(f"{name} does not exist; expected a version that was in Production")
    order = production_order(state.events)
    # Where nothing was ever recorded, an archived version counts as one that was in Production.
    if number not in order and (order or state.stages[number] != "Archived"):
        raise InputError(
            f"{name} was never in Production; expected one that was: a new version gets there with `calmlflow promote`"
        )
    check_files(state.versions[number])
    return number


# -- Repair ---------------------------------------------------------------------------------------------------------


def repair(model: str) -> list[str]:
    """Record moves that the history lacks, and mend aliases; moves nothing, and gives a sentence for each."""
    mended = []
    with _moving(model) as client:
        for version in read_state(model).unrecorded():
            state = read_state(model)
            event = state.cut_short(version.number)
            if event:
                mended.append(f"finished the {event.action} of {version} to {event.stage}")
            else:
                mended.append(f"recorded that {version} was moved to {version.stage} {version.past_the_gate}")
                if "gate" not in version.tags:
                    client.set_model_version_tag(model, str(version.number), "gate", "not judged")
                # In place of the version that the history has there, if that one is gone.
                last = next((event.version for event in reversed(state.events) if event.stage == version.stage), None)
                gone = last if last != version.number and state.stages.get(last or 0) != version.stage else None
                event = _event(state, "outside", version.number, version.stage, gone)
            _record(client, model, event)
        if changed := _mend_aliases(client, model):
            mended.append(f"aliases of {model} name the versions of their stages again: {', '.join(changed)}")
    return mended


def check_may_move(model: str) -> None:
    """Raise a CalmlflowError where the user may not manage a registered model; nothing is changed."""
    with _moving(model) as client:
        try:
            # Asks for the right to delete, of a version that no registry has.
            client.delete_model_version_tag(model, "0", PLANNED)
        except MlflowException as error:
            if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
                raise


# -- Steps of a move ------------------------------------------------------------------------------------------------


def _event(state: State, action: str, version: int, stage: str, before: int | None, **more: Any) -> Event:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    from_stage = state.stages.get(version, "")
    return Event(state.next_number, action, version, stage, before, who(), now, from_stage=from_stage, **more)


@contextmanager
def _moving(model: str) -> Iterator[MlflowClient]:
    try:
        yield MlflowClient(registry_uri=settings.registry_uri())
    except MlflowException as error:
        raise explained(error, f"a version of {model}", "move", "MANAGE on the registered model") from error


def _move(client: MlflowClient, seen: State, event: Event) -> None:
    """Make sure that nothing moved since ``seen``, and change the stage."""
    now = read_state(seen.model)
    moved = {number for number, _ in _held(seen) ^ _held(now)}
    if moved := moved | {event.version for event in now.events if event not in seen.events}:
        raise ConflictError(
            f"version {event.version} of {seen.model} did not go to {event.stage}, because somebody else was quicker: "
            + ", ".join(f"version {number} is in {now.stages.get(number, 'no stage')}" for number in sorted(moved))
            + "; expected the stages that it was judged by: look at `calmlflow stages` and try again"
        )
    after = now.stages | ({event.before: "Archived"} if event.before else {}) | {event.version: event.stage}
    for stage in settings.STAGES[1:]:
        if stage.lower() in now.aliases and stage not in after.values():
            # To delete an alias needs more permission than all else: where that is refused, no stage has changed yet.
            client.delete_registered_model_alias(seen.model, stage.lower())
    client.transition_model_version_stage(
        seen.model, str(event.version), event.stage, archive_existing_versions=event.stage in EXCLUSIVE
    )
    holders = [number for number, stage in read_state(seen.model).stages.items() if stage == event.stage]
    if event.stage in EXCLUSIVE and len(holders) > 1:
        # Of two moves at the same moment each saw the version before alone, and archived only that: the newest stays.
        client.transition_model_version_stage(
            seen.model, str(max(holders)), event.stage, archive_existing_versions=True
        )


def _held(state: State) -> set[tuple[int, str]]:
    return {(number, stage) for number, stage in state.stages.items() if stage in EXCLUSIVE}


def _record(client: MlflowClient, model: str, event: Event, checks: Sequence[Check] = ()) -> Event:
    """Mend aliases, describe the version, and write the move into its history."""
    state = read_state(model)
    if state.stages.get(event.version) != event.stage:
        raise ConflictError(
            f"version {event.version} of {model} went to {event.stage}, and version {state.held_by(event.stage)} took "
            "its place in the same moment; expected one move at a time: look at `calmlflow stages`"
        )
    # Again where somebody else moved a version meanwhile: whoever looks last is right.
    while _mend_aliases(client, model):
        pass
    kind = {"promotion": "promoted", "rollback": "restored", "outside": "moved without the gate, recorded"}
    # A later release may know more actions.
    action = kind.get(event.action, event.action) + (", **forced**" if event.forced else "")
    head = f"**{event.stage}**: {action} by {_plain(event.who)}"
    head += f" at {event.at}" + (f", in place of version {event.before}." if event.before is not None else ".")
    if event.reason:
        head += f" Reason: {_plain(event.reason)}"
    _describe(client, state.versions[event.version], head, checks, event.run_id)
    client.set_model_version_tag(model, str(event.version), event.tag, event.to_json())
    return event


def _mend_aliases(client: MlflowClient, model: str) -> list[str]:
    wrong = read_state(model).wrong_aliases()
    for alias, number in wrong.items():
        if number is None:
            client.delete_registered_model_alias(model, alias)
            continue
        try:
            client.set_registered_model_alias(model, alias, str(number))
        except MlflowException:
            # The database lets one of two set it in the same moment.
            client.set_registered_model_alias(model, alias, str(number))
    return list(wrong)


# -- Reason, gate and description of a version ----------------------------------------------------------------------


def check_reason(reason: str, needed_for: str | None = None) -> str:
    """Fold white space and what a terminal would obey; an InputError where a reason is missing, too long or no text."""
    if not reason.isascii() and reason.encode(errors="replace").decode() != reason:
        raise InputError(f"the reason {reason[:60]!a} is not UTF-8; expected text that is")
    reason = " ".join(printable(reason).split())
    if needed_for and not reason:
        raise InputError(f"no reason is given; expected one to be recorded with {needed_for}: --reason TEXT")
    if len(reason) > MAX_REASON:
        raise InputError(f"the reason has {len(reason)} characters; expected {MAX_REASON} at most")
    return reason


def checks_table(checks: Sequence[Check]) -> str:
    """Checks as a table in Markdown: those that failed first, then those that are not decided."""
    rows = [
        f"| {check.verdict if check.passed else f'**{check.verdict}**'} | {check.name} | {_plain(check.figure)} "
        f"| {_plain(check.expected)} |"
        for check in sorted(checks, key=lambda check: ("failed", "not decided", "passed").index(check.verdict))
    ]
    return "\n".join(["| | check | found | expected |", "|---|---|---|---|", *rows])


def _write_gate(client: MlflowClient, version: Version, verdict: str, checks: Sequence[Check]) -> None:
    """Put each check on the version as a tag; `calmlflow diff` compares them."""
    tags = {"gate": verdict}
    tags |= {f"gate.{check.name}": f"{check.verdict}: {check.figure} ({check.expected})" for check in checks}
    # To delete a tag needs more permission than to set it.
    tags |= {old: "not checked" for old in version.tags if old.startswith("gate.") and old not in tags}
    for name, value in tags.items():
        if version.tags.get(name) != value:
            client.set_model_version_tag(version.model, str(version.number), name, value)


def _describe(client: MlflowClient, version: Version, head: str, checks: Sequence[Check], run_id: str) -> None:
    """Write a move, or a refusal, into the description, and keep what people wrote there."""
    text = head + (f" The gate: run `{run_id}`." if run_id else "") + (f"\n\n{checks_table(checks)}" if checks else "")
    own = re.sub(f"{BEGIN}.*{END}", "", version.description, flags=re.DOTALL).strip()
    text = text[: max(0, MAX_DESCRIPTION - len(own) - 100)]
    description = f"{own}\n\n{BEGIN}\n{text}\n\n{END}".strip()
    if description != version.description:
        client.update_model_version(version.model, str(version.number), description)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
