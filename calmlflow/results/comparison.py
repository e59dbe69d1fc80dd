"""Compare two trainings job by job, with bootstrap intervals of the differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.results.checks import amounts, memory_bins, probability_rows
from calmlflow.results.classification import log_losses
from calmlflow.results.regression import SMALLEST_PREDICTION
from calmlflow.results.scores import PREDICTED, SCORES, headlines

RESAMPLES = 1000
INTERVAL_PERCENT = 95
TAILS = (2.5, 97.5)


class BinAnswers(NamedTuple):
    """Answers of a classifier for n jobs."""

    actual: pd.Series  # needed bins; the index holds the dataset names
    probabilities: NDArray[np.float64]  # shape (n, 4)
    chosen: NDArray[np.int64]  # bins that were decided on
    wallclock_s: NDArray[np.float64] | None  # actual seconds, where they are known


class ValueAnswers(NamedTuple):
    """Answers of a regressor for n jobs, in GB or seconds."""

    actual: pd.Series  # named for the target; the index holds the dataset names
    predicted: NDArray[np.float64]
    kill_time_s: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of two networks on the jobs that both saw.

    ``scores`` has a row per score, named as in `calmlflow.results.scores`. Columns: this, other, difference
    (this - other), low and high, the bounds of its 95 % bootstrap interval (percentiles of 1000 resamples of the jobs,
    or of the programmes), jobs, of how many the score is (the recall of a bin, of those that need it), and this_low and
    this_high, the bounds of this.
    """

    target: str
    scores: pd.DataFrame
    jobs: int  # in both splits, with the same actual value
    only_this: int
    only_other: int
    differing: int  # jobs whose actual value is not the same in the two: another run of the dataset; left out

    def __str__(self) -> str:
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


def compare_predictions(
    target: str,
    jobs: pd.DataFrame,
    this: Mapping[str, NDArray],
    other: Mapping[str, NDArray],
    seed: int = 0,
    by_programme: bool = False,
) -> Comparison:
    """Compare two predictions of the same job records, each given as for `score_predictions`.

    With ``by_programme`` whole programmes are drawn, whose jobs resemble each other: the interval is of new ones.
    """
    actual = pd.Series(jobs[target].to_numpy(), index=jobs["ipst"].to_numpy(), name=target)
    if target == "mem_bin":
        wallclock_s = jobs["wallclock"].to_numpy()
        one, two = (
            BinAnswers(actual, found["probabilities"], found["bin_pred"], wallclock_s) for found in (this, other)
        )
        return compare_bins(one, two, seed, by_programme)
    kill_time = "kill_time" if target == "wallclock" else ""
    mine, others = (ValueAnswers(actual, found[PREDICTED[target]], found.get(kill_time)) for found in (this, other))
    return compare_values(mine, others, seed, by_programme)


def headline_intervals(
    target: str, jobs: pd.DataFrame, predictions: Mapping[str, NDArray]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the headline scores of predictions: Wilson's for shares of jobs, bootstrap for the others."""
    table = compare_predictions(target, jobs, predictions, predictions).scores
    found = {}
    for name in table.index.intersection(list(headlines(target))):
        score = table.loc[name]
        found[name] = float(score["this_low"]), float(score["this_high"])
        # Shares of jobs, whose resamples do not differ at all where every job hits.
        if SCORES[target][name].higher_is_better:
            wilson = binomtest(round(score["this"] * score["jobs"]), int(score["jobs"])).proportion_ci(method="wilson")
            found[name] = float(wilson.low), float(wilson.high)
    return found


def compare_bins(this: BinAnswers, other: BinAnswers, seed: int = 0, by_programme: bool = False) -> Comparison:
    """Compare two classifiers on the jobs that both answered for; an InputError where there is none.

    Of the most probable bin: accuracy, and the recall of each bin that the jobs have. log_loss (nats). Of the bin
    decided on: underallocated, overallocated and, if one of the two knows the wallclock of every job, excess_cost.
    """
    at_this, at_other, counts = _pair(this.actual, other.actual)
    y_true = memory_bins(this.actual.iloc[at_this], "mem_bin")
    of_bin = {f"recall_{name}": y_true == label for label, name in enumerate(BIN_NAMES) if np.any(y_true == label)}
    ones = np.ones(len(y_true))
    at_stake = {"accuracy": ones, **of_bin, "log_loss": ones, "underallocated": ones, "overallocated": ones}
    known = [side.wallclock_s[at] for side, at in ((this, at_this), (other, at_other)) if side.wallclock_s is not None]
    # Where no job took any time, none cost anything.
    wallclock_s = next((amounts(found, "wallclock_s") for found in known if np.any(found)), None)
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

    groups = this.actual.index[at_this].str[:4] if by_programme else None
    scores = _compared(terms(this, at_this), terms(other, at_other), at_stake, seed, groups)
    return Comparison("mem_bin", scores, **counts)


def compare_values(this: ValueAnswers, other: ValueAnswers, seed: int = 0, by_programme: bool = False) -> Comparison:
    """Compare two regressors of the same target on the jobs that both answered for; an InputError where there is none.

    rmse and mae (unit of the target) and log_mae; kill_time_coverage (share of jobs that end in time) and
    kill_time_reserved (seconds reserved over seconds used) where both have kill times.
    """
    at_this, at_other, counts = _pair(this.actual, other.actual)
    actual = amounts(this.actual.iloc[at_this], "actual values", positive=True)
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

    groups = this.actual.index[at_this].str[:4] if by_programme else None
    scores = _compared(terms(this, at_this), terms(other, at_other), at_stake, seed, groups)
    return Comparison(str(this.actual.name), scores, **counts)


def resampled_sums(terms: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums over the jobs (or groups) of 1000 bootstrap resamples: terms of shape (n, k) -> (1000, k)."""
    generator, n = np.random.default_rng(seed), len(terms)
    # How often each job is drawn when n are drawn of n; one resample at a time, so that memory does not grow with them.
    return np.stack([np.bincount(generator.integers(n, size=n), minlength=n) @ terms for _ in range(RESAMPLES)])


def _pair(this: pd.Series, other: pd.Series) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
    """Positions of the paired jobs in each of the two, and the counts of a `Comparison`."""
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
    counts = {
        "jobs": len(paired),
        "only_this": len(this) - len(both),
        "only_other": len(other) - len(both),
        "differing": len(both) - len(paired),
    }
    return paired["position_this"].to_numpy(), paired["position_other"].to_numpy(), counts


def _compared(
    this: Mapping[str, NDArray],
    other: Mapping[str, NDArray],
    at_stake: Mapping[str, NDArray],
    seed: int,
    groups: pd.Index | None,
) -> pd.DataFrame:
    """Every score is a sum over jobs of its terms over the sum of what was at stake (and rmse the root of that).

    Jobs of one of the ``groups`` are drawn together.
    """
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

    drawn = terms if groups is None else pd.DataFrame(terms).groupby(groups).sum().to_numpy()
    (left, right), (lefts, rights) = scores(terms.sum(axis=0)), scores(resampled_sums(drawn, seed))
    low, high = np.nanpercentile(lefts - rights, TAILS, axis=0)
    this_low, this_high = np.nanpercentile(lefts, TAILS, axis=0)
    jobs = [np.count_nonzero(at_stake[name]) for name in names]
    columns = {"this": left, "other": right, "difference": left - right, "low": low, "high": high, "jobs": jobs}
    columns |= {"this_low": this_low, "this_high": this_high}
    return pd.DataFrame(columns, index=pd.Index(names, name="score"))
