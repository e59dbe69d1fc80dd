"""Commands that promote, roll back and show versions of the registry."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from calmlflow import settings
from calmlflow.console import say

SHOWN = 5
"""Versions of a stage in the table, without --all."""


def promote(
    stage: Annotated[str, typer.Option(help="Staging, Production or Archived.")] = "Staging",
    version: Annotated[
        str, typer.Option(help="A number; auto: the newest for Staging, Staging's for Production.")
    ] = "auto",
    model: Annotated[str, typer.Option(help="Registered model.")] = settings.BUNDLE_MODEL,
    data: Annotated[
        str, typer.Option(help="Jobs to judge by, newer than those of both trainings; held-out: the challenger's.")
    ] = "held-out",
    gate: Annotated[str, typer.Option(help="Limits: 'default', or a YAML file.")] = "default",
    force: Annotated[bool, typer.Option("--force", help="Go through although a check fails; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; written down.")] = "",
) -> None:
    """Move a version to a stage, through the gate.

    The version that was there is archived, and aliases follow. Exit status 1 if a check fails, or if somebody else
    moves a version at the same time; then the stages are as they were.
    """
    from calmlflow.runs.promote import PromotionRequest, parse_version, promote_in_run

    jobs = None if data == "held-out" else data
    say(promote_in_run(PromotionRequest(stage, parse_version(version), model, jobs, gate, force, reason)))


def rollback(
    reason: Annotated[str, typer.Option(help="Why; written down.")],
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="A version that was in Production; default: the one before.")
    ] = None,
    model: Annotated[str, typer.Option(help="Registered model.")] = settings.BUNDLE_MODEL,
    notify: Annotated[str, typer.Option(metavar="URL", help="URL that is told; default CALMLFLOW_NOTIFY_URL.")] = "",
) -> None:
    """Put an earlier version back into Production.

    It takes seconds and asks no gate. Twice in a row goes back two steps; a version that was rolled back from comes
    back by `calmlflow promote` only.
    """
    from calmlflow.registry.tracking import connect
    from calmlflow.runs.promote import roll_back_to

    connect()
    say(roll_back_to(to, reason, model, notify))


def stages(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every version, not the newest five of a stage.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show who moved which version, when and why.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Finish a move that was cut short, and mend stages and aliases, first.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="Registered model of --history, and one more for --repair.")
    ] = settings.BUNDLE_MODEL,
) -> None:
    """Show versions, stages, scores, age and gate.

    Scores are of each version's own held-out jobs; `calmlflow diff A B` sets two side by side.
    """
    # Heavy, and not needed for --help.
    from mlflow import MlflowClient
    from rich.console import Console

    from calmlflow.cli.versions_table import show_versions
    from calmlflow.registry.overview import overview
    from calmlflow.registry.tracking import connect

    connect()
    client = MlflowClient()
    if repair:
        _repair(client, model)
    if history:
        _show_history(client, model, as_json)
        return
    found = overview(client)
    if as_json:
        print(json.dumps(found))
        return
    # Lines that go elsewhere than to a terminal are long, so that a version stays on one.
    show_versions(found, None if every else SHOWN, Console(highlight=False, width=None if sys.stdout.isatty() else 200))
    _warn_of_open(client, [name for name, by_stage in found.items() if by_stage])


def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A number, a stage, @alias, or models:/NAME/ and one of these.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    model: Annotated[str, typer.Option(help="Registered model, where no name is given.")] = settings.BUNDLE_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions.

    Parameters, scores, data, gate and files.
    """
    from calmlflow.registry.diff import as_text, compare_versions
    from calmlflow.registry.tracking import connect

    connect()
    difference = compare_versions(a, b, model)
    print(json.dumps(difference.as_dict()) if as_json else as_text(difference))


def _repair(client: Any, model: str) -> None:
    from calmlflow.errors import InputError
    from calmlflow.registry.moves import repair

    mended = []
    for name in dict.fromkeys((settings.BUNDLE_MODEL, *settings.NETWORK_MODELS.values(), model)):
        try:
            mended += repair(client, name)
        except InputError:
            # Nothing of that name has been registered yet.
            continue
    for sentence in mended or ["nothing to repair"]:
        say(sentence)


def _show_history(client: Any, model: str, as_json: bool) -> None:
    from calmlflow.registry.versions import read_state

    events = read_state(client, model).events
    if as_json:
        print(json.dumps([asdict(event) | {"checks": [check._asdict() for check in event.checks]} for event in events]))
        return
    for event in events:
        before = f", in place of {event.before}" if event.before is not None else ""
        how = f"forced {event.action}" if event.forced else event.action
        cut_short = " - cut short: finish it with calmlflow stages --repair" if event.is_open else ""
        print(f"{event.at}  version {event.version} to {event.stage}{before}: {how} by {event.who}{cut_short}")
        if event.reason:
            print(f"    {event.reason}")
        failed = [
            f"{check.name} {check.figure} (expected {check.expected})" for check in event.checks if not check.passed
        ]
        if event.checks:
            told = f"    {len(event.checks) - len(failed)} of {len(event.checks)} checks passed, run {event.run_id}"
            print(told + "".join(f"\n    failed: {check}" for check in failed))
    if not events:
        say(f"no version of {model} was moved yet")


def _warn_of_open(client: Any, models: list[str]) -> None:
    from calmlflow.registry.versions import read_state

    for model in models:
        for event in read_state(client, model).open_events():
            say(
                f"warning: the {event.action} of version {event.version} of {model} to {event.stage} was cut short; "
                "finish it with `calmlflow stages --repair`"
            )
