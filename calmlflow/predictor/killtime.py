"""Kill time: an upper bound on wallclock that holds for a promised share of jobs."""

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.errors import InputError
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

COVERAGE = 0.999
"""Default share of jobs that must end before their kill time."""


@dataclass(frozen=True)
class KillTime:
    """Factor from predicted wallclock to kill time, by groups of predicted wallclock.

    Attributes
    ----------
    edges_s : tuple of floats
        Upper edges of all groups but the last, seconds of predicted wallclock, ascending.
    factors : tuple of floats
        One per group.
    coverage : float
        Share of jobs promised to end in time.
    jobs : tuple of ints
        Calibration jobs in each group. A group of fewer than coverage / (1 - coverage) jobs cannot hold the promise:
        its factor is the largest ratio seen.

    References
    ----------
    Split conformal prediction, made conditional on a group (Mondrian): Vovk, Gammerman and Shafer, Algorithmic Learning
    in a Random World (2005), chapter 4.
    """

    edges_s: tuple[float, ...]
    factors: tuple[float, ...]
    coverage: float
    jobs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.factors or len(self.factors) != len(self.edges_s) + 1 or len(self.jobs) != len(self.factors):
            raise InputError(
                f"killtime.json has {len(self.edges_s)} edges, {len(self.factors)} factors, {len(self.jobs)} counts; "
                "expected one edge fewer than factors, and a count for each factor"
            )
        if not all(math.isfinite(factor) and factor > 0 for factor in self.factors) or not 0 < self.coverage < 1:
            raise InputError("killtime.json: factors must be finite and above 0, and coverage between 0 and 1")
        if not all(math.isfinite(edge) for edge in self.edges_s) or list(self.edges_s) != sorted(self.edges_s):
            raise InputError("killtime.json: edges must be finite and ascending")

    def apply(self, predicted_s: ArrayLike) -> NDArray[np.int64]:
        """Kill time in whole seconds (60..172800) for predicted wallclocks in seconds, of any shape."""
        predicted_s = np.asarray(predicted_s, dtype=float)
        factors = np.asarray(self.factors)[np.searchsorted(self.edges_s, predicted_s, side="left")]
        return np.clip(np.ceil(predicted_s * factors), KILL_TIME_MIN_S, KILL_TIME_MAX_S).astype(np.int64)

    def to_json(self) -> str:
        """The text of ``killtime.json``."""
        return json.dumps(
            {
                "edges_s": list(self.edges_s),
                "factors": list(self.factors),
                "coverage": self.coverage,
                "jobs": list(self.jobs),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "KillTime":
        """Read the text of ``killtime.json``; an InputError names what does not fit."""
        try:
            data = json.loads(text)
            return cls(
                tuple(float(edge) for edge in data["edges_s"]),
                tuple(float(factor) for factor in data["factors"]),
                float(data["coverage"]),
                tuple(int(count) for count in data["jobs"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("killtime.json does not parse; expected edges_s, factors, coverage and jobs") from None


def fit_kill_time(predicted_s: ArrayLike, actual_s: ArrayLike, coverage: float = COVERAGE) -> KillTime:
    """Calibrate kill times on jobs that the network was not trained on.

    The jobs are cut into groups of equal size by predicted wallclock, as many as the promise allows; in each, the
    factor is the conformal quantile of actual / predicted.

    Parameters
    ----------
    predicted_s, actual_s : array_like, shape (n,)
        Seconds, n >= 1.
    coverage : float
        Share of jobs that must end before their kill time.
    """
    predicted_s, actual_s = np.asarray(predicted_s, dtype=float), np.asarray(actual_s, dtype=float)
    ratio = actual_s / predicted_s
    # The conformal rank ceil((n + 1) * coverage) exists only in a group of at least this many jobs.
    needed = math.ceil(coverage / (1 - coverage))
    groups = max(1, len(ratio) // (needed + 1))
    edges = np.unique(np.quantile(predicted_s, np.arange(1, groups) / groups)) if groups > 1 else np.array([])
    group = np.searchsorted(edges, predicted_s, side="left")
    factors, jobs = [], []
    for number in range(len(edges) + 1):
        ratios = np.sort(ratio[group == number] if np.any(group == number) else ratio)
        rank = math.ceil((len(ratios) + 1) * coverage)
        # Never below the prediction itself, however early the few jobs of a small group ended.
        factors.append(max(float(ratios[min(rank, len(ratios)) - 1]), 1.0))
        jobs.append(int(np.sum(group == number)))
    return KillTime(tuple(edges.tolist()), tuple(factors), coverage, tuple(jobs))
