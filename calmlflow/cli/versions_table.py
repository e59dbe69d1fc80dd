"""Registered versions for a person: a table where there is room for one, or else a paragraph each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Entry = Mapping[str, Any]
"""One version, as `calmlflow.registry.overview.overview` describes it."""

WIDE = 160
"""Characters that the table needs. Squeezed into less, its columns hold nothing that can be read."""

SCORES = {
    ("mem_bin", "accuracy"): ("accuracy", "{:.4f}"),
    ("mem_bin", "excess_cost"): ("excess cost", "{:.2%}"),
    ("memory", "rmse"): ("memory RMSE", "{:.3f} GB"),
    ("wallclock", "rmse"): ("wallclock RMSE", "{:.0f} s"),
    ("wallclock", "kill_time_coverage"): ("in time", "{:.2%}"),
}


def show_versions(found: Mapping[str, Mapping[str, Sequence[Entry]]], most: int | None, console: Console) -> None:
    """Print what `calmlflow.registry.overview.overview` found: at most so many versions of each stage, or all."""
    if console.width >= WIDE:
        if any(found.values()):
            console.print(_table(found, most))
    else:
        for line in _paragraphs(found, most):
            console.print(line)
    more = [
        f"{len(versions) - most} more of {model} in {stage}"
        for model, by_stage in found.items()
        for stage, versions in by_stage.items()
        if most is not None and len(versions) > most
    ]
    for model, by_stage in found.items():
        if not by_stage:
            console.print(f"{model}: no versions yet")
    if more:
        console.print(_text(f"and {', '.join(more)}: --all shows them"))


def _table(found: Mapping[str, Mapping[str, Sequence[Entry]]], most: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("model", "stage"):
        table.add_column(heading, no_wrap=True)
    table.add_column("version", overflow="fold")
    for heading, _ in SCORES.values():
        # A unit may stand alone in the heading, never in a cell.
        table.add_column(heading, justify="right", min_width=9)
    table.add_column("trained on", overflow="fold")
    for heading in ("age", "gate"):
        table.add_column(heading, no_wrap=True)
    table.add_column("served by", overflow="fold")
    for model, by_stage in found.items():
        for stage, versions in by_stage.items():
            for entry in versions[:most]:
                scores = _scores(entry)
                cells = (
                    *(model, stage, _name(entry)),
                    *(scores.get(heading, "") for heading, _ in SCORES.values()),
                    *(_jobs(entry), f"{entry['age_days']:.0f} d", entry["gate"] or "", _served(entry)),
                )
                table.add_row(*map(_text, cells))
        table.add_section()
    return table


def _paragraphs(found: Mapping[str, Mapping[str, Sequence[Entry]]], most: int | None) -> Iterator[Text | Padding]:
    for model, by_stage in found.items():
        if by_stage:
            yield Text(model, style="bold")
        for stage, versions in by_stage.items():
            for entry in versions[:most]:
                gate = f"gate {entry['gate']}" if entry["gate"] else ""
                lines = (
                    ", ".join(filter(None, [f"{stage} {_name(entry)}", f"{entry['age_days']:.0f} d old", gate])),
                    ", ".join(f"{heading} {text}" for heading, text in _scores(entry).items()),
                    _jobs(entry),
                    _served(entry),
                )
                for indent, line in zip((2, 6, 6, 6), lines, strict=True):
                    if line:
                        yield Padding(_text(line), (0, 0, 0, indent))


def _name(entry: Entry) -> str:
    state = "" if entry["status"] == "READY" else f" ({entry['status']})"
    return f"{entry['version']}{state}" + "".join(f" @{alias}" for alias in entry["aliases"])


def _scores(entry: Entry) -> dict[str, str]:
    scores = entry["scores"]
    return {
        heading: form.format(scores[target][name])
        for (target, name), (heading, form) in SCORES.items()
        if name in scores.get(target, {})
    }


def _jobs(entry: Entry) -> str:
    count = f"{entry['jobs']:,} jobs to {entry['newest_job'] or '?'}" if entry["jobs"] else ""
    return f"{entry['data'] or ''} {count}".strip()


def _served(entry: Entry) -> str:
    # By its number alone every version is served.
    by_stage = "" if entry["uri"].endswith(f"/{entry['version']}") else entry["uri"]
    return ", ".join(filter(None, [by_stage, "cached here" if entry["cached_here"] else ""]))


def _text(text: str) -> Text:
    """Text from the registry is shown, not obeyed: neither as markup nor by the terminal."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
