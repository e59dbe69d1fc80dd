"""Promote and roll back, as people and scripts do it: through the gate, written down as a run, told to who follows."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import mlflow
from mlflow import MlflowClient

from calmlflow import settings
from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.describe import checks_table, write_refusal
from calmlflow.registry.gate import Verdict, judge
from calmlflow.registry.history import Event
from calmlflow.registry.limits import Limits, read_limits
from calmlflow.registry.moves import finish_open
from calmlflow.registry.notify import check_notify, notify
from calmlflow.registry.promote import check_reason, choose, promote, roll_back
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.registry.versions import State, read_state

GATE_STEPS = 8


@dataclass(frozen=True)
class PromotionRequest:
    """What the user of a promotion says.

    Attributes
    ----------
    stage : str
        Staging, Production or Archived.
    version : int or None
        Default: the one whose turn it is; see `calmlflow.registry.promote.choose`.
    model : str
        Registered model.
    data : str or None
        Jobs to judge by; default: those that the training held out.
    gate : str
        Limits: ``default``, or a YAML file.
    force : bool
        Go through although a check fails; needs a reason.
    reason : str
    notify : str
        URL that is told, see `calmlflow.registry.notify`; empty: ``CALMLFLOW_NOTIFY_URL``, or nobody.
    """

    stage: str = "Staging"
    version: int | None = None
    model: str = settings.BUNDLE_MODEL
    data: str | None = None
    gate: str = "default"
    force: bool = False
    reason: str = ""
    notify: str = ""


def parse_version(text: str) -> int | None:
    """A version's number, or None for ``auto``: the one whose turn it is."""
    if text != "auto" and not text.isdecimal():
        raise InputError(f"version is {text!r}; expected a number, or auto")
    return None if text == "auto" else int(text)


def promote_in_run(request: PromotionRequest, nested: bool = False) -> str:
    """Judge a version and move it to a stage; the run keeps every figure of the gate.

    Returns
    -------
    str
        One sentence for a person.

    Raises
    ------
    CalmlflowError
        The version did not pass the gate, somebody else was quicker, or something asked for does not exist. The run is
        marked FAILED and the stages are as they were.
    """
    with tracked_run("promote", nested) as run:
        # Where to tell is nobody else's business; it may hold a token.
        log_new_params({name: value for name, value in asdict(request).items() if name != "notify"})
        stage = settings.parse_stage(request.stage)
        reason = check_reason(request.reason, "force" if request.force else None)
        limits = read_limits(request.gate)
        notify_url = _checked_url(request.notify)
        client, model = MlflowClient(), request.model
        for event in finish_open(client, model):
            say(f"finished what was cut short: version {event.version} of {model} is in {event.stage}")
            # Who was cut short has told nobody; who is told twice knows by the number.
            _tell(notify_url, model, event)
        state = read_state(client, model)
        challenger = choose(client, model, request.version, stage, state)
        version = int(challenger.version)
        mlflow.set_tags({"promoted_model": model, "promoted_version": version})
        if state.stages[version] == stage:
            return f"{model} version {version} is in {stage} already"
        verdict = Verdict((), {})
        if stage != "Archived":
            verdict = _judged(client, model, version, stage, state, limits, request.data)
            if verdict.failed and not request.force:
                write_refusal(client, model, version, stage, verdict.checks, run.info.run_id)
                raise CalmlflowError(_refusal(model, version, stage, verdict, run.info.run_id))
        forced = bool(verdict.failed)
        mlflow.set_tag("gate", "forced" if forced else "passed")
        event = promote(client, model, version, stage, state, reason, forced, run.info.run_id, verdict.checks)
        told = _tell(notify_url, model, event)
        passed = f"; {len(verdict.checks) - len(verdict.failed)} of {len(verdict.checks)} checks passed"
        return f"{model} version {version} is in {stage}{passed if verdict.checks else ''}{told}"


def roll_back_to(to: int | None, reason: str, model: str = settings.BUNDLE_MODEL, notify_url: str = "") -> str:
    """Put an earlier version back into Production, in seconds and without a gate; one sentence for a person.

    Needs the registry alone, no tracking server and no artifacts: it must work when much else does not.
    """
    reason = check_reason(reason, "a rollback")
    try:
        notify_url = _checked_url(notify_url)
    except InputError as error:
        # The way back must not hang on who is told of it.
        say(f"warning: nobody is told: {error}")
        notify_url = ""
    event = roll_back(MlflowClient(), model, to, reason)
    told = _tell(notify_url, model, event)
    return f"{model} version {event.version} is back in Production, version {event.before} is archived{told}"


def _judged(
    client: MlflowClient, model: str, version: int, stage: str, state: State, limits: Limits, data: str | None
) -> Verdict:
    """The verdict, logged in the active run."""
    holder = state.held_by("Production") if stage == "Production" else None
    champion = client.get_model_version(model, str(holder)) if holder is not None else None
    with progress(f"judging version {version}", "steps", GATE_STEPS) as update:
        challenger = client.get_model_version(model, str(version))
        verdict = judge(client, challenger, champion, limits, data, lambda done, note: update(done, note=note))
    mlflow.log_metrics({name.replace("/", "_"): value for name, value in verdict.metrics.items()})
    mlflow.log_metrics({"checks": len(verdict.checks), "checks_failed": len(verdict.failed)})
    mlflow.set_tags({"champion_version": holder if holder is not None else "none", "gate": "refused"})
    mlflow.log_text(json.dumps([check._asdict() for check in verdict.checks], indent=2), "gate.json")
    mlflow.log_text(checks_table(verdict.checks), "gate.md")
    mlflow.set_tag("mlflow.note.content", f"Version {version} for {stage}\n\n{checks_table(verdict.checks)}")
    return verdict


def _refusal(model: str, version: int, stage: str, verdict: Verdict, run_id: str) -> str:
    shown = [f"{check.name}: {check.figure}, expected {check.expected}" for check in verdict.failed[:3]]
    more = f" and {len(verdict.failed) - 3} more" if len(verdict.failed) > 3 else ""
    return (
        f"version {version} of {model} may not go to {stage}: {'; '.join(shown)}{more} (run {run_id}); expected every "
        f"check of the gate to pass: train anew, or go through with --force --reason TEXT"
    )


def _checked_url(given: str) -> str:
    """Where to tell, seen to be usable before anything moves; empty: nowhere."""
    url = given or settings.notify_url()
    if url:
        check_notify(url)
    return url


def _tell(url: str, model: str, event: Event) -> str:
    """Tell who follows; a failure to changes nothing and is shown."""
    if not url:
        return ""
    payload: dict[str, Any] = {
        "event": event.action,
        "model": model,
        "version": event.version,
        "stage": event.stage,
        "previous_version": event.before,
        "number": event.number,
        "who": event.who,
        "at": event.at,
        "reason": event.reason,
        "forced": event.forced,
        "run_id": event.run_id,
    }
    problem = notify(url, payload)
    if problem:
        say(f"warning: {problem}")
    return "; nobody could be told" if problem else "; told"
