"""What a person reads at the end of a cross-validation or a search."""

import sys

from rich.console import Console
from rich.table import Table

from calmlflow.runs.crossval import CrossvalOutcome
from calmlflow.runs.summary import SHOWN
from calmlflow.runs.tune import TuneOutcome
from calmlflow.settings import hide_password, tracking_uri


def print_crossval(outcome: CrossvalOutcome) -> None:
    """Print mean, spread and interval of the main scores, failed folds, and what to open."""
    table = Table("target", "score", title=f"Scores over {outcome.folds} folds", title_justify="left")
    for heading in ("mean", "sd of folds", "95 % interval of the mean", "folds"):
        table.add_column(heading, justify="right")
    for target, scores in outcome.scores.items():
        succeeded = outcome.folds - len(outcome.failures[target])
        for name, text in SHOWN[target].items():
            if name in scores:
                mean, sd, low, high = scores[name]
                spread = "" if sd is None else text.format(sd)
                interval = "" if low is None or high is None else f"{text.format(low)} to {text.format(high)}"
                table.add_row(target, name, text.format(mean), spread, interval, str(succeeded))
    console = _console()
    console.print(table)
    for target, failures in outcome.failures.items():
        if failures:
            console.print(f"warning:    {len(failures)} of {outcome.folds} folds of {target} failed and do not count")
    console.print(f"seconds:    {outcome.seconds:.1f}")
    console.print(f"results:    {outcome.tree}")
    console.print(f"run:        {outcome.run_id} on {hide_password(tracking_uri())}")


def print_search(outcome: TuneOutcome) -> None:
    """Print what each search found, and how to train with it."""
    table = Table("network", "objective", title="Objective, cross-validated on training jobs", title_justify="left")
    for heading in ("at the start", "at best", "trial", "complete", "pruned", "failed"):
        table.add_column(heading, justify="right")
    for network, found in outcome.searches.items():
        start = "" if found.start is None else f"{found.start:.5g}"
        counts = [str(found.counts[state]) for state in ("complete", "pruned", "failed")]
        table.add_row(network, found.objective, start, f"{found.best:.5g}", str(found.trial), *counts)
    console = _console()
    console.print(table)
    console.print(f"config:     {outcome.config}: use it as -P config={outcome.config}")
    console.print(f"run:        {outcome.run_id} on {hide_password(tracking_uri())}")


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
