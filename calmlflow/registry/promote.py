"""Which version moves to which stage, and the way back."""

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from calmlflow.errors import InputError
from calmlflow.registry.claim import ConflictError
from calmlflow.registry.history import MAX_REASON, Check, Event, printable, way_back
from calmlflow.registry.moves import move
from calmlflow.registry.versions import EXCLUSIVE, State, explained, now_iso, who


def choose(client: MlflowClient, model: str, version: int | None, stage: str, state: State) -> ModelVersion:
    """The version to promote: the one that is named, or the one whose turn it is.

    Left to itself that is, for Production, the version in Staging (or the one that is there already); for Staging the
    newest one that has no stage or is there already.

    Raises
    ------
    InputError
        No such version, or none whose turn it is; or the version would leave Production with none in its place.
    """
    version = _whose_turn(state, model, stage) if version is None else version
    _check_production_stays(state, model, version, stage)
    try:
        chosen = client.get_model_version(model, str(version))
    except MlflowException as error:
        raise explained(error, f"version {version} of {model}") from None
    if chosen.status != "READY":
        raise InputError(f"version {version} of {model} is {chosen.status}; expected READY: register it anew")
    return chosen


def promote(
    client: MlflowClient,
    model: str,
    version: int,
    stage: str,
    seen: State,
    reason: str = "",
    forced: bool = False,
    run_id: str = "",
    checks: Sequence[Check] = (),
) -> Event:
    """Move a version to a stage, and the one before it to Archived.

    Parameters
    ----------
    client : MlflowClient
    model : str
    version : int
    stage : str
        Staging, Production or Archived.
    seen : State
        What the decision rests on. If something moved since, nothing is done.
    reason, forced, run_id, checks
        Written down; see `calmlflow.registry.history.Event`.

    Raises
    ------
    ConflictError
        Somebody else was quicker.
    CalmlflowError
        The registry refuses.
    """

    def plan(state: State) -> Event:
        if (_held(state), state.events) != (_held(seen), seen.events):
            raise ConflictError(
                f"version {version} of {model} was not promoted to {stage}: {_what_changed(seen, state)} meanwhile; "
                "expected the stages that it was judged by: look at `calmlflow stages` and promote again"
            )
        _check_production_stays(state, model, version, stage)
        before = state.held_by(stage) if stage in EXCLUSIVE else None
        return Event(
            state.next_number,
            "promotion",
            version,
            stage,
            before,
            who(),
            now_iso(),
            reason,
            forced,
            run_id,
            tuple(checks),
        )

    return move(client, model, plan)


def roll_back(client: MlflowClient, model: str, to: int | None, reason: str) -> Event:
    """Put an earlier version back into Production, without a gate.

    Parameters
    ----------
    client : MlflowClient
    model : str
    to : int, optional
        A version that was in Production. Default: the one before the present one; a version that was rolled back from
        does not count.
    reason : str

    Raises
    ------
    InputError
        There is no such version to go back to.
    ConflictError
        Somebody else moves a version.
    """

    def plan(state: State) -> Event:
        present = state.held_by("Production")
        if present is None:
            raise InputError(f"no version of {model} is in Production; expected one to roll back from")
        target = _earlier(state, model, present) if to is None else to
        if target == present:
            raise InputError(f"version {target} of {model} is in Production; expected an earlier one to go back to")
        if target not in state.stages:
            raise InputError(f"version {target} of {model} does not exist; expected a version that was in Production")
        in_production = [event for event in state.events if event.stage == "Production"]
        was_there = any(target in (event.version, event.before) for event in in_production)
        # Where nothing was ever written down, whoever names an archived version is believed.
        if not was_there and (in_production or state.stages[target] != "Archived"):
            raise InputError(
                f"version {target} of {model} was never in Production; expected one that was: a new version gets "
                "there with `calmlflow promote`, through the gate"
            )
        return Event(state.next_number, "rollback", target, "Production", present, who(), now_iso(), reason)

    return move(client, model, plan, is_rollback=True)


def check_reason(reason: str, needed_for: str | None = None) -> str:
    """Fold white space and what a terminal would obey; an InputError where a reason is missing, or too long."""
    reason = " ".join(printable(reason).split())
    if needed_for and not reason:
        raise InputError(f"no reason is given; expected one to be written down with {needed_for}: --reason TEXT")
    if len(reason) > MAX_REASON:
        raise InputError(f"the reason has {len(reason)} characters; expected {MAX_REASON} at most")
    return reason


def _whose_turn(state: State, model: str, stage: str) -> int:
    if stage == "Archived":
        raise InputError("no version was named to archive; expected one: say which with its number")
    # Left to itself, a version only moves up: one that has been in Production never leaves it by a repeated command.
    wanted = ("Staging", "Production") if stage == "Production" else ("None", "Staging")
    for candidates in (wanted[:1], wanted[1:]) if stage == "Production" else (wanted,):
        found = [version for version, now in state.stages.items() if now in candidates]
        if found:
            return max(found)
    holder = state.held_by("Production")
    raise InputError(
        f"no version of {model} is in stage {' or '.join(wanted)}; expected one: "
        + (f"version {holder} is in Production; train a new one, or name a version" if holder else "train one first")
    )


def _check_production_stays(state: State, model: str, version: int, stage: str) -> None:
    if stage != "Production" and state.stages.get(version) == "Production":
        raise InputError(
            f"version {version} of {model} is in Production and cannot go to {stage}; expected another version to take "
            "its place first: promote one, or `calmlflow rollback`"
        )


def _earlier(state: State, model: str, present: int) -> int:
    earlier = [version for version in way_back(state.events) if version in state.stages and version != present]
    if not earlier:
        raise InputError(
            f"the history of {model} knows no version in Production before {present}; expected one: name an archived "
            "version with --to"
        )
    return earlier[-1]


def _held(state: State) -> dict[int, str]:
    return {version: stage for version, stage in state.stages.items() if stage in EXCLUSIVE}


def _what_changed(seen: State, now: State) -> str:
    new = [event for event in now.events if event not in seen.events]
    if new:
        event = new[-1]
        return f"version {event.version} went to {event.stage} ({event.action} by {event.who} at {event.at})"
    changed = sorted(
        version for version in {*seen.stages, *now.stages} if seen.stages.get(version) != now.stages.get(version)
    )
    return f"the stage of version {', '.join(map(str, changed))} changed"
