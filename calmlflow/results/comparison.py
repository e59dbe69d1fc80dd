"""Compare two trainings job by job, with intervals that resample programmes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from calmlflow.errors import InputError
from calmlflow.hst.dataset import programmes
from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.results.checks import amounts, memory_bins, probability_rows
from calmlflow.results.classification import log_losses
from calmlflow.results.regression import SMALLEST_PREDICTION
from calmlflow.results.scores import PREDICTED, Score

RESAMPLES = 1000
INTERVAL_PERCENT = 95
_TAIL = (100 - INTERVAL_PERCENT) / 200


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
    (this - other), low and high, the bounds of its 95 % interval over programmes (`resampled_interval`), jobs and
    programmes, of how many the score is (the recall of a bin, of those that need it), and this_low and this_high, the
    bounds of this (of a share of jobs by `share_interval`).
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
        columns = f"{'score':<18}{'this':>12}{'other':>12}{'difference':>12}"
        rows = [f"{columns}   {'95 % interval':<24}{'jobs':>8}{'programmes':>12}"]
        for name, row in self.scores.iterrows():
            values = f"{name:<18}{row['this']:>12.4g}{row['other']:>12.4g}{row['difference']:>+12.4g}"
            interval = f"{row['low']:+.4g} to {row['high']:+.4g}"
            rows.append(f"{values}   {interval:<24}{row['jobs']:>8,.0f}{row['programmes']:>12,.0f}")
        return "\n".join([f"{self.target}: {self.jobs:,} test jobs in both", left_out, *rows])


def compare_predictions(
    target: str, jobs: pd.DataFrame, this: Mapping[str, NDArray], other: Mapping[str, NDArray], seed: int = 0
) -> Comparison:
    """Compare two predictions of the same job records, each given as for `score_predictions`."""
    actual = pd.Series(jobs[target].to_numpy(), index=jobs["ipst"].to_numpy(), name=target)
    if target == "mem_bin":
        wallclock_s = jobs["wallclock"].to_numpy()
        one, two = (
            BinAnswers(actual, found["probabilities"], found["bin_pred"], wallclock_s) for found in (this, other)
        )
        return compare_bins(one, two, seed)
    kill_time = "kill_time" if target == "wallclock" else ""
    mine, others = (ValueAnswers(actual, found[PREDICTED[target]], found.get(kill_time)) for found in (this, other))
    return compare_values(mine, others, seed)


class Interval(NamedTuple):
    """The 95 % interval of a score, and of how many jobs and programmes the score is."""

    low: float
    high: float
    jobs: int
    programmes: int

    def text(self, score: Score) -> str:
        """Both bounds with the unit of the score."""
        return f"{score.text(self.low).split()[0]} to {score.text(self.high)}"

    def behind(self, score: Score, value: float) -> str:
        """Jobs and programmes behind a value, ``8,976 in 1,204``; of a recall also hits, ``3 of 12 in 4``."""
        hits = f"{value * self.jobs:,.0f} of " if score.name.startswith("recall") else ""
        return f"{hits}{self.jobs:,} in {self.programmes:,}"


def score_intervals(target: str, jobs: pd.DataFrame, predictions: Mapping[str, NDArray]) -> dict[str, Interval]:
    """Intervals over programmes of the scores of predictions that a `Comparison` has, as those of ``this`` in it.

    And of those that are no sum over jobs: balanced_accuracy and f1_macro, or r2.
    """
    table = compare_predictions(target, jobs, predictions, predictions).scores
    columns = table[["this_low", "this_high", "jobs", "programmes"]].itertuples()
    found = {str(name): Interval(low, high, int(n), int(count)) for name, low, high, n, count in columns}
    actual, predicted = jobs[target].to_numpy(), predictions[PREDICTED[target]]
    if target == "mem_bin":
        needed, chosen = (
            np.eye(len(BIN_NAMES))[bins] for bins in (actual, predictions["probabilities"].argmax(axis=1))
        )
        terms = np.hstack([needed, chosen, needed * chosen])
    else:
        centred = actual - actual.mean()
        terms = np.column_stack([np.ones(len(actual)), centred, centred**2, (predicted - actual) ** 2])
    by_programme = programme_sums(terms, jobs["ipst"])
    sums = resampled_sums(by_programme, seed=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        if target == "mem_bin":
            needs, picks, hits = np.split(sums, 3, axis=1)
            # Means over the bins that a resample has.
            means = (
                np.nanmean(np.where(needs > 0, part, np.nan), axis=1)
                for part in (hits / needs, 2 * hits / (needs + picks))
            )
            resamples = dict(zip(("balanced_accuracy", "f1_macro"), means, strict=True))
        else:
            n, first, second, squares = sums.T
            variance = second - first**2 / n
            resamples = {"r2": 1 - squares / np.where(variance > 1e-9 * centred.var() * n, variance, np.nan)}
    number = float(effective_number(programme_sums(np.ones((len(jobs), 1)), jobs["ipst"]))[0])
    behind = len(jobs), len(by_programme)
    known = {name: values for name, values in resamples.items() if np.isfinite(values).any()}
    return found | {name: Interval(*resampled_interval(values, number), *behind) for name, values in known.items()}


def compare_bins(this: BinAnswers, other: BinAnswers, seed: int = 0) -> Comparison:
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

    scores = _compared(terms(this, at_this), terms(other, at_other), at_stake, this.actual.index[at_this], seed)
    return Comparison("mem_bin", scores, **counts)


def compare_values(this: ValueAnswers, other: ValueAnswers, seed: int = 0) -> Comparison:
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

    scores = _compared(terms(this, at_this), terms(other, at_other), at_stake, this.actual.index[at_this], seed)
    return Comparison(str(this.actual.name), scores, **counts)


# -- Intervals ------------------------------------------------------------------------------------------------------


def resampled_sums(sums: NDArray, seed: int) -> NDArray[np.float64]:
    """Sums of 1000 bootstrap resamples of programmes, shape (1000, k), from those of `programme_sums`.

    Jobs of one programme are alike, so whole programmes are drawn, with replacement, as many as there are (the cluster
    bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
    """
    generator, n = np.random.default_rng(seed), len(sums)
    drawn = np.stack([np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)])
    return drawn @ sums


def programme_sums(terms: NDArray, names: ArrayLike) -> NDArray[np.float64]:
    """Sums over the jobs of each programme: terms of n jobs, shape (n, k), and their names -> (programmes, k)."""
    of_job = np.unique(programmes(names), return_inverse=True)[1]
    return np.column_stack([np.bincount(of_job, weights=term) for term in np.asarray(terms, dtype=float).T])


def effective_number(stakes: NDArray) -> NDArray[np.float64]:
    """How many programmes of equal weight say as much as these, of weights of shape (programmes, k); shape (k,).

    Kish, Survey Sampling (1965): the squared sum of the weights over the sum of their squares.
    """
    return stakes.sum(axis=0) ** 2 / np.maximum((stakes**2).sum(axis=0), np.finfo(float).tiny)


def resampled_interval(resamples: NDArray, number: float) -> tuple[float, float]:
    """95 % interval of a figure from its resamples, and the `effective_number` of programmes behind it.

    Percentiles, widened as a t interval is wider than a normal one, for they are too narrow where programmes are few
    (expanded percentile interval: Hesterberg, What teachers should know about the bootstrap, American Statistician 69,
    2015). Undefined resamples do not count.
    """
    deviations = -stdtrit(_freedom(number), _TAIL) * np.sqrt(1 + 1 / _freedom(number))
    low, high = np.nanpercentile(resamples, 100 * ndtr([-deviations, deviations]))
    return float(low), float(high)


def share_interval(hits: NDArray, jobs: NDArray) -> tuple[float, float]:
    """95 % interval of a share of jobs, given the hits and the jobs of each programme.

    Wilson's, with the jobs divided by the design effect: how many times the variance exceeds that of independent jobs
    (Korn and Graubard, Survey Methodology 24, 1998). It is known the less the fewer programmes both hit and miss: to
    those that were seen one is added whose jobs hit or miss all together. So where every job hits, there are as many
    independent jobs as the `effective_number` of programmes.
    """
    n, number = jobs.sum(), float(effective_number(jobs[:, None])[0])
    share, together = hits.sum() / n, n / number
    seen = min(np.count_nonzero(hits), np.count_nonzero(hits < jobs))
    independent = share * (1 - share) * n
    effect = np.sum((hits - share * jobs) ** 2) / independent if seen else together
    # Below 1 jobs of one programme would be less alike than others.
    effect = max((seen * effect + together) / (seen + 1), 1.0)
    z = -ndtri(_TAIL)
    n_effective = n / effect * (z / stdtrit(_freedom(number), _TAIL)) ** 2
    middle = (share + z**2 / (2 * n_effective)) / (1 + z**2 / n_effective)
    half = z / (1 + z**2 / n_effective) * np.sqrt(share * (1 - share) / n_effective + (z / (2 * n_effective)) ** 2)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def _freedom(number: float) -> float:
    return max(number - 1, 1.0)


# -- Pairs ----------------------------------------------------------------------------------------------------------


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
    names: ArrayLike,
    seed: int,
) -> pd.DataFrame:
    """Every score is a sum over jobs of its terms over the sum of what was at stake (and rmse the root of that)."""
    is_root = np.array(list(at_stake)) == "rmse"
    terms = np.column_stack([side[name] for side in (this, other, at_stake) for name in at_stake]).astype(float)

    def scores(sums: NDArray) -> NDArray:
        left, right, stake = np.split(sums, 3, axis=-1)
        # A resample may hold no job of a rare bin: its recall is undefined there and does not count.
        with np.errstate(invalid="ignore"):
            ratios = np.stack([left, right]) / stake
        ratios[..., is_root] = np.sqrt(ratios[..., is_root])
        return ratios

    by_programme = programme_sums(terms, names)
    (left, right), (lefts, rights) = scores(terms.sum(axis=0)), scores(resampled_sums(by_programme, seed))
    hits, _, stakes = np.split(by_programme, 3, axis=-1)
    numbers = effective_number(stakes)
    rows = {}
    for k, name in enumerate(at_stake):
        low, high = resampled_interval(lefts[:, k] - rights[:, k], numbers[k])
        own = resampled_interval(lefts[:, k], numbers[k])
        # Where all jobs hit, resamples do not differ.
        if this[name].dtype == bool:
            own = share_interval(hits[:, k], stakes[:, k])
        counts = np.count_nonzero(at_stake[name]), np.count_nonzero(stakes[:, k])
        rows[name] = (left[k], right[k], left[k] - right[k], low, high, *counts, *own)
    columns = ["this", "other", "difference", "low", "high", "jobs", "programmes", "this_low", "this_high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("score")
