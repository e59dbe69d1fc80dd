"""The gate's errors, on answers made by hand: it passes what differs by chance, and refuses what is worse."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.gate import WORSE, gate_checks
from calmlflow.registry.limits import read_limits

JOBS = 6000


@pytest.fixture(scope="module")
def jobs() -> pd.DataFrame:
    """Jobs of 300 programmes that share an instrument each; one in a hundred needs 16g or 64g."""
    draw, number = np.random.default_rng(0), np.arange(JOBS)
    programme = number // 20
    bins = np.where(number % 100 == 0, 2, np.where(number % 150 == 7, 3, number % 5 == 0))
    return pd.DataFrame(
        {
            "ipst": [f"{programme[n]:04}{n % 100000:05}" for n in number],
            "n_files": 2,
            "instr": programme % 4,
            "detector": np.where(programme % 4 == 3, programme // 4 % 2, 0),
            "dtype": programme // 8 % 2,
            "mem_bin": bins,
            "memory": np.array([1.0, 4.0, 12.0, 40.0])[bins] * draw.uniform(0.9, 1.1, JOBS),
            "wallclock": np.exp(draw.normal(6, 0.5, 300)[programme] + draw.normal(0, 0.12, JOBS)),
        }
    )


def answers(jobs: pd.DataFrame, seed: int) -> dict[str, np.ndarray]:
    """Errors that all seeds share, and small ones of the seed's own; two bins of a hundred are wrong."""
    shared, own = np.random.default_rng(1), np.random.default_rng(100 + seed)
    needed = jobs["mem_bin"].to_numpy()
    wrong = (shared.random(JOBS) < 0.02) & (needed < 2) | (own.random(JOBS) < 0.0005)
    chosen = np.where(wrong, (needed + 1) % 2, needed)
    wallclock_s = jobs["wallclock"].to_numpy() * np.exp(shared.normal(0, 0.12, JOBS) + own.normal(0, 0.01, JOBS))
    return {
        "probabilities": np.eye(4)[chosen] * 0.96 + 0.01,
        "bin_pred": chosen,
        "mem_pred": jobs["memory"].to_numpy() * np.exp(shared.normal(0, 0.05, JOBS) + own.normal(0, 0.005, JOBS)),
        "wall_pred": wallclock_s,
        "kill_time": np.ceil(1.6 * wallclock_s),
    }


def failed(jobs: pd.DataFrame, this: dict, other: dict) -> set[str]:
    # Whole programmes, a third of them.
    held_out = np.flatnonzero(np.arange(JOBS) // 20 % 3 == 0)
    checks = gate_checks(jobs, held_out, this, other, read_limits("default"))
    return {check.name for check in checks if check.passed is False}


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 3), (3, 0)])
def test_a_pair_that_differs_in_its_seed_alone_passes(jobs, pair):
    one, two = (answers(jobs, seed) for seed in pair)
    assert failed(jobs, one, two) == set()


@pytest.mark.parametrize("how", WORSE)
def test_a_challenger_that_was_made_worse_is_refused(jobs, how):
    assert len(WORSE) == 10
    assert failed(jobs, WORSE[how](jobs, answers(jobs, 0)), answers(jobs, 1)) != set()
