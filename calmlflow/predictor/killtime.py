"""Calibrate and apply kill times: upper bounds on wallclock that hold for a promised share of jobs."""

import functools
import json
import math
from bisect import bisect_left
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

# Default share of jobs that must end before their kill time.
COVERAGE = 0.999

# Calibration jobs of a group that run longer than promised, on average; sets the size of the groups.
RANK_FROM_TOP = 5
# Jobs of the mean spread that are added to those of a feature row, because few jobs say little.
PRIOR_JOBS = 50


@dataclass(frozen=True)
class KillTime:
    """Factors from predicted wallclock to kill time, by group of predicted wallclock, to the power of a row's spread.

    References
    ----------
    Cross-conformal prediction (Vovk, Cross-conformal predictors, 2015) with a scaled score (Lei et al.,
    Distribution-free predictive inference for regression, 2018), conditional on a group (Mondrian: Vovk, Gammerman and
    Shafer, Algorithmic Learning in a Random World, 2005). The networks that serve are refitted to all jobs, so the
    promise rests on held-out jobs, not on a theorem.
    """

    # Upper edges of all groups but the last, seconds of predicted wallclock, ascending.
    edges_s: tuple[float, ...]
    # One per group, for a job of mean spread.
    factors: tuple[float, ...]
    # Share of jobs promised to end in time.
    coverage: float
    # Calibration jobs in each group. A group of fewer than coverage / (1 - coverage) cannot hold the promise.
    jobs: tuple[int, ...]
    # Root mean square of ln(wallclock / prediction) over that of all jobs: one for each row of seen_rows.json, and a
    # last one, 1, for other jobs. Empty: 1 for all.
    spread: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rules = {
            "as many counts as factors": len(self.jobs) == len(self.factors),
            "one edge fewer than factors": len(self.edges_s) + 1 == len(self.factors),
            "factors above 0": all(0 < factor < math.inf for factor in self.factors),
            "coverage between 0 and 1": 0 < self.coverage < 1,
            "ascending edges": all(map(math.isfinite, self.edges_s)) and list(self.edges_s) == sorted(self.edges_s),
            "spread from 0 to 1000": all(0 <= spread < 1e3 for spread in self.spread),
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise InputError(f"killtime.json breaks a rule; expected {broken[0]}")

    def apply(
        self,
        predicted_s: ArrayLike,
        nearest: NDArray[np.int64] | None = None,
        in_programme: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Kill times in whole seconds (60..172800) for n predicted wallclocks; without ``nearest`` of mean spread."""
        predicted_s = np.asarray(predicted_s, dtype=float)
        edges_s, factors_of_group, spread = self._arrays
        factors = factors_of_group[edges_s.searchsorted(predicted_s, side="left")]
        with np.errstate(over="ignore"):
            if len(spread) and nearest is not None:
                factors = factors ** spread[nearest]
            bound_s = np.ceil(predicted_s * factors)
        # NaN says nothing: the longest kill time.
        bound_s = np.where(np.isnan(bound_s), KILL_TIME_MAX_S, bound_s)
        return np.clip(bound_s, KILL_TIME_MIN_S, KILL_TIME_MAX_S).astype(np.int64)

    @functools.cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], ...]:
        # Making arrays of a thousand numbers takes as long as running a network.
        return np.asarray(self.edges_s, dtype=float), np.asarray(self.factors), np.asarray(self.spread, dtype=float)

    def group_of(self, predicted_s: float, in_programme: int = 0) -> tuple[float, int]:
        """Factor of the group of one prediction, and the jobs that it was calibrated on."""
        group = bisect_left(self.edges_s, predicted_s)
        return self.factors[group], self.jobs[group]

    @property
    def held_coverage(self) -> float:
        """Share of jobs that the calibration jobs can promise: ``coverage``, or less if a group has too few."""
        fewest = min(self.jobs)
        return min(self.coverage, fewest / (fewest + 1))

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"spread": np.round(self.spread, 6).tolist()})

    @classmethod
    def from_json(cls, text: str | bytes) -> "KillTime":
        """Read the text of ``killtime.json``; an InputError names what does not fit."""
        try:
            data = {"spread": []} | json.loads(text)
            edges_s, factors, jobs, spread = (_numbers(data[name]) for name in ("edges_s", "factors", "jobs", "spread"))
            coverage, counts = float(data["coverage"]), tuple(map(int, jobs))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError("killtime.json does not parse; expected edges_s, factors, coverage and jobs") from error
        return cls(edges_s, factors, coverage, counts, spread)


def fit_kill_time(
    predicted_s: ArrayLike, actual_s: ArrayLike, row_of_job: ArrayLike, coverage: float = COVERAGE
) -> KillTime:
    """Calibrate kill times on n jobs that the network was not trained on.

    The score of a job is the logarithm of actual / predicted over the spread of its feature row. The jobs are cut into
    groups of equal size by predicted wallclock, and in each the factor is the conformal quantile of the scores.
    """
    predicted_s, actual_s = np.asarray(predicted_s, dtype=float), np.asarray(actual_s, dtype=float)
    row_of_job = np.asarray(row_of_job, dtype=np.int64)
    log_ratio = np.log(actual_s / predicted_s)
    # All predictions exact: no spread to measure in.
    square = log_ratio**2 / (float(np.mean(log_ratio**2)) or 1.0)
    jobs_of_row = np.bincount(row_of_job)
    sum_of_row = np.bincount(row_of_job, weights=square)
    spread = np.sqrt((sum_of_row + PRIOR_JOBS) / (jobs_of_row + PRIOR_JOBS))
    # A job's own distance must not count in the spread that its score is measured in.
    others = sum_of_row[row_of_job] - square
    score = log_ratio / np.sqrt((others + PRIOR_JOBS) / (jobs_of_row[row_of_job] - 1 + PRIOR_JOBS))

    # The conformal rank ceil((n + 1) * coverage) exists from coverage / (1 - coverage) jobs on, where it is the longest
    # job. In groups several times as large, one odd job matters little.
    groups = max(1, int(len(score) * (1 - coverage) / RANK_FROM_TOP))
    edges = np.unique(np.quantile(predicted_s, np.arange(1, groups) / groups)) if groups > 1 else np.array([])
    group = np.searchsorted(edges, predicted_s, side="left")
    factors, jobs = [], []
    for number in range(len(edges) + 1):
        scores = np.sort(score[group == number] if np.any(group == number) else score)
        rank = math.ceil((len(scores) + 1) * coverage)
        # Never below the prediction itself, however early the jobs of a small group ended.
        factors.append(float(np.exp(max(scores[min(rank, len(scores)) - 1], 0.0))))
        jobs.append(int(np.sum(group == number)))
    return KillTime(tuple(edges.tolist()), tuple(factors), coverage, tuple(jobs), (*spread.tolist(), 1.0))


def _numbers(values: object) -> tuple[float, ...]:
    # A text or an object would pass as a list of its characters or keys.
    if not isinstance(values, list):
        raise TypeError
    return tuple(float(value) for value in values)
