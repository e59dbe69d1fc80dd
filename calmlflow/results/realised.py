"""What became of recorded predictions once the jobs had finished, against what a version's held-out jobs promised."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.ladder import BIN_NAMES, LADDER, allocation_cost

FEWEST_JOBS = 40
"""Fewer judged jobs than this say nothing, as in the gate."""

_Z = 1.959964
_RESAMPLES = 1000
_PROBABILITIES = [f"prob_{name}" for name in BIN_NAMES]


@dataclass(frozen=True)
class Joined:
    """Finished jobs with the prediction that each one was given.

    Attributes
    ----------
    judged : DataFrame
        One row a job: ``mem_bin``, ``wallclock`` and the columns of its prediction.
    others : dict of str to int
        Jobs that were answered by another version, by the version.
    left_out : int
        Jobs that a policy answered, or whose prediction is incomplete.
    """

    judged: pd.DataFrame
    others: dict[str, int]
    left_out: int


@dataclass(frozen=True)
class Realised:
    """A score as it came out.

    Attributes
    ----------
    score : str
    found, held_out : float
        Of the jobs that finished since; of those that the training held out.
    worse : float
        By how much it is worse than held out; below 0 it is better.
    low : float
        Lower bound of the 95 % interval of ``worse``: above 0 it is worse beyond chance.
    """

    score: str
    found: float
    held_out: float
    worse: float
    low: float


def join_predictions(jobs: pd.DataFrame, predictions: pd.DataFrame, version: str) -> Joined:
    """Give each finished job the latest prediction of before its end.

    Parameters
    ----------
    jobs : DataFrame
        Job records; a job's timestamp is its end.
    predictions : DataFrame
        See `calmlflow.jobs.predictions.Recorded`.
    version : str
        Whose predictions are judged. A job is judged by the answer that it ran with: where that is another
        version's, or a policy's, an earlier one of this version is no substitute.
    """
    finished = jobs[["ipst", "timestamp", "mem_bin", "wallclock"]].rename(columns={"timestamp": "finished"})
    paired = finished.merge(predictions, on="ipst")
    paired = paired[paired["timestamp"] <= paired["finished"]]
    latest = paired.sort_values("timestamp", kind="stable").drop_duplicates("ipst", keep="last")
    answers = latest["bin_pred"].isin(range(len(LADDER))) & np.isfinite(latest["kill_time"])
    sound = latest[answers & latest["version"].notna() & ~latest["source"].isin(["policy", "fallback"])]
    own = sound["version"] == version
    others = {str(name): int(count) for name, count in sound.loc[~own, "version"].value_counts().items()}
    return Joined(sound[own].reset_index(drop=True), others, len(latest) - len(sound))


def realised_scores(judged: pd.DataFrame, held_out: pd.DataFrame, promised: dict[str, float]) -> list[Realised]:
    """Scores of judged jobs against those of a training; scores that the training does not have are left out.

    Accuracy and coverage are shares of jobs: the interval of their difference is Newcombe's. Of the excess cost it is
    the percentiles of 1000 resamples of the jobs of both sides.

    Parameters
    ----------
    judged : DataFrame of n jobs, at least one
        See `Joined`.
    held_out : DataFrame of m jobs
        ``mem_bin``, ``wallclock`` and perhaps ``bin_pred`` of the training's test jobs.
    promised : dict of str to float
        ``accuracy`` (of the most probable bin, as trainings score it) and ``kill_time_coverage`` on these test jobs.

    References
    ----------
    Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17 (1998).
    """
    if held_out.empty:
        return []
    needed, wallclock_s = judged["mem_bin"].to_numpy(), judged["wallclock"].to_numpy()
    probabilities = judged[_PROBABILITIES].to_numpy(dtype=float)
    # Where an answer was recorded without them, the bin that was decided on stands for the most probable one.
    likeliest = np.where(
        np.isfinite(probabilities).all(axis=1), np.nan_to_num(probabilities).argmax(axis=1), judged["bin_pred"]
    )
    hits = {"accuracy": likeliest == needed, "kill_time_coverage": wallclock_s <= judged["kill_time"].to_numpy()}
    found = [_share(score, hit, promised[score], len(held_out)) for score, hit in hits.items() if score in promised]
    if "bin_pred" in held_out and held_out["bin_pred"].notna().all():
        found.append(_excess_cost(judged, held_out))
    return found


def _share(score: str, hit: NDArray[np.bool_], promised: float, n_held_out: int) -> Realised:
    share = float(hit.mean())
    return Realised(score, share, promised, promised - share, _low_difference(promised, n_held_out, share, len(hit)))


def _low_difference(one: float, n_one: int, other: float, n_other: int) -> float:
    """Lower bound of Newcombe's interval of a difference of two shares."""
    (low, _), (_, high) = _wilson(one, n_one), _wilson(other, n_other)
    return one - other - float(np.hypot(one - low, high - other))


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n jobs."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return float(middle - half), float(middle + half)


def _excess_cost(judged: pd.DataFrame, held_out: pd.DataFrame) -> Realised:
    (now, nows), (then, thens) = (_resampled_excess(jobs, seed) for seed, jobs in enumerate((judged, held_out)))
    low = float(np.percentile(nows - thens, 2.5))
    return Realised("excess_cost", now, then, now - then, low)


def _resampled_excess(jobs: pd.DataFrame, seed: int) -> tuple[float, NDArray[np.float64]]:
    """Excess cost of the jobs, and of 1000 resamples of them."""
    needed, wallclock_s = jobs["mem_bin"].to_numpy(), jobs["wallclock"].to_numpy()
    chosen = jobs["bin_pred"].to_numpy(dtype=int)
    dollars = np.column_stack([allocation_cost(bins, needed, wallclock_s) for bins in (chosen, needed)])
    generator, n = np.random.default_rng(seed), len(jobs)
    drawn = [np.bincount(generator.integers(n, size=n), minlength=n) @ dollars for _ in range(_RESAMPLES)]
    sums = np.vstack([dollars.sum(axis=0), *drawn])
    excess = sums[:, 0] / sums[:, 1] - 1
    return float(excess[0]), excess[1:]
