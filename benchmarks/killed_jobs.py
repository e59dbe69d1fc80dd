"""Retrain many times on jobs that the kill times in force have ended: `python -m benchmarks.killed_jobs`."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calmlflow.console import script
from calmlflow.predictor.killtime import fit_kill_time

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

SCORES: dict[str, Draw] = {
    "normal": lambda generator, n: generator.normal(0, 0.3, n),
    "Laplace": lambda generator, n: generator.laplace(0, 0.2, n),
    "Student's t, 5": lambda generator, n: 0.25 * generator.standard_t(5, n),
    "1 % odd jobs": lambda generator, n: np.where(
        generator.random(n) < 0.01, generator.normal(0.6, 0.5, n), generator.normal(0, 0.2, n)
    ),
}
"""Distributions of ln(wallclock / prediction)."""


class Round(NamedTuple):
    """One retraining: the share of all later jobs that its kill times let end, and seconds reserved over used."""

    coverage: float
    reserved: float


def simulate(draw: Draw, keep_killed: bool, rounds: int = 24, jobs: int = 20_000, seed: int = 0) -> list[Round]:
    """Retrain ``rounds`` times on new jobs, of which those beyond the kill times in force are killed."""
    generator = np.random.default_rng(seed)
    found: list[Round] = []
    kill_time = None
    for _ in range(rounds):
        predicted_s = np.exp(generator.normal(6, 1, jobs))
        actual_s = predicted_s * np.exp(draw(generator, jobs))
        limit_s = np.full(jobs, np.inf) if kill_time is None else kill_time.apply(predicted_s)
        killed = actual_s > limit_s
        kept = np.ones(jobs, dtype=bool) if keep_killed else ~killed
        reached_s = np.minimum(actual_s, limit_s)
        kill_time = fit_kill_time(
            predicted_s[kept], reached_s[kept], np.zeros(kept.sum(), dtype=int), was_killed=killed[kept]
        )
        later_s = np.exp(generator.normal(6, 1, 400_000))
        used_s, limit_s = later_s * np.exp(draw(generator, len(later_s))), kill_time.apply(later_s)
        found.append(Round(float(np.mean(used_s <= limit_s)), float(limit_s.sum() / used_s.sum())))
    return found


def main(
    rounds: Annotated[int, typer.Option(help="Retrainings.")] = 24,
    seeds: Annotated[int, typer.Option(help="Simulations of each kind.")] = 3,
) -> None:
    """Print true coverage and reserved time of the first and of the last eight retrainings."""
    headings = ("killed jobs", "first, covered", "last 8, covered", "lowest", "first, reserved", "last 8, reserved")
    table = Table("ln(wallclock / prediction)", *headings, title=f"{rounds} retrainings, {seeds} seeds")
    for name, draw in SCORES.items():
        for keep_killed in (True, False):
            found = np.array([simulate(draw, keep_killed, rounds, seed=seed) for seed in range(seeds)])
            covered, reserved = found[:, :, 0], found[:, :, 1]
            table.add_row(
                name,
                "kept" if keep_killed else "left out",
                *(f"{share:.3%}" for share in (covered[:, 0].mean(), covered[:, -8:].mean(), covered.min())),
                *(f"{ratio:.2f} x" for ratio in (reserved[:, 0].mean(), reserved[:, -8:].mean())),
            )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    script(main)
