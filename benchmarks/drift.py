"""Count false alarms of drift, and real shifts that are found, in jobs of whole programmes."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from calmlflow.console import progress, script
from calmlflow.hst.dataset import programmes
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.runs.retrain import Limits, judge_jobs

NEW = (200, 500, 1000, 3000)


def _larger(*columns: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda jobs: jobs.assign(**{name: 1.5 * jobs[name] for name in columns}).round({"total_mb": 0})


SHIFTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "none (false alarms)": lambda jobs: jobs,
    "each job 1.5 x larger": _larger("total_mb", "memory", "wallclock"),
    "total_mb x 1.5": _larger("total_mb"),
    "memory x 1.5": _larger("memory"),
    "wallclock x 1.5": _larger("wallclock"),
}
MIX = "another mix: no WFC3"


def new_programmes(jobs: pd.DataFrame, n: int, seed: int, without: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part seen and new jobs: whole programmes, drawn until they have n jobs; without an instrument, by its letter."""
    names = programmes(jobs["ipst"])
    order = np.random.default_rng(seed).permutation(np.unique(names))
    order = order[~np.char.startswith(order, without)] if without else order
    sizes = pd.Series(names).value_counts()[order].cumsum()
    is_new = np.isin(names, sizes.index[: np.searchsorted(sizes, n) + 1])
    return jobs[~is_new], jobs[is_new]


def has_drifted(seen: pd.DataFrame, new: pd.DataFrame) -> bool:
    """Whether `retrain` would train anew because of drift."""
    (drift,) = (one for one in judge_jobs(new, seen, Limits()).criteria if one.name == "drift")
    return drift.met


def simulate(jobs: pd.DataFrame, sizes: tuple[int, ...], draws: int) -> dict[str, list[int]]:
    """Shift -> in how many draws of each size there was an alarm."""
    found = {name: [0] * len(sizes) for name in (*SHIFTS, MIX)}
    with progress("drift", "draws") as update:
        for at, n in enumerate(sizes):
            for seed in range(draws):
                seen, new = new_programmes(jobs, n, seed)
                for name, shift in SHIFTS.items():
                    found[name][at] += has_drifted(seen, shift(new))
                found[MIX][at] += has_drifted(*new_programmes(jobs, n, seed, "i"))
                update(at * draws + seed + 1, len(sizes) * draws)
    return found


def main(
    data: Annotated[str, typer.Option(help="A store of job records.")] = "sample",
    draws: Annotated[int, typer.Option(help="Of each size.")] = 40,
) -> None:
    """Print a table of alarms by shift and number of new jobs."""
    jobs = read_jobs(data).valid
    table = Table(title=f"Alarms in {draws} draws of new jobs, {len(jobs):,} jobs", title_justify="left")
    for heading in ("shift", *(f"{n:,} new jobs" for n in NEW)):
        table.add_column(heading)
    for name, counts in simulate(jobs, NEW, draws).items():
        table.add_row(name, *map(str, counts))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    script(main)
