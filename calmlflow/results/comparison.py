"""Compare two trainings job by job, with bootstrap intervals of the differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.results.checks import memory_bins, positive_values, probability_rows, wallclock_seconds
from calmlflow.results.classification import log_losses
from calmlflow.results.regression import SMALLEST_PREDICTION

RESAMPLES = 1000
INTERVAL_PERCENT = 95
TAILS = (2.5, 97.5)


class BinAnswers(NamedTuple):
    """Answers of a classifier for n jobs.

    Attributes
    ----------
    actual : Series of int
        Needed bins; the index holds the dataset names.
    probabilities : ndarray, shape (n, 4)
    chosen : ndarray of int, shape (n,)
        Bins that were decided on.
    wallclock_s : ndarray, shape (n,), or None
        Actual seconds, where they are known.
    """

    actual: pd.Series
    probabilities: NDArray[np.float64]
    chosen: NDArray[np.int64]
    wallclock_s: NDArray[np.float64] | None


class ValueAnswers(NamedTuple):
    """Answers of a regressor for n jobs.

    Attributes
    ----------
    actual : Series of float
        GB or seconds; the index holds the dataset names.
    predicted : ndarray, shape (n,)
    kill_time_s : ndarray, shape (n,), optional
        Seconds.
    """

    actual: pd.Series
    predicted: NDArray[np.float64]
    kill_time_s: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of two networks on the jobs that both saw.

    Attributes
    ----------
    target : str
    scores : DataFrame
        One row per score, named as in `calmlflow.results.scores`. Columns: this, other, difference (this - other),
        low and high, the bounds of its 95 % bootstrap interval over jobs (percentiles of 1000 resamples), and jobs,
        of how many the score is (the recall of a bin, of those that need it).
    jobs : int
        Jobs compared: in both splits, with the same actual value.
    only_this, only_other : int
        Jobs that only one of the two saw; left out.
    differing : int
        Jobs whose actual value is not the same in the two (another run of the same dataset); left out.
    """

    target: str
    scores: pd.DataFrame
    jobs: int
    only_this: int
    only_other: int
    differing: int

    def __str__(self) -> str:
        """A table for a person, with the jobs that it leaves out said first."""
        left_out = (
            f"left out: {self.only_this:,} only in this, {self.only_other:,} only in the other, "
            f"{self.differing:,} with different actual values"
        )
        rows = [f"{'score':<16}{'this':>12}{'other':>12}{'difference':>12}   95 % interval"]
        for name, row in self.scores.iterrows():
            rows.append(
                f"{name:<16}{row['this']:>12.4g}{row['other']:>12.4g}{row['difference']:>+12.4g}"
                f"   {row['low']:+.4g} to {row['high']:+.4g}"
            )
        return "\n".join([f"{self.target}: {self.jobs:,} test jobs in both", left_out, *rows])


def compare_bins(this: BinAnswers, other: BinAnswers, seed: int = 0) -> Comparison:
    """Compare two classifiers on the jobs that both answered for.

    Returns
    -------
    Comparison
        Of the most probable bin: accuracy, and the recall of each bin that the jobs have. log_loss (nats). Of the bin
        decided on: underallocated, overallocated and, if one of the two knows the wallclock of every job, excess_cost.

    Raises
    ------
    InputError
        The two have no job in common.
    """
    pairs = _pair(this.actual, other.actual)
    y_true = memory_bins(this.actual.iloc[pairs.this], "mem_bin")
    of_bin = {f"recall_{name}": y_true == label for label, name in enumerate(BIN_NAMES) if np.any(y_true == label)}
    wallclock_s = _wallclock(this, pairs.this)
    if wallclock_s is None:
        wallclock_s = _wallclock(other, pairs.other)
    ones = np.ones(len(y_true))
    at_stake = {"accuracy": ones, **of_bin, "log_loss": ones, "underallocated": ones, "overallocated": ones}
    if wallclock_s is not None:
        at_stake["excess_cost"] = allocation_cost(y_true, y_true, wallclock_s)

    def terms(answers: BinAnswers, jobs: NDArray[np.int64]) -> dict[str, NDArray]:
        chosen = memory_bins(answers.chosen[jobs], "chosen")
        probabilities = probability_rows(answers.probabilities[jobs], len(jobs))
        hit = probabilities.argmax(axis=1) == y_true
        found = {
            "accuracy": hit,
            **{name: hit & members for name, members in of_bin.items()},
            "log_loss": log_losses(y_true, probabilities),
            "underallocated": chosen < y_true,
            "overallocated": chosen > y_true,
        }
        if wallclock_s is not None:
            found["excess_cost"] = allocation_cost(chosen, y_true, wallclock_s) - at_stake["excess_cost"]
        return found

    return _compare("mem_bin", pairs, terms(this, pairs.this), terms(other, pairs.other), at_stake, seed)


def compare_values(this: ValueAnswers, other: ValueAnswers, seed: int = 0) -> Comparison:
    """Compare two regressors of the same target on the jobs that both answered for.

    Returns
    -------
    Comparison
        rmse and mae (unit of the target) and log_mae; kill_time_coverage (share of jobs that end in time) and
        kill_time_reserved (seconds reserved over seconds used) where both have kill times.

    Raises
    ------
    InputError
        The two have no job in common, or predict different targets.
    """
    if this.actual.name != other.actual.name:
        raise InputError(f"one predicts {this.actual.name}, the other {other.actual.name}; expected the same target")
    pairs = _pair(this.actual, other.actual)
    actual = positive_values(this.actual.iloc[pairs.this])
    at_stake = dict.fromkeys(("rmse", "mae", "log_mae"), np.ones(len(actual)))
    has_kill_times = this.kill_time_s is not None and other.kill_time_s is not None
    if has_kill_times:
        at_stake |= {"kill_time_coverage": np.ones(len(actual)), "kill_time_reserved": actual}

    def terms(answers: ValueAnswers, jobs: NDArray[np.int64]) -> dict[str, NDArray]:
        predicted = answers.predicted[jobs]
        logs = np.log(np.maximum(predicted, SMALLEST_PREDICTION)) - np.log(actual)
        found = {"rmse": (predicted - actual) ** 2, "mae": np.abs(predicted - actual), "log_mae": np.abs(logs)}
        if has_kill_times and answers.kill_time_s is not None:
            kill_time_s = answers.kill_time_s[jobs]
            found |= {"kill_time_coverage": actual <= kill_time_s, "kill_time_reserved": kill_time_s}
        return found

    return _compare(str(this.actual.name), pairs, terms(this, pairs.this), terms(other, pairs.other), at_stake, seed)


def resampled_sums(terms: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums over the jobs of 1000 bootstrap resamples: terms of shape (n jobs, k) -> (1000, k)."""
    generator, n = np.random.default_rng(seed), len(terms)
    # How often each job is drawn when n are drawn of n; one resample at a time, so that memory does not grow with them.
    return np.stack([np.bincount(generator.integers(n, size=n), minlength=n) @ terms for _ in range(RESAMPLES)])


class _Pairs(NamedTuple):
    """Positions of the paired jobs in each of the two, and the number of jobs that could not be paired."""

    this: NDArray[np.int64]
    other: NDArray[np.int64]
    only_this: int
    only_other: int
    differing: int


def _pair(this: pd.Series, other: pd.Series) -> _Pairs:
    tables = [
        # A name that an old split holds twice is paired in the order it stands there.
        pd.DataFrame(
            {
                "name": actual.index,
                "nth": actual.groupby(actual.index).cumcount().to_numpy(),
                "actual": actual.to_numpy(dtype=float),
                "position": np.arange(len(actual)),
            }
        )
        for actual in (this, other)
    ]
    both = tables[0].merge(tables[1], on=["name", "nth"], suffixes=("_this", "_other"))
    # An old folder holds actual values in float32.
    paired = both[np.isclose(both["actual_this"], both["actual_other"], rtol=1e-6, atol=0)]
    if paired.empty:
        raise InputError(
            f"{this.name}: none of {len(this):,} and {len(other):,} test jobs is in both with the same actual value; "
            "expected at least one to compare on"
        )
    return _Pairs(
        paired["position_this"].to_numpy(),
        paired["position_other"].to_numpy(),
        only_this=len(this) - len(both),
        only_other=len(other) - len(both),
        differing=len(both) - len(paired),
    )


def _wallclock(answers: BinAnswers, jobs: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Seconds of the paired jobs; None where they are unknown, or no job took any time and so none cost anything."""
    if answers.wallclock_s is None or not np.any(answers.wallclock_s[jobs]):
        return None
    return wallclock_seconds(answers.wallclock_s[jobs], len(jobs))


def _compare(
    target: str,
    pairs: _Pairs,
    this: Mapping[str, NDArray],
    other: Mapping[str, NDArray],
    at_stake: Mapping[str, NDArray],
    seed: int,
) -> Comparison:
    """Every score is a sum over jobs of its terms over the sum of what was at stake (and rmse the root of that)."""
    names = list(at_stake)
    is_root = np.array(names) == "rmse"
    terms = np.column_stack([side[name] for side in (this, other, at_stake) for name in names]).astype(float)

    def scores(sums: NDArray) -> NDArray:
        left, right, stake = np.split(sums, 3, axis=-1)
        # A resample may hold no job of a rare bin: its recall is undefined there and does not count.
        with np.errstate(invalid="ignore"):
            ratios = np.stack([left, right]) / stake
        ratios[..., is_root] = np.sqrt(ratios[..., is_root])
        return ratios

    (left, right), (lefts, rights) = scores(terms.sum(axis=0)), scores(resampled_sums(terms, seed))
    low, high = np.nanpercentile(lefts - rights, TAILS, axis=0)
    jobs = [np.count_nonzero(at_stake[name]) for name in names]
    columns = {"this": left, "other": right, "difference": left - right, "low": low, "high": high, "jobs": jobs}
    return Comparison(
        target,
        pd.DataFrame(columns, index=pd.Index(names, name="score")),
        len(pairs.this),
        pairs.only_this,
        pairs.only_other,
        pairs.differing,
    )
