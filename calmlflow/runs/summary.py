"""Outcomes of trainings, cross-validations and searches: their values, the closing tables, a run's description."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from calmlflow.results.scores import SCORES, headlines
from calmlflow.settings import hide_password, tracking_uri

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target -> kind -> score -> value; the kinds are those of `KINDS`, as far as they are known."""

KINDS = {"test": "network", "floor": "floor", "forest": "random forest", "champion": "champion"}
"""Scored on the same test jobs, with the heading of each."""

NOTES = {
    "floor": "floor: the best that any function of the nine features could score on these very jobs",
    "champion": "champion: the version in Production, which may have trained on some of these jobs",
}


@dataclass(frozen=True)
class Outcome:
    """A training, or an adoption, that has ended well.

    Attributes
    ----------
    run_id : str
    tree : Path
        Its folder.
    scores : dict
        See `Scores`. A target whose network was taken over has only the champion's, as they are one and the same.
    seconds : dict of str to float
        Time of each part.
    versions : dict of str to int
        Registered model -> new version.
    champion : str
        Version in Production at the start, if any.
    taken_over : tuple of str
        Networks that come from the champion.
    written, sent, promoted : str
        One sentence each, if that was asked for.
    """

    run_id: str
    tree: Path
    scores: Scores
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    champion: str = ""
    taken_over: tuple[str, ...] = ()
    written: str = ""
    sent: str = ""
    promoted: str = ""


class Spread(NamedTuple):
    """One score over the folds: mean, standard deviation, and the bounds of the mean's 95 % t interval.

    With a single fold the last three are None. Folds share most of their training jobs, so the interval is somewhat
    too narrow: no estimate of the variance from the folds alone is unbiased (Bengio & Grandvalet, JMLR 5, 2004).
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CrossvalOutcome:
    """A cross-validation: by target, the `Spread` of each score, and the folds that failed with their reasons."""

    run_id: str
    tree: Path
    folds: int
    scores: Mapping[str, Mapping[str, Spread]]
    failures: Mapping[str, Mapping[int, str]]
    seconds: float


@dataclass(frozen=True)
class Search:
    """A search for the hyper-parameters of one network.

    ``start`` is the objective of the config it set out from (None if that failed), ``best`` the lowest one, of trial
    number ``trial``; ``counts`` are trials that are complete, pruned and failed.
    """

    objective: str
    start: float | None
    best: float
    trial: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class TuneOutcome:
    """The searches by network, and the file with the best hyper-parameters."""

    run_id: str
    config: Path
    searches: Mapping[str, Search]


def _rows(scores: Scores) -> Iterator[list[str]]:
    """Headings, then target, score and the value of each kind, for the headline scores of every trained target."""
    kinds = [kind for kind in KINDS if any(kind in found for found in scores.values())]
    yield ["target", "score", *(KINDS[kind] for kind in kinds)]
    for target, found in scores.items():
        for name in headlines(target):
            if name in found.get("test", {}):
                score = SCORES[target][name]
                cells = (score.text(found[kind][name]) if name in found.get(kind, {}) else "" for kind in kinds)
                yield [target, score.title, *cells]


def describe(scores: Scores, title: str, next_steps: str) -> str:
    """A run's description for its page in MLflow, in Markdown: headline scores, and what to open next."""
    headings, *rows = _rows(scores)
    lines = [headings, ["---", "---", *["---:"] * (len(headings) - 2)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = "\n".join(f"- {NOTES[kind]}" for kind in NOTES if KINDS[kind] in headings)
    return f"**{title}**, scored on the test jobs\n\n{table}\n\n{notes}\n\n{next_steps}"


def print_training(outcome: Outcome) -> None:
    """Print headline scores beside those of the same jobs' floor, forest and champion, times, and what to open."""
    headings, *rows = _rows(outcome.scores)
    _print_table("Scores on the test jobs", headings, rows)
    lines = [note for kind, note in NOTES.items() if KINDS[kind] in headings]
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
                text = SCORES[target][name].text
                interval = "" if low is None or high is None else f"{text(low)} to {text(high)}"
                cells = [text(mean), "" if sd is None else text(sd), interval, str(succeeded)]
                rows.append([target, SCORES[target][name].title, *cells])
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
    Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110).print(table)


def _print_end(run_id: str, *lines: str) -> None:
    for line in (*lines, f"run:        {run_id} on {hide_password(tracking_uri())}"):
        print(line)
