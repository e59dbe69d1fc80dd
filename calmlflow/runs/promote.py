"""Promote a version through the gate, in a run that keeps every figure; roll back."""

import json
from dataclasses import asdict, dataclass
from multiprocessing.pool import Pool

import mlflow

from calmlflow import settings
from calmlflow.console import progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.gate import STEPS, Verdict, judge
from calmlflow.registry.limits import Limits, read_limits
from calmlflow.registry.promote import check_reason, checks_table, choose, promote, repair, roll_back, write_refusal
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.registry.versions import State, Version, read_state


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
        Promote although a check fails; needs a reason.
    reason : str
    """

    stage: str = "Staging"
    version: int | None = None
    model: str = settings.BUNDLE_MODEL
    data: str | None = None
    gate: str = "default"
    force: bool = False
    reason: str = ""


def parse_version(text: str) -> int | None:
    """A version's number, or None for ``auto``: the one whose turn it is."""
    if text != "auto" and not text.isdecimal():
        raise InputError(f"version is {text!r}; expected a number, or auto")
    return None if text == "auto" else int(text)


def promote_in_run(request: PromotionRequest, nested: bool = False, beside: Pool | None = None) -> str:
    """Judge a version and move it to a stage; the run keeps every figure of the gate.

    Parameters
    ----------
    request : PromotionRequest
    nested : bool, default False
        In a child of the active run.
    beside : Pool, optional
        See `calmlflow.registry.gate.judge`.

    Returns
    -------
    str
        One sentence for a person.

    Raises
    ------
    InputError
        Something of the request does not fit.
    CalmlflowError
        The gate refuses, somebody else was quicker, or the registry refuses. The run is marked FAILED, and the stages
        are as they were.
    """
    with tracked_run("promote", nested) as run:
        log_new_params(asdict(request))
        stage = settings.parse_stage(request.stage)
        reason = check_reason(request.reason, "force" if request.force else None)
        limits = read_limits(request.gate)
        model = request.model
        state = read_state(model)
        challenger = choose(state, request.version, stage)
        mlflow.set_tags({"promoted_model": model, "promoted_version": challenger.number})
        if challenger.stage == stage:
            # The same command may have been cut short before.
            return "; ".join(repair(model)) or f"{challenger} is in {stage} already"
        verdict = Verdict()
        if stage != "Archived":
            verdict = _judged(state, challenger, stage, limits, request.data, beside)
            if verdict.failed and not request.force:
                write_refusal(challenger, stage, verdict.checks, run.info.run_id)
                raise CalmlflowError(_refusal(challenger, stage, verdict, run.info.run_id))
        forced = bool(verdict.failed)
        mlflow.set_tag("gate", "forced" if forced else "passed")
        promote(state, challenger.number, stage, reason, forced, run.info.run_id, verdict.checks)
        passed = f"; {len(verdict.checks) - len(verdict.failed)} of {len(verdict.checks)} checks passed"
        return f"{model} version {challenger.number} is in {stage}{passed if verdict.checks else ''}"


def roll_back_to(to: int | None, reason: str, model: str = settings.BUNDLE_MODEL) -> str:
    """Put an earlier version back into Production, in seconds and without a gate; one sentence for a person."""
    event = roll_back(model, to, check_reason(reason, "a rollback"))
    return f"{model} version {event.version} is back in Production, version {event.before} is archived"


def _judged(
    state: State, challenger: Version, stage: str, limits: Limits, data: str | None, beside: Pool | None
) -> Verdict:
    """The verdict, logged in the active run."""
    holder = state.held_by("Production") if stage == "Production" else None
    champion = state.versions[holder] if holder is not None else None
    with progress(f"judging version {challenger.number}", "steps", STEPS) as update:
        verdict = judge(challenger, champion, limits, data, lambda done, note: update(done, note=note), beside)
    mlflow.log_metrics({name.replace("/", "_"): value for name, value in verdict.metrics.items()})
    mlflow.log_metrics({"checks": len(verdict.checks), "checks_failed": len(verdict.failed)})
    mlflow.log_text(json.dumps([check._asdict() for check in verdict.checks], indent=2), "gate.json")
    mlflow.log_text(checks_table(verdict.checks), "gate.md")
    mlflow.set_tags(
        {
            "champion_version": holder if holder is not None else "none",
            "gate": "refused",
            "mlflow.note.content": f"Version {challenger.number} for {stage}\n\n{checks_table(verdict.checks)}",
        }
    )
    return verdict


def _refusal(version: Version, stage: str, verdict: Verdict, run_id: str) -> str:
    shown = [f"{check.name}: {check.figure}, expected {check.expected}" for check in verdict.failed[:3]]
    more = f" and {len(verdict.failed) - 3} more" if len(verdict.failed) > 3 else ""
    return (
        f"{version} may not go to {stage}: {'; '.join(shown)}{more} (run {run_id}); expected every check of the gate "
        "to pass: train anew, or promote with --force --reason TEXT"
    )
