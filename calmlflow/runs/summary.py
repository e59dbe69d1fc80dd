"""What a person reads at the end of a command."""

import sys

from rich.console import Console
from rich.table import Table

from calmlflow.runs.train import Outcome
from calmlflow.settings import hide_password, tracking_uri

SHOWN = {
    "mem_bin": {"accuracy": "{:.4f}", "recall_16g": "{:.2f}", "excess_cost": "{:.2%}", "log_loss": "{:.4f}"},
    "memory": {"rmse": "{:.3f} GB", "mae": "{:.3f} GB", "log_mae": "{:.3f}"},
    "wallclock": {
        "rmse": "{:.0f} s",
        "mae": "{:.0f} s",
        "log_mae": "{:.3f}",
        "kill_time_coverage": "{:.2%}",
        "kill_time_reserved": "{:.2f} x used",
    },
}
"""Scores of each target that the closing table shows, out of all that the run logs."""


def print_training(outcome: Outcome) -> None:
    """Print scores beside what they are held against, where the time went, and what to open."""
    table = Table("target", "score", title="Scores on the held-out jobs", title_justify="left")
    kinds = {"test": "network", "floor": "floor", "forest": "random forest", "champion": "champion"}
    for heading in kinds.values():
        table.add_column(heading, justify="right")
    for target, formats in SHOWN.items():
        scores = outcome.scores.get(target, {})
        for name, text in formats.items():
            if name in scores.get("test", {}):
                cells = [text.format(scores[kind][name]) if name in scores.get(kind, {}) else "" for kind in kinds]
                table.add_row(target, name, *cells)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print("floor: the best that any function of the nine features could score on these very jobs;")
    console.print("champion: the version in Production, which may have trained on some of them")
    console.print("seconds: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in outcome.seconds.items()))
    if outcome.taken_over:
        console.print(f"taken over: {', '.join(outcome.taken_over)}: from version {outcome.champion}")
    for model, version in outcome.versions.items():
        console.print(f"registered: {model} version {version}")
    if outcome.written:
        console.print(f"written:    {outcome.written}")
    if outcome.sent:
        console.print(f"sent:       {outcome.sent}")
    if outcome.promoted:
        console.print(f"promoted:   {outcome.promoted}")
    console.print(f"results:    {outcome.tree}")
    console.print(f"run:        {outcome.run_id} on {hide_password(tracking_uri())}")
