"""Score recorded predictions of finished jobs and compare them with a training's held-out scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.dataset import programmes
from calmlflow.hst.ladder import LADDER, allocation_cost
from calmlflow.results.comparison import (
    effective_number,
    programme_sums,
    resampled_interval,
    resampled_sums,
    share_interval,
)
from calmlflow.results.scores import SCORES, Score, Verdict
from calmlflow.results.table import PROBABILITIES


@dataclass(frozen=True)
class Joined:
    """Jobs that have ended, with the prediction that each one was given."""

    judged: pd.DataFrame  # one row a job: its end, as `finished`, and the columns of its prediction
    others: dict[str, int]  # version -> jobs that it answered, of versions that are not judged
    left_out: int  # jobs that a policy answered, or whose prediction is incomplete


@dataclass(frozen=True)
class Realised:
    """A score of finished jobs beside the held-out one; low and high bound found - held_out (95 %, over programmes)."""

    score: Score
    found: float
    held_out: float
    low: float
    high: float
    jobs: int
    programmes: int  # of the finished jobs

    def verdict(self, margin: float = 0.0) -> Verdict:
        """Verdict on the score of the finished jobs; see `Score.verdict`."""
        bounds = self.low, self.high
        return self.score.verdict(self.found - self.held_out, bounds, self.jobs, margin, self.programmes)


def join_predictions(jobs: pd.DataFrame, predictions: pd.DataFrame, version: str | None = None) -> Joined:
    """Join each finished job with the latest prediction before its end.

    A job's timestamp is its end; rows with a column ``kind`` keep it. A job is judged by the answer that it ran with:
    where that is another version's, or a policy's, an earlier one of the version to judge (None: any) does not count.
    For ``predictions`` see `calmlflow.jobs.predictions.Recorded`.
    """
    kept = [name for name in ("ipst", "timestamp", "mem_bin", "wallclock", "kind") if name in jobs]
    finished = jobs[kept].rename(columns={"timestamp": "finished"})
    paired = finished.merge(predictions, on="ipst")
    paired = paired[paired["timestamp"] <= paired["finished"]]
    latest = paired.sort_values("timestamp", kind="stable").drop_duplicates(["ipst", "finished"], keep="last")
    complete = latest["bin_pred"].isin(range(len(LADDER))) & np.isfinite(latest["kill_time"])
    sound = latest[complete & latest["version"].notna() & ~latest["source"].isin(["policy", "fallback"])]
    own = sound["version"] == version if version else sound["version"].notna()
    others = {str(name): int(count) for name, count in sound.loc[~own, "version"].value_counts().items()}
    return Joined(sound[own].reset_index(drop=True), others, len(latest) - len(sound))


def realised_scores(
    judged: pd.DataFrame, held_out: pd.DataFrame, held_out_scores: Mapping[str, float]
) -> list[Realised]:
    """Scores of judged jobs against those of a training; scores that the training does not have are left out.

    ``judged`` is at least one row of `Joined`. ``held_out`` are the training's test jobs: ``ipst``, ``mem_bin``,
    ``wallclock`` and, as far as they are known, the columns of a prediction. ``held_out_scores`` are ``accuracy`` and
    ``kill_time_coverage`` on these.
    """
    if held_out.empty:
        return []
    nows, befores = _hits(judged), _hits(held_out)
    behind = len(judged), len(np.unique(programmes(judged["ipst"])))
    found = []
    for score in (SCORES["mem_bin"]["accuracy"], SCORES["wallclock"]["kill_time_coverage"]):
        before = befores.get(score.name)
        if before is None and score.name in held_out_scores:
            # An older training kept the share alone, so its jobs count as if they were independent.
            before = np.full(len(held_out), held_out_scores[score.name])
        if before is not None:
            now = nows[score.name]
            sides = _share(now, judged), _share(before, held_out)
            bounds = _difference_interval(float(now.mean()), sides[0], float(before.mean()), sides[1])
            found.append(Realised(score, float(now.mean()), float(before.mean()), *bounds, *behind))
    if "bin_pred" in held_out and held_out["bin_pred"].notna().all():
        (excess, resamples, number), (other, others, other_number) = (
            resampled_excess(_dollars(side), side["ipst"], seed) for seed, side in enumerate((judged, held_out))
        )
        bounds = resampled_interval(resamples - others, min(number, other_number))
        found.append(Realised(SCORES["mem_bin"]["excess_cost"], excess, other, *bounds, *behind))
    return found


def _hits(jobs: pd.DataFrame) -> dict[str, NDArray]:
    """Which jobs were right, by score, of those that the columns tell."""
    found: dict[str, NDArray] = {}
    if set(PROBABILITIES) <= set(jobs):
        probabilities = jobs[PROBABILITIES].to_numpy(dtype=float)
        # Where an answer was recorded without probabilities, its bin stands for the most probable one.
        likeliest = np.nan_to_num(probabilities).argmax(axis=1)
        likeliest = np.where(np.isfinite(probabilities).all(axis=1), likeliest, jobs["bin_pred"])
        found["accuracy"] = likeliest == jobs["mem_bin"].to_numpy()
    if "kill_time" in jobs:
        found["kill_time_coverage"] = (jobs["wallclock"] <= jobs["kill_time"]).to_numpy()
    return found


def _share(hits: NDArray, jobs: pd.DataFrame) -> tuple[float, float]:
    """Interval of a share of jobs."""
    sums = programme_sums(np.column_stack([hits, np.ones(len(hits))]), jobs["ipst"])
    return share_interval(sums[:, 0], sums[:, 1])


def _difference_interval(
    share: float, bounds: tuple[float, float], other_share: float, other_bounds: tuple[float, float]
) -> tuple[float, float]:
    """Newcombe's interval of a difference of two shares from their own, Statistics in Medicine 17 (1998), method 10."""
    (low, high), (other_low, other_high) = bounds, other_bounds
    difference = share - other_share
    below, above = np.hypot(share - low, other_high - other_share), np.hypot(high - share, other_share - other_low)
    return difference - float(below), difference + float(above)


def _dollars(jobs: pd.DataFrame) -> NDArray[np.float64]:
    """What each job cost, and what it costs on the rung that it needs."""
    needed, wallclock_s = jobs["mem_bin"].to_numpy(), jobs["wallclock"].to_numpy()
    chosen = jobs["bin_pred"].to_numpy(dtype=int)
    return np.column_stack([allocation_cost(bins, needed, wallclock_s) for bins in (chosen, needed)])


def resampled_excess(dollars: NDArray, names: ArrayLike, seed: int) -> tuple[float, NDArray[np.float64], float]:
    """Excess cost of n jobs, the same of resamples of them, and the effective number of programmes.

    ``dollars`` are those paid and those of a perfect choice, shape (n, 2). Resamples without the latter are NaN.
    """
    by_programme = programme_sums(dollars, names)
    paid, perfect = np.vstack([dollars.sum(axis=0), resampled_sums(by_programme, seed)]).T
    excess = paid / np.where(perfect > 0, perfect, np.nan) - 1
    return float(excess[0]), excess[1:], float(effective_number(by_programme[:, 1:])[0])
