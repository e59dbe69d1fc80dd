"""Commands that promote, roll back and show versions of the registry."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from calmlflow import settings
from calmlflow.cli.options import Model
from calmlflow.console import say
from calmlflow.errors import InputError
from calmlflow.registry.overview import Entry, by_stage, gone_files, problems, read_models
from calmlflow.registry.versions import State, read_state
from calmlflow.results.scores import SCORES

SHOWN = 5
"""Versions of a stage in the table, without --all."""

WIDE = 160
"""Characters that the table needs. Squeezed into less, its columns hold nothing that can be read."""

COLUMNS = {
    "accuracy": ("mem_bin", "accuracy"),
    "excess cost": ("mem_bin", "excess_cost"),
    "memory RMSE": ("memory", "rmse"),
    "wallclock RMSE": ("wallclock", "rmse"),
    "in time": ("wallclock", "kill_time_coverage"),
}
"""Heading -> target and score."""

Placed = tuple[str, str, Entry]
"""Model, stage and version."""


def promote(
    stage: Annotated[str, typer.Option(help="Staging, Production or Archived.")] = "Staging",
    version: Annotated[
        str, typer.Option(help="A number; auto: the newest for Staging, Staging's for Production.")
    ] = "auto",
    model: Model = settings.BUNDLE_MODEL,
    data: Annotated[
        str, typer.Option(help="Jobs to judge by, newer than those of both trainings; held-out: the challenger's.")
    ] = "held-out",
    gate: Annotated[str, typer.Option(help="Limits: 'default', or a YAML file.")] = "default",
    force: Annotated[
        bool, typer.Option("--force", help="Overrule judgements, not missing or changed files; needs --reason.")
    ] = False,
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
    model: Model = settings.BUNDLE_MODEL,
) -> None:
    """Put an earlier version back into Production.

    It takes seconds and asks no gate. Twice in a row goes back two steps; a version that was rolled back from comes
    back by `calmlflow promote` only.
    """
    from calmlflow.registry.tracking import connect
    from calmlflow.runs.promote import roll_back_to

    # The way back must not depend on the tracking server.
    connect(registry_only=True)
    say(roll_back_to(to, reason, model))


def stages(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every version, not the newest five of a stage.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Show who moved which version, when and why.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First record moves that the history lacks, and mend aliases."),
    ] = False,
    model: Annotated[
        str, typer.Option(help="Registered model of --history, and one more for --repair.")
    ] = settings.BUNDLE_MODEL,
) -> None:
    """Show versions, stages, scores, age and gate.

    Scores are of each version's own held-out jobs; `calmlflow diff A B` shows two side by side. Exit status 1 if a
    version was moved without the gate, or a move was cut short.
    """
    if repair:
        from calmlflow.registry.promote import repair as mend
        from calmlflow.registry.tracking import connect

        connect(registry_only=True)
        mended = []
        for name in dict.fromkeys((settings.BUNDLE_MODEL, *settings.NETWORK_MODELS.values(), model)):
            # Perhaps nothing of that name has been registered yet.
            with suppress(InputError):
                mended += mend(name)
        for sentence in mended or ["nothing to repair"]:
            say(sentence)
    if history:
        _show_history(read_state(model), as_json)
        return
    models = read_models()
    found = {name: by_stage(state, gone_files(state)) for name, state in models.items()}
    if as_json:
        print(json.dumps(found))
    else:
        # A line that does not go to a terminal is long, so that a version stays on one.
        width = None if sys.stdout.isatty() else 200
        show_versions(found, None if every else SHOWN, Console(highlight=False, width=width))
    wrong = [sentence for state in models.values() for sentence in problems(state)]
    for sentence in wrong:
        say(f"warning: {sentence}")
    if wrong:
        sys.exit(1)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=f"{settings.CHOICES}; or models:/NAME/ and one of these.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    model: Model = settings.BUNDLE_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions: parameters, scores, data, gate and files."""
    from calmlflow.registry.diff import as_text, compare_versions
    from calmlflow.registry.tracking import connect

    connect()
    difference = compare_versions(a, b, model)
    print(json.dumps(difference) if as_json else as_text(difference))


def _show_history(state: State, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(event) for event in state.events]))
        return
    for event in state.events:
        before = f", in place of {event.before}" if event.before is not None else ""
        action = "moved without the gate, recorded" if event.action == "outside" else event.action
        how = f"forced {action}" if event.forced else action
        print(f"{event.at}  version {event.version} to {event.stage}{before}: {how} by {event.who}")
        if event.reason:
            print(f"    {event.reason}")
        if event.run_id:
            print(f"    gate: run {event.run_id}")
        for check in event.failed:
            print(f"    failed: {check}")
        for check in event.undecided:
            print(f"    not decided: {check}")
    if not state.events:
        say(f"no version of {state.model} was moved yet")


def show_versions(found: Mapping[str, Mapping[str, Sequence[Entry]]], most: int | None, console: Console) -> None:
    """Print versions by model and stage, at most so many of each stage; as paragraphs where a table has no room."""
    from calmlflow.hst.ladder import LADDER

    entries: list[Placed] = []
    notes = []
    for model, stages_of in found.items():
        if not stages_of:
            notes.append(f"{model}: no versions yet")
        other = [entry for versions in stages_of.values() for entry in versions if entry["ladder"] != LADDER.version]
        notes += [
            f"version {entry['version']} of {model} is for ladder {entry['ladder']}; in force is {LADDER.version}"
            for entry in other
        ]
        for stage, versions in stages_of.items():
            entries += [(model, stage, entry) for entry in versions[:most]]
            if most is not None and len(versions) > most:
                notes.append(f"and {len(versions) - most} more of {model} in {stage}: --all shows them")
    if entries:
        console.print(_table(entries) if console.width >= WIDE else Group(*_paragraphs(entries)))
    for note in notes:
        console.print(_text(note))


def _table(entries: Sequence[Placed]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("model", "stage", "version", *COLUMNS, "trained on", "age", "gate", "served by"):
        if heading in COLUMNS:
            # A unit may stand alone in the heading, never in a cell.
            table.add_column(heading, justify="right", min_width=9)
        else:
            table.add_column(heading, no_wrap=heading in ("model", "stage", "age", "gate"), overflow="fold")
    for number, (model, stage, entry) in enumerate(entries):
        name, scores, jobs, served = _texts(entry)
        cells = [model, stage, name, *(scores.get(heading, "") for heading in COLUMNS), jobs]
        cells += [f"{entry['age_days']:.0f} d", entry["gate"] or "", served]
        is_last = [name for name, _, _ in entries[number + 1 : number + 2]] != [model]
        table.add_row(*map(_text, cells), end_section=is_last)
    return table


def _paragraphs(entries: Sequence[Placed]) -> Iterator[Text | Padding]:
    shown = None
    for model, stage, entry in entries:
        if model != shown:
            yield Text(model, style="bold")
            shown = model
        name, scores, jobs, served = _texts(entry)
        gate = f", gate {entry['gate']}" if entry["gate"] else ""
        yield Padding(_text(f"{stage} {name}, {entry['age_days']:.0f} d old{gate}"), (0, 0, 0, 2))
        for line in (", ".join(f"{heading} {text}" for heading, text in scores.items()), jobs, served):
            if line:
                yield Padding(_text(line), (0, 0, 0, 6))


def _texts(entry: Entry) -> tuple[str, dict[str, str], str, str]:
    """Name, scores by heading, jobs, and URI that it is served by."""
    status = "" if entry["status"] == "READY" else f" ({entry['status']})"
    status += " (files gone)" if entry["files_gone"] else ""
    scores = {
        heading: SCORES[target][name].text(entry["scores"][target][name])
        for heading, (target, name) in COLUMNS.items()
        if name in entry["scores"].get(target, {})
    }
    count = f"{entry['jobs']:,} jobs to {entry['newest_job'] or '?'}" if entry["jobs"] else ""
    # By its number alone every version is served.
    by_name = "" if entry["uri"].endswith(f"/{entry['version']}") else entry["uri"]
    return (
        f"{entry['version']}{status}" + "".join(f" @{alias}" for alias in entry["aliases"]),
        scores,
        f"{entry['data'] or ''} {count}".strip(),
        ", ".join(filter(None, [by_name, "cached here" if entry["cached_here"] else ""])),
    )


def _text(text: str) -> Text:
    """Text from the registry is shown, not obeyed: neither as markup nor by the terminal."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
