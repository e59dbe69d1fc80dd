"""Outcomes of trainings, cross-validations and searches: their values, the closing tables, a run's description."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from calmlflow.results.comparison import Interval
from calmlflow.results.scores import KINDS, NOTES, SCORES, headlines
from calmlflow.settings import hide_password, tracking_uri

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target -> kind -> score -> value; the kinds are those of `KINDS`, as far as they are known."""

Intervals = Mapping[str, Mapping[str, Interval]]
"""Target -> score -> 95 % interval of the answer's score, or else of the network's."""


@dataclass(frozen=True)
class Outcome:
    """A training, or an adoption, that has ended well."""

    run_id: str
    tree: Path
    scores: Scores  # only the champion's where the network was taken over from it
    intervals: Intervals
    seconds: Mapping[str, float] = field(default_factory=dict)  # of each part
    versions: Mapping[str, int] = field(default_factory=dict)  # registered model -> new version
    champion: str = ""  # version in Production at the start
    taken_over: tuple[str, ...] = ()  # networks that come from the champion
    # One sentence each, if that was asked for.
    written: str = ""
    sent: str = ""
    promoted: str = ""


class Spread(NamedTuple):
    """One score over the folds: mean, standard deviation, and the bounds of the mean's 95 % t interval.

    With a single fold the last three are None. Folds share most of their training jobs, so the interval is somewhat
    too narrow (Bengio & Grandvalet, JMLR 5, 2004).
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CrossvalOutcome:
    """A cross-validation: by target, each score over the folds, and the failed folds with their reasons."""

    run_id: str
    tree: Path
    folds: int
    scores: Mapping[str, Mapping[str, Spread]]
    failures: Mapping[str, Mapping[int, str]]
    seconds: float


@dataclass(frozen=True)
class Search:
    """A search for the hyper-parameters of one network."""

    objective: str
    start: float | None  # of the starting config; None if that failed
    best: float
    trial: int  # number of the best one
    counts: Mapping[str, int]  # of complete, pruned and failed trials


@dataclass(frozen=True)
class TuneOutcome:
    """The searches by network, and the file with the best hyper-parameters."""

    run_id: str
    config: Path
    searches: Mapping[str, Search]


def _rows(scores: Scores, intervals: Intervals) -> Iterator[list[str]]:
    """Headings, then for each headline score of a trained target values by kind, interval and jobs behind it."""
    kinds = [kind for kind in KINDS if any(kind in found for found in scores.values())]
    yield ["target", "score", *(KINDS[kind] for kind in kinds), "95 % interval", "jobs in programmes"]
    for target, found in scores.items():
        own = found.get("answer", found.get("test", {}))
        for name in headlines(target):
            if name in own:
                score, interval = SCORES[target][name], intervals[target][name]
                cells = [score.text(found[kind][name]) if name in found.get(kind, {}) else "" for kind in kinds]
                yield [target, score.title, *cells, interval.text(score), interval.behind(score, own[name])]


def _notes(headings: list[str]) -> list[str]:
    return [f"{KINDS[kind]}: {note}" for kind, note in NOTES.items() if KINDS[kind] in headings]


def describe(scores: Scores, intervals: Intervals, title: str, next_steps: str) -> str:
    """Describe a run for its page in MLflow, in Markdown: headline scores with intervals, and what to open next."""
    headings, *rows = _rows(scores, intervals)
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "\n".join(f"- {note}" for note in _notes(headings))
    what = "scored on the test jobs; intervals are of the first column, over programmes"
    return f"**{title}**, {what}\n\n{table}\n\n{notes}\n\n{next_steps}"


def print_training(outcome: Outcome) -> None:
    """Print headline scores beside those of forest, champion and floor, times, and what to open."""
    headings, *rows = _rows(outcome.scores, outcome.intervals)
    _print_table("Scores on the test jobs", headings, rows)
    lines = _notes(headings)
    if outcome.seconds:
        lines.append("seconds:    " + ", ".join(f"{part} {value:.1f}" for part, value in outcome.seconds.items()))
    if outcome.taken_over:
        lines.append(f"taken over: {', '.join(outcome.taken_over)}: from version {outcome.champion}")
    lines += [f"registered: {model} version {version}" for model, version in outcome.versions.items()]
    for part in ("written", "sent", "promoted"):
        if sentence := getattr(outcome, part):
            lines.append(f"{part}:".ljust(12) + sentence)
    _print_end(outcome.run_id, *lines, f"results:    {outcome.tree}")


def print_crossval(outcome: CrossvalOutcome) -> None:
    """Print mean, spread and interval of the headline scores, failed folds, and what to open."""
    rows = []
    for target, scores in outcome.scores.items():
        succeeded = outcome.folds - len(outcome.failures[target])
        for name in headlines(target):
            if name in scores:
                mean, sd, low, high = scores[name]
                score = SCORES[target][name]
                text = score.text
                # The t interval of few folds reaches beyond what a score can be.
                most = 1.0 if score.unit == "%" and score.higher_is_better else math.inf
                interval = "" if low is None or high is None else f"{text(max(low, 0.0))} to {text(min(high, most))}"
                cells = [text(mean), "" if sd is None else text(sd), interval, str(succeeded)]
                rows.append([target, score.title, *cells])
    headings = ["target", "score", "mean", "sd of folds", "95 % interval of the mean", "folds"]
    _print_table(f"Scores over {outcome.folds} folds", headings, rows)
    failed = [
        f"warning:    {len(failures)} of {outcome.folds} folds of {target} failed and do not count"
        for target, failures in outcome.failures.items()
        if failures
    ]
    _print_end(outcome.run_id, *failed, f"seconds:    {outcome.seconds:.1f}", f"results:    {outcome.tree}")


def print_search(outcome: TuneOutcome) -> None:
    """Print what each search found, and how to train with it."""
    rows = []
    for network, found in outcome.searches.items():
        start = "" if found.start is None else f"{found.start:.5g}"
        counts = [str(found.counts[state]) for state in ("complete", "pruned", "failed")]
        rows.append([network, found.objective, start, f"{found.best:.5g}", str(found.trial), *counts])
    headings = ["network", "objective", "at the start", "at best", "trial", "complete", "pruned", "failed"]
    _print_table("Objective, cross-validated on training jobs", headings, rows)
    _print_end(outcome.run_id, f"config:     {outcome.config}: use it as -P config={outcome.config}")


def _print_table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    table = Table(*headings[:2], title=title, title_justify="left")
    for heading in headings[2:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 130).print(table)


def _print_end(run_id: str, *lines: str) -> None:
    for line in (*lines, f"run:        {run_id} on {hide_password(tracking_uri())}"):
        print(line)
