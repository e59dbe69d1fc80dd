"""Carry a move out: one at a time, all or nothing, whoever comes next can finish it.

Stage, aliases and tags are several requests to the registry. So a move is first written down as an open event of the
history, then carried out in steps that may be repeated, then closed. The stage itself moves in one transaction of the
registry's, so that there is always a version in Production once there was one.
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow.registry.claim import claimed
from calmlflow.registry.describe import write_evidence
from calmlflow.registry.history import MAX_REASON, Event, close_event, way_back, withdraw_event, write_event
from calmlflow.registry.versions import EXCLUSIVE, State, explained, now_iso, read_state, who
from calmlflow.settings import STAGES

log = logging.getLogger(__name__)

# Stages are the interface that the users asked for; aliases of the same names are kept for the day MLflow drops them.
warnings.filterwarnings("ignore", message=".*[Ss]tages? (is|are|has been) deprecated.*", category=FutureWarning)
warnings.filterwarnings("ignore", message=".*deprecated since 2.9.*", category=FutureWarning)


def move(client: MlflowClient, model: str, plan: Callable[[State], Event], is_rollback: bool = False) -> Event:
    """Claim a model, plan a move by what it looks like then, write the move down, and carry it out.

    Parameters
    ----------
    client : MlflowClient
    model : str
    plan : callable
        From the model's state to the event; raises where there is nothing to be done.
    is_rollback : bool
        Whoever goes back does not first finish a promotion that was cut short before it changed Production.

    Raises
    ------
    ConflictError
        Somebody else moves a version of the same model.
    CalmlflowError
        The registry refuses; then nothing has moved.
    """
    try:
        with claimed(client, model, who()) as still_held:
            finished = _finish(client, model, still_held, abandon_promotions=is_rollback)
            if is_rollback and finished and finished[-1].action == "rollback":
                # Asked for again after it was cut short: one step back, not two.
                return finished[-1]
            state = read_state(client, model)
            event = plan(state)
            still_held()
            write_event(client, model, event)
            try:
                return _carry_out(client, model, event, still_held)
            except MlflowException:
                # What was refused at the first step is taken back; what failed later stays open, to be finished.
                with suppress(MlflowException):
                    now = read_state(client, model)
                    concerned = [state.stages.get(event.version), state.stages.get(event.before or 0), state.aliases]
                    if concerned == [now.stages.get(event.version), now.stages.get(event.before or 0), now.aliases]:
                        withdraw_event(client, model, event)
                raise
    except MlflowException as error:
        raise explained(error, f"a version of {model}", "move", "MANAGE") from None


def finish_open(client: MlflowClient, model: str) -> list[Event]:
    """Finish moves that were cut short; none is the usual case, and then nothing is written.

    Raises
    ------
    ConflictError
        The move is not cut short, but being made.
    """
    if not read_state(client, model).open_events():
        return []
    try:
        with claimed(client, model, who()) as still_held:
            return _finish(client, model, still_held)
    except MlflowException as error:
        raise explained(error, f"a version of {model}", "move", "MANAGE") from None


def repair(client: MlflowClient, model: str) -> list[str]:
    """Finish moves that were cut short, and mend what others did behind the history's back.

    Two versions in a stage that holds one become one: the one that the history says, or else the newest. Aliases are
    made to name the versions of their stages.

    Returns
    -------
    list of str
        What was mended, a sentence each.
    """
    try:
        with claimed(client, model, who(), take_over=True) as still_held:
            mended = [
                f"finished the {event.action} of version {event.version} of {model} to {event.stage}"
                for event in _finish(client, model, still_held)
            ]
            mended += [sentence for stage in EXCLUSIVE for sentence in _mend_stage(client, model, stage, still_held)]
            state = read_state(client, model)
            if changed := [*_drop_aliases(client, model, state.stages), *_set_aliases(client, model)]:
                mended.append(f"aliases of {model} name the versions of their stages again: {', '.join(changed)}")
            return mended
    except MlflowException as error:
        raise explained(error, f"a version of {model}", "move", "MANAGE") from None


def _mend_stage(client: MlflowClient, model: str, stage: str, still_held: Callable[[], None]) -> list[str]:
    """One version in a stage that holds one; and in Production the last good one where there is none."""
    state = read_state(client, model)
    holders = sorted(version for version, found in state.stages.items() if found == stage)
    moved = [event.version for event in state.events if event.stage == stage]
    back = [version for version in way_back(state.events) if version in state.stages]
    if len(holders) > 1:
        keep = moved[-1] if moved and moved[-1] in holders else holders[-1]
        sentence = f"{len(holders)} versions of {model} were in {stage}; only version {keep} is there now"
    elif not holders and back and stage == "Production":
        keep = back[-1]
        sentence = f"no version of {model} was in Production; version {keep}, the last one there, is back"
    else:
        return []
    event = Event(state.next_number, "repair", keep, stage, None, who(), now_iso(), sentence[:MAX_REASON])
    still_held()
    write_event(client, model, event)
    _carry_out(client, model, event, still_held)
    return [sentence]


def _finish(
    client: MlflowClient, model: str, still_held: Callable[[], None], abandon_promotions: bool = False
) -> list[Event]:
    """Finish what is open, for a holder of the claim; gives the moves that were finished."""
    finished = []
    for event in read_state(client, model).open_events():
        state = read_state(client, model)
        now, holder = state.stages.get(event.version), state.held_by(event.stage)
        if any(later.number > event.number and later.stage == event.stage for later in state.events):
            # It is history already.
            close_event(client, model, event)
        elif now != event.stage and (
            now in (None, "Production")
            or (event.stage in EXCLUSIVE and holder != event.before)
            or (event.stage == "Production" and abandon_promotions)
        ):
            # The stages are not what they were when it was decided on; to go on could do harm.
            log.warning("the move of version %d of %s to %s is given up", event.version, model, event.stage)
            withdraw_event(client, model, event)
            _set_aliases(client, model)
        else:
            finished.append(_carry_out(client, model, event, still_held))
    return finished


def _carry_out(client: MlflowClient, model: str, event: Event, still_held: Callable[[], None]) -> Event:
    """The steps of a move. Each may be repeated."""
    stages = read_state(client, model).stages
    after = {version: "Archived" if version == event.before else stage for version, stage in stages.items()}
    # First what needs the most permissions: if it is refused, nothing has changed yet.
    _drop_aliases(client, model, after | {event.version: event.stage})
    still_held()
    holders = [version for version, stage in stages.items() if stage == event.stage]
    if event.version not in holders or (event.stage in EXCLUSIVE and len(holders) > 1):
        client.transition_model_version_stage(
            model, str(event.version), event.stage, archive_existing_versions=event.stage in EXCLUSIVE
        )
    _set_aliases(client, model)
    write_evidence(client, model, event)
    return close_event(client, model, event)


def _drop_aliases(client: MlflowClient, model: str, stages: dict[int, str]) -> list[str]:
    """Remove the aliases of stages that hold nothing."""
    aliases = client.get_registered_model(model).aliases
    dropped = [stage.lower() for stage in STAGES[1:] if stage not in stages.values() and stage.lower() in aliases]
    for alias in dropped:
        client.delete_registered_model_alias(model, alias)
    return dropped


def _set_aliases(client: MlflowClient, model: str) -> list[str]:
    """Make the aliases ``staging``, ``production`` and ``archived`` name the newest version of each stage."""
    state = read_state(client, model)
    wrong = {
        stage.lower(): version
        for stage in STAGES[1:]
        if (version := state.held_by(stage)) is not None and state.aliases.get(stage.lower()) != version
    }
    for alias, version in wrong.items():
        client.set_registered_model_alias(model, alias, str(version))
    return list(wrong)
