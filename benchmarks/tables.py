"""Print the results of `make bench`."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.growth import Fit
from benchmarks.reach import Reach
from calmlflow.hst.ladder import BIN_NAMES

RIVALS = ("answer", "networks", "seed recipe", "random forest", "log-linear", "floor")

ROWS = {
    "fit_seconds": ("fit, s", "{:.2f}"),
    "mem_bin_accuracy": ("accuracy", "{:.4f}"),
    **{f"mem_bin_recall_{name}": (f"recall {name}", "{:.3f}") for name in BIN_NAMES},
    **{f"mem_bin_decided_recall_{name}": (f"recall {name}, bin decided on", "{:.3f}") for name in BIN_NAMES},
    "mem_bin_excess_cost": ("excess cost", "{:.2%}"),
    "mem_bin_log_loss": ("log loss", "{:.4f}"),
    "memory_rmse": ("memory RMSE, GB", "{:.4f}"),
    "memory_mae": ("memory MAE, GB", "{:.4f}"),
    "memory_log_mae": ("memory log MAE", "{:.4f}"),
    "wallclock_rmse": ("wallclock RMSE, s", "{:.1f}"),
    "wallclock_mae": ("wallclock MAE, s", "{:.1f}"),
    "wallclock_log_mae": ("wallclock log MAE", "{:.4f}"),
    "wallclock_ape_median": ("wallclock APE, median", "{:.1%}"),
    "wallclock_ape_p95": ("wallclock APE, 95th percentile", "{:.1%}"),
    "wallclock_kill_time_coverage": ("kill time covers", "{:.2%}"),
    "wallclock_kill_time_reserved": ("kill time reserves, x used", "{:.2f}"),
    "wallclock_kill_time_3x_coverage": ("3 x prediction covers", "{:.2%}"),
    "wallclock_kill_time_3x_reserved": ("3 x prediction reserves, x used", "{:.2f}"),
    "wallclock_kill_time_6x_coverage": ("6 x prediction covers", "{:.2%}"),
    "wallclock_kill_time_6x_reserved": ("6 x prediction reserves, x used", "{:.2f}"),
}
"""Key -> its title in the table, and its format."""


@dataclass(frozen=True)
class Measured:
    """Results of a benchmark; the JSON file has the same fields.

    Attributes
    ----------
    data : str
    seed : int
    sizes : dict of str to int
    machine : dict
        ``cpus``, ``python``, and ``load``: the load average of the last minute before and after.
    seed_recipe : dict
        ``epoch_seconds`` of each network, measured here; ``scores_of``: where the scores are from; and, with a
        stored run, ``stored_fit_seconds`` of each network at full length, on the machine of that run.
    scores : dict of str to dict of str to float
        Rival -> ``fit_seconds`` or ``{target}_{score}`` -> value. What a rival has no prediction for is absent.
    growth : list of Fit
    reach : list of Reach
    """

    data: str
    seed: int
    sizes: dict[str, int]
    machine: dict
    seed_recipe: dict
    scores: dict[str, dict[str, float]]
    growth: list[Fit]
    reach: list[Reach]


def print_tables(found: Measured) -> None:
    """Print scores, what had to be reached, and growth, on standard output."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    sizes = ", ".join(f"{name} {count}" for name, count in found.sizes.items())
    load = " to ".join(f"{load:.1f}" for load in found.machine["load"])
    console.print(f"{Path(found.data).name}: {sizes}; seed {found.seed}")
    console.print(f"{found.machine['cpus']} CPUs, load {load}")
    for table in (score_table(found), reach_table(found), growth_table(found)):
        console.print(table)


def score_table(found: Measured) -> Table:
    """A row for each score, a column for each rival; '-' where there is no such score."""
    caption = (
        f"seed recipe: seconds extrapolated from timed epochs; scores of: {found.seed_recipe['scores_of']}\n"
        "recall is of the most probable bin, excess cost of the bin decided on; APE: absolute percentage error"
    )
    table = empty_table("score", "Held-out jobs", RIVALS, caption)
    for key, (label, form) in ROWS.items():
        scores = [found.scores[name].get(key) for name in RIVALS]
        table.add_row(label, *("-" if score is None else form.format(score) for score in scores))
    return table


def reach_table(found: Measured) -> Table:
    """What had to be reached, and whether it was."""
    caption = "tie: the rival scored better, by no more than the paired bootstrap over the test jobs can tell from 0"
    table = empty_table("to reach", "Reach", ("networks", "limit", "verdict", "difference, 95 %"), caption)
    for reach in found.reach:
        label, form = ROWS.get(reach.name, (reach.name, "{:.4f}"))
        limit = f"{reach.sign} {form.format(reach.limit)}" + (f" ({reach.rival})" if reach.rival else "")
        between = " to ".join(map(form.format, reach.interval)) if reach.interval else ""
        table.add_row(label, form.format(reach.value), limit, reach.verdict, between)
    return table


def growth_table(found: Measured) -> Table:
    """How the time of a fit grows with the jobs."""
    headings = ("training jobs", "distinct rows", "epochs", "fit, s", "x the first", "with export, checks, results, s")
    table = empty_table("jobs", "Growth: 3x and 10x the training jobs are drawn from them with replacement", headings)
    for fit in found.growth:
        ratio = fit.fit_seconds / found.growth[0].fit_seconds
        counts = (f"{count}" for count in (fit.train_jobs, fit.distinct_rows, fit.epochs))
        table.add_row(f"{fit.factor}x", *counts, f"{fit.fit_seconds:.2f}", f"{ratio:.2f}", f"{fit.total_seconds:.1f}")
    return table


def empty_table(first: str, title: str, headings: Iterable[str], caption: str | None = None) -> Table:
    """A table without rows: a first column of words, then columns of figures."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
