"""Calibrate and apply kill times: upper bounds on wallclock that hold for a promised share of jobs."""

import functools
import json
import math
from bisect import bisect_left
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

COVERAGE = 0.999  # default share of jobs that must end before their kill time
# Jobs of a group that run longer than promised, on average; where they are several, one odd job matters little.
RANK_FROM_TOP = 5
# Jobs of the mean spread that are added to those of a feature row, because few jobs say little.
PRIOR_JOBS = 50
# A programme counts as this many jobs at most, because its jobs resemble each other.
PROGRAMME_JOBS = 150
# Where the longest jobs were killed, the tail is measured on this many times the share of jobs that may be late.
TAIL = 10
# Finished jobs of its row and programme from which on a job has groups of its own: it is predicted better.
KNOWN_FROM_JOBS = (1, 30)


@dataclass(frozen=True)
class Known:
    """Groups of the jobs that have at least ``from_jobs`` finished jobs of their row and programme; see `KillTime`."""

    from_jobs: int
    edges_s: tuple[float, ...]
    factors: tuple[float, ...]
    jobs: tuple[int, ...]


@dataclass(frozen=True)
class KillTime:
    """Factors from predicted wallclock to kill time, by group of predicted wallclock, to the power of a row's spread.

    References
    ----------
    Vovk, Cross-conformal predictors, 2015; scaled scores: Lei et al., Distribution-free predictive inference for
    regression, 2018; groups: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; weights by
    programme, after: Lee, Barber and Willett, Distribution-free inference with hierarchical data, 2023. The networks
    that serve are refitted to all jobs, so the promise rests on held-out jobs, not on a theorem.
    """

    # Upper edges of all groups but the last, seconds of predicted wallclock, ascending.
    edges_s: tuple[float, ...]
    factors: tuple[float, ...]  # one per group, for a job of mean spread
    coverage: float  # share of jobs promised to end in time
    # Calibration jobs that each group counts as. Fewer than coverage / (1 - coverage) cannot hold the promise.
    jobs: tuple[int, ...]
    # Root mean square of ln(wallclock / prediction) over that of all jobs: one for each row of seen_rows.json, and a
    # last one, 1, for other jobs. Empty: 1 for all.
    spread: tuple[float, ...] = ()
    # By ascending from_jobs. The groups above are of all other jobs.
    known: tuple[Known, ...] = ()

    def __post_init__(self) -> None:
        starts = [state.from_jobs for state in self._states]
        rules = {
            "coverage between 0 and 1": 0 < self.coverage < 1,
            "spread from 0 to 1000": all(0 <= spread < 1e3 for spread in self.spread),
            "ascending from_jobs from 1 on": starts == sorted({0, *starts}) and starts[-1] < 2**31,
        }
        for state in self._states:
            rules |= {
                "as many counts as factors": len(state.jobs) == len(state.factors),
                "one edge fewer than factors": len(state.edges_s) + 1 == len(state.factors),
                "factors above 0": all(0 < factor < math.inf for factor in state.factors),
                "ascending edges": all(a < b for a, b in pairwise((-math.inf, *state.edges_s, math.inf))),
            }
            if broken := [rule for rule, holds in rules.items() if not holds]:
                raise InputError(f"killtime.json breaks a rule; expected {broken[0]}")

    def apply(
        self, predicted_s: ArrayLike, nearest: NDArray | None = None, in_programme: NDArray | None = None
    ) -> NDArray[np.int64]:
        """Kill times in whole seconds (60..172800) for n predicted wallclocks; without ``nearest`` of mean spread.

        ``in_programme``, shape (n,): the finished jobs of row and programme that a prediction knows; by default none.
        """
        predicted_s = np.asarray(predicted_s, dtype=float)
        from_jobs, edges_s, factors_of_state, spread = self._arrays
        state = 0 if in_programme is None else from_jobs.searchsorted(in_programme, side="right")
        factors = factors_of_state[state, (predicted_s[..., None] > edges_s[state]).sum(axis=-1)]
        with np.errstate(over="ignore"):
            if len(spread) and nearest is not None:
                factors = factors ** spread[nearest]
            bound_s = np.ceil(predicted_s * factors)
        # NaN says nothing: fmin gives it the longest kill time.
        return np.maximum(np.fmin(bound_s, KILL_TIME_MAX_S), KILL_TIME_MIN_S).astype(np.int64)

    @property
    def _states(self) -> tuple[Known, ...]:
        return Known(0, self.edges_s, self.factors, self.jobs), *self.known

    @functools.cached_property
    def _arrays(self) -> tuple[NDArray[Any], ...]:
        # Making arrays of a thousand numbers takes as long as running a network. Edges and factors: a line per state.
        edges_s = list(zip_longest(*(state.edges_s for state in self._states), fillvalue=math.inf))
        factors = list(zip_longest(*(state.factors for state in self._states), fillvalue=1.0))
        edges_of_state = np.array(edges_s, dtype=float).reshape(-1, len(self._states)).T
        from_jobs = np.array([state.from_jobs for state in self.known], dtype=np.int64)
        return from_jobs, edges_of_state, np.array(factors).T, np.array(self.spread, dtype=float)

    def group_of(self, predicted_s: float, in_programme: int = 0) -> tuple[float, int]:
        """Factor of the group of one prediction, and the calibration jobs that the group counts as."""
        state = [state for state in self._states if state.from_jobs <= in_programme][-1]
        group = bisect_left(state.edges_s, predicted_s)
        return state.factors[group], state.jobs[group]

    @property
    def held_coverage(self) -> float:
        """Share of jobs that the calibration jobs can promise: ``coverage``, or less if a group has too few."""
        fewest = min(min(state.jobs) for state in self._states)
        return min(self.coverage, fewest / (fewest + 1))

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"spread": np.round(self.spread, 6).tolist()})

    @classmethod
    def from_json(cls, text: str | bytes) -> "KillTime":
        """Read the text of ``killtime.json``, of earlier releases too; an InputError names what does not fit."""
        try:
            data = {"spread": [], "known": []} | json.loads(text)
            (edges_s, factors, jobs), spread = _groups(data), _numbers(data["spread"])
            known = tuple(Known(int(groups["from_jobs"]), *_groups(groups)) for groups in data["known"])
            coverage = float(data["coverage"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError("killtime.json does not parse; expected edges_s, factors, coverage and jobs") from error
        return cls(edges_s, factors, coverage, jobs, spread, known)


def fit_kill_time(
    predicted_s: ArrayLike,
    actual_s: ArrayLike,
    row_of_job: ArrayLike,
    programme_of_job: ArrayLike | None = None,
    known: tuple[ArrayLike, ArrayLike] | None = None,
    coverage: float = COVERAGE,
    was_killed: ArrayLike | None = None,
) -> KillTime:
    """Calibrate kill times on n jobs; all arrays have the shape (n,), programmes are numbers or names.

    ``predicted_s`` was made without the job and, where there is evidence, without its programme. ``known`` are the
    predictions made without the job alone, and the jobs of its row and programme that each knows. By default every job
    is a programme of its own, and no programme known. The score of a job is the logarithm of actual / predicted over
    the spread of its feature row, measured without its programme. The jobs are cut into groups of equal size by
    predicted wallclock; the factor of a group is the conformal quantile of its scores. Of jobs that were killed
    ``actual_s`` is what they had reached: their scores are lower bounds, see `_quantile`. Default: none was.
    """
    actual_s, row_of_job = np.asarray(actual_s, dtype=float), np.asarray(row_of_job, dtype=np.int64)
    names = np.arange(len(actual_s)) if programme_of_job is None else programme_of_job
    predicted_s, programme = np.asarray(predicted_s, dtype=float), np.unique(names, return_inverse=True)[1]
    known_s, in_programme = (predicted_s, np.zeros(len(actual_s))) if known is None else map(np.asarray, known)
    killed = np.zeros(len(actual_s), dtype=bool) if was_killed is None else np.asarray(was_killed, dtype=bool)
    distance = np.log(actual_s / known_s)
    cell = np.unique(row_of_job * (int(programme.max()) + 1) + programme, return_inverse=True)[1]
    weight = np.minimum(1, PROGRAMME_JOBS / np.bincount(cell)[cell])
    # All predictions exact: no spread to measure in.
    square = distance**2 / (float(np.average(distance**2, weights=weight)) or 1.0)
    jobs, squares = np.bincount(row_of_job, weight), np.bincount(row_of_job, weight * square)
    spread = np.sqrt((squares + PRIOR_JOBS) / (jobs + PRIOR_JOBS))
    others = jobs[row_of_job] - np.bincount(cell, weight)[cell]
    squares_of_others = np.maximum(squares[row_of_job] - np.bincount(cell, weight * square)[cell], 0)
    spread_of_others = np.sqrt((squares_of_others + PRIOR_JOBS) / (others + PRIOR_JOBS))

    new = _calibrate(predicted_s, np.log(actual_s / predicted_s) / spread_of_others, programme, killed, coverage)
    states = []
    for low, high in pairwise((*KNOWN_FROM_JOBS, math.inf)):
        chosen = (low <= in_programme) & (in_programme < high)
        if chosen.any():
            scores = (distance / spread_of_others)[chosen]
            found = _calibrate(known_s[chosen], scores, programme[chosen], killed[chosen], coverage)
            # Where too few jobs are known so well to hold the promise, those known less well stand for them.
            if min(found[2]) / (min(found[2]) + 1) >= coverage:
                states.append(Known(int(low), *found))
    return KillTime(*new[:2], coverage, new[2], (*spread.tolist(), 1.0), tuple(states))


def _calibrate(
    predicted_s: NDArray[np.float64],
    score: NDArray[np.float64],
    programme: NDArray[np.int64],
    killed: NDArray[np.bool_],
    coverage: float,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Edges, factors and jobs of the groups of some jobs."""
    weight = np.minimum(1, PROGRAMME_JOBS / np.bincount(programme)[programme])
    values, of_value = np.unique(predicted_s, return_inverse=True)
    reached = np.append(np.cumsum(np.bincount(of_value, weight)), math.inf)
    size = reached[-2] / max(1, int(reached[-2] * (1 - coverage) / RANK_FROM_TOP))
    # Equal predictions stay in one group. What is left over, less than half a group, joins the last.
    edges: list[float] = []
    last = int(reached.searchsorted(size * (1 - 1e-9)))
    while reached[-2] - reached[last] >= size / 2:
        edges.append(float(values[last]))
        last = int(reached.searchsorted((reached[last] + size) * (1 - 1e-9)))

    group = np.searchsorted(edges, predicted_s, side="left")
    factors, jobs = [], []
    for number in range(len(edges) + 1):
        members = np.flatnonzero(group == number)
        # Never below the prediction itself, however early the jobs of a small group ended.
        bound = _quantile(score[members], weight[members], killed[members], coverage)
        factors.append(float(np.exp(max(bound, 0.0))))
        jobs.append(int(weight[members].sum() + 1e-9))
    return tuple(edges), tuple(factors), tuple(jobs)


def _quantile(
    score: NDArray[np.float64], weight: NDArray[np.float64], killed: NDArray[np.bool_], coverage: float
) -> float:
    """The conformal quantile of scores, of which those of killed jobs are lower bounds.

    Without killed jobs the score of conformal rank, with a weight of 1 for the job to come, or the largest one where
    none is so high. With them the share that is left comes from Kaplan and Meier's estimator (1958); where the finished
    jobs do not reach the promised share, because the longest were killed, the tail goes on as an exponential one, whose
    mean is fitted to the scores of the last `TAIL` times the share that may be late.
    """
    order = np.lexsort([killed, score])
    score, weight, ended = score[order], weight[order], ~killed[order]
    late = (1 - coverage) * (1 + 1e-9)
    at_risk = weight.sum() + 1 - (weight.cumsum() - weight)

    def first_late(counts: NDArray[np.bool_]) -> tuple[int, NDArray[Any]]:
        left = np.cumprod(np.where(counts, 1 - weight / at_risk, 1.0))
        reached = np.flatnonzero(left <= late)
        return (int(reached[0]) if len(reached) else -1), left

    # What the killed jobs had reached bounds the quantile from below.
    least = score[first_late(np.ones(len(score), dtype=bool))[0]]
    place, left = first_late(ended)
    if place >= 0 or ended.all() or not ended.any():
        return float(max(least, score[place]))
    last = np.flatnonzero(ended)[-1]
    start = score[np.argmax(left <= max(TAIL * late, left[last]))]
    beyond = score > start
    if not np.any(beyond & ended):
        return float(least)
    mean = (weight * (score - start))[beyond].sum() / weight[beyond & ended].sum()
    return float(max(least, score[last] + mean * math.log(left[last] / late)))


def _groups(data: Any) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    edges_s, factors, jobs = (_numbers(data[name]) for name in ("edges_s", "factors", "jobs"))
    return edges_s, factors, tuple(map(int, jobs))


def _numbers(values: object) -> tuple[float, ...]:
    # A text or an object would pass as a list of its characters or keys.
    if not isinstance(values, list):
        raise TypeError
    return tuple(float(value) for value in values)
