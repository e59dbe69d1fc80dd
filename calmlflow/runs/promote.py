"""Promote a version through the gate, in a run that keeps every figure; roll back."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass

import mlflow

from calmlflow import settings
from calmlflow.console import progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry.checks import INTEGRITY, check_store, counted
from calmlflow.registry.gate import STEPS, Verdict, judge, reference_version
from calmlflow.registry.limits import Limits, read_limits
from calmlflow.registry.promote import (
    check_may_move,
    check_reason,
    checks_table,
    choose,
    promote,
    repair,
    roll_back,
    write_refusal,
)
from calmlflow.registry.shadow import shadow_checks
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.registry.versions import State, Version, read_state


@dataclass(frozen=True)
class PromotionRequest:
    """Options of a promotion."""

    stage: str = "Staging"  # or Production, or Archived
    version: int | None = None  # default: the one whose turn it is; see `calmlflow.registry.promote.choose`
    model: str = settings.BUNDLE_MODEL
    data: str | None = None  # jobs to judge by; default: those that the training held out
    gate: str = "default"  # limits, or a YAML file
    force: bool = False  # promote although a check fails; needs a reason
    reason: str = ""
    newest: bool = False  # compare with the champion on held-out jobs that are newer than its training


def parse_version(text: str) -> int | None:
    """A version's number, or None for ``auto``: the one whose turn it is."""
    if text == "auto":
        return None
    # A registry counts in 32 bits.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise InputError(f"version is {text[:40]!r}; expected a number from 1 to {2**31 - 1}, or auto")
    return int(text)


def promote_in_run(request: PromotionRequest, nested: bool = False) -> str:
    """Judge a version and move it to a stage; the run keeps every figure of the gate.

    A CalmlflowError where the gate or the registry refuses, or somebody else was quicker: the run is marked FAILED, and
    the stages are as they were. Returns one sentence for a person.
    """
    reason = check_reason(request.reason, "force" if request.force else None)
    with tracked_run("promote", nested) as run:
        log_new_params(asdict(request))
        stage, model, run_id = settings.parse_stage(request.stage), request.model, run.info.run_id
        limits = read_limits(request.gate)
        # What the gate takes a minute for would be lost.
        check_may_move(model)
        state = read_state(model)
        challenger = choose(state, request.version, stage)
        mlflow.set_tags({"promoted_model": model, "promoted_version": challenger.number})
        if challenger.stage == stage:
            # The same command may have been cut short before.
            return "; ".join(repair(model)) or f"{challenger} is in {stage} already"
        verdict = Verdict()
        if stage != "Archived":
            with suppress(InputError):
                # Files that are gone are the gate's to judge.
                check_store(challenger)
            verdict = _judged(state, challenger, stage, limits, request)
        failed = verdict.failed
        broken = [check for check in failed if check.name in INTEGRITY]
        if failed and (broken or not request.force):
            mlflow.set_tag("gate", "refused")
            write_refusal(challenger, stage, verdict.checks, run_id)
            failed = broken if request.force else failed
            shown = [f"{check.name}: {check.figure}, expected {check.expected}" for check in failed[:3]]
            way = "promote with --force --reason TEXT"
            if broken:
                way = "register it anew (--force overrides judgements, not missing files, digests or serving)"
            raise CalmlflowError(
                f"{challenger} may not go to {stage}: {'; '.join(shown)}"
                + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
                + f" (run {run_id}); expected no check of the gate to fail: train anew, or {way}"
            )
        mlflow.set_tag("gate", "forced" if failed else "passed")
        promote(state, challenger.number, stage, reason, run_id, verdict.checks)
        moved = f"{model} version {challenger.number} is in {stage}"
        if not verdict.checks:
            return moved
        forced = f", forced past {', '.join(check.name for check in failed)}" if failed else ""
        return f"{moved}; {counted(verdict.checks)}{forced}"


def _judged(state: State, challenger: Version, stage: str, limits: Limits, request: PromotionRequest) -> Verdict:
    """The verdict, logged in the active run."""
    holder = state.held_by("Production") if stage == "Production" else None
    champion = state.versions[holder] if holder is not None else None
    reference = reference_version(state, challenger, champion, limits.reference)
    with progress(f"judging version {challenger.number}", "steps", STEPS) as update:
        verdict = judge(
            challenger, champion, limits, request.data, lambda done, note: update(done, note=note),
            reference, request.newest,
        )  # fmt: skip
    if champion and settings.shadow_stage():
        checks, metrics = shadow_checks(challenger, champion, limits, settings.jobs_uri(), settings.emit_uri())
        verdict = Verdict((*verdict.checks, *checks), verdict.metrics | metrics)
    table = checks_table(verdict.checks)
    undecided = sum(check.passed is None for check in verdict.checks)
    counts = {"checks": len(verdict.checks), "checks_failed": len(verdict.failed), "checks_not_decided": undecided}
    mlflow.log_metrics({**verdict.metrics, **counts})
    found = [{"verdict": check.verdict, **check._asdict()} for check in verdict.checks]
    mlflow.log_text(json.dumps(found, indent=2), "gate.json")
    mlflow.log_text(table, "gate.md")
    note = f"Version {challenger.number} for {stage}\n\n{table}"
    mlflow.set_tags(
        {
            "champion_version": "none" if holder is None else holder,
            "reference_version": reference.number if reference else "none",
            "gate.checks": counted(verdict.checks),
            "mlflow.note.content": note,
        }
    )
    return verdict


def roll_back_to(to: int | None, reason: str, model: str = settings.BUNDLE_MODEL) -> str:
    """Put an earlier version back into Production, in seconds and without a gate; one sentence for a person."""
    event = roll_back(model, to, check_reason(reason, "a rollback"))
    return f"{model} version {event.version} is back in Production, version {event.before} is archived"
