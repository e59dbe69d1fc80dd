"""Judge the figures of the networks: better than the rivals, and within fixed limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.scores import score_of

FIT_SHARE = 1 / 50
"""Fit seconds of the three networks over those of the seed recipe, at most."""

GROWTH = 1.5
"""Seconds of a fit to 10 times the jobs over seconds of the fit to the jobs, at most."""

EXCESS_COST = 0.035
RECALL_16G = 0.75
COVERAGE = 0.999
RESERVED = 4.0

BEST_OF_BOTH = (
    "mem_bin_accuracy",
    "memory_mae",
    "memory_rmse",
    "wallclock_rmse",
    "wallclock_mae",
    "wallclock_log_mae",
)
"""Scores that must be as good as the better of random forest and seed recipe."""

Interval = Callable[[str, str], tuple[float, float]]
"""From a score and a rival's name to the 95 % interval of our score minus the rival's."""


@dataclass(frozen=True)
class Reach:
    """One figure to reach.

    Attributes
    ----------
    name : str
        As the table calls it.
    value, limit : float
    sign : str
        ``<=``, ``<`` or ``>=``: how the value must stand to the limit.
    verdict : {"pass", "tie", "miss"}
        A tie: a rival scored better on these test jobs, by less than the paired bootstrap can tell from none.
    rival : str
        Whose score the limit is; empty where it is a fixed number.
    interval : tuple of 2 floats, optional
        Of value - limit, where a rival scored better.
    """

    name: str
    value: float
    limit: float
    sign: str
    verdict: str
    rival: str = ""
    interval: tuple[float, float] | None = None


def fixed(name: str, value: float, sign: str, limit: float) -> Reach:
    """Hold a value against a fixed number; NaN is a miss."""
    holds = {"<=": value <= limit, "<": value < limit, ">=": value >= limit}[sign]
    return Reach(name, value, limit, sign, "pass" if holds else "miss")


def beside(key: str, scores: Mapping[str, Mapping[str, float]], rivals: tuple[str, ...], interval: Interval) -> Reach:
    """Hold our score against the better of some rivals'; those without that score do not count.

    Parameters
    ----------
    key : str
    scores : mapping
        Name (``networks`` and the rivals') -> key -> score.
    rivals : tuple of str
    interval : callable
    """
    score = score_of(key)
    value = scores["networks"][key]
    limits = {scores[name][key]: name for name in reversed(rivals) if key in scores[name]}
    limit = score.best(limits)
    rival, sign = limits[limit], ">=" if score.higher_is_better else "<="
    if score.verdict(value - limit) != "worse":
        return Reach(key, value, limit, sign, "pass", rival)
    bounds = interval(key, rival)
    verdict = "miss" if score.verdict(value - limit, bounds) == "worse" else "tie"
    return Reach(key, value, limit, sign, verdict, rival, bounds)


def coverage_limit(n_test: int) -> float:
    """The promised coverage minus one standard error of a share among so many jobs."""
    return COVERAGE - float(np.sqrt(COVERAGE * (1 - COVERAGE) / n_test))


def verdicts(
    scores: Mapping[str, Mapping[str, float]], growth_ratio: float, n_test: int, interval: Interval
) -> list[Reach]:
    """All figures to reach.

    Parameters
    ----------
    scores : mapping
        Name -> key -> score, ``fit_seconds`` among the keys; names ``networks``, ``seed recipe``, ``random forest``.
    growth_ratio : float
        Fit seconds with 10 times the jobs over those with the jobs.
    n_test : int
        Number of test jobs.
    interval : callable
    """
    ours = scores["networks"]
    share = ours["fit_seconds"] / scores["seed recipe"]["fit_seconds"]
    return [
        fixed("fit seconds over seed recipe's", share, "<=", FIT_SHARE),
        fixed("fit seconds, 10x the jobs over 1x", growth_ratio, "<=", GROWTH),
        *(beside(key, scores, ("random forest", "seed recipe"), interval) for key in BEST_OF_BOTH),
        beside("mem_bin_excess_cost", scores, ("random forest",), interval),
        fixed("mem_bin_excess_cost", ours["mem_bin_excess_cost"], "<", EXCESS_COST),
        fixed("mem_bin_recall_16g", ours.get("mem_bin_recall_16g", float("nan")), ">=", RECALL_16G),
        fixed("wallclock_kill_time_coverage", ours["wallclock_kill_time_coverage"], ">=", coverage_limit(n_test)),
        fixed("wallclock_kill_time_reserved", ours["wallclock_kill_time_reserved"], "<=", RESERVED),
    ]
