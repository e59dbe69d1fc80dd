"""Score recorded predictions of finished jobs and compare them with a training's held-out scores."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from calmlflow.hst.ladder import LADDER, allocation_cost
from calmlflow.results.comparison import TAILS, resampled_sums
from calmlflow.results.scores import SCORES, Score, Verdict
from calmlflow.results.table import PROBABILITIES


@dataclass(frozen=True)
class Joined:
    """Finished jobs with the prediction that each one was given."""

    judged: pd.DataFrame  # one row a job: mem_bin, wallclock and the columns of its prediction
    others: dict[str, int]  # version -> jobs that it answered, of versions that are not judged
    left_out: int  # jobs that a policy answered, or whose prediction is incomplete


@dataclass(frozen=True)
class Realised:
    """A score of finished jobs beside the held-out one; low and high bound found - held_out (95 %)."""

    score: Score
    found: float
    held_out: float
    low: float
    high: float

    def verdict(self, margin: float = 0.0) -> Verdict:
        """Verdict on the score of the finished jobs; see `Score.verdict`."""
        return self.score.verdict(self.found - self.held_out, (self.low, self.high), margin=margin)


def join_predictions(jobs: pd.DataFrame, predictions: pd.DataFrame, version: str) -> Joined:
    """Join each finished job with the latest prediction before its end.

    A job's timestamp is its end. A job is judged by the answer that it ran with: where that is another version's, or a
    policy's, an earlier one of the version to judge does not count. For ``predictions`` see
    `calmlflow.jobs.predictions.Recorded`.
    """
    finished = jobs[["ipst", "timestamp", "mem_bin", "wallclock"]].rename(columns={"timestamp": "finished"})
    paired = finished.merge(predictions, on="ipst")
    paired = paired[paired["timestamp"] <= paired["finished"]]
    latest = paired.sort_values("timestamp", kind="stable").drop_duplicates("ipst", keep="last")
    complete = latest["bin_pred"].isin(range(len(LADDER))) & np.isfinite(latest["kill_time"])
    sound = latest[complete & latest["version"].notna() & ~latest["source"].isin(["policy", "fallback"])]
    own = sound["version"] == version
    others = {str(name): int(count) for name, count in sound.loc[~own, "version"].value_counts().items()}
    return Joined(sound[own].reset_index(drop=True), others, len(latest) - len(sound))


def realised_scores(judged: pd.DataFrame, held_out: pd.DataFrame, held_out_scores: dict[str, float]) -> list[Realised]:
    """Scores of judged jobs against those of a training; scores that the training does not have are left out.

    ``judged`` is at least one row of `Joined`; ``held_out`` has ``mem_bin``, ``wallclock`` and perhaps ``bin_pred`` of
    the training's test jobs; ``held_out_scores`` are ``accuracy`` and ``kill_time_coverage`` on these.
    """
    if held_out.empty:
        return []
    probabilities = judged[PROBABILITIES].to_numpy(dtype=float)
    # Where an answer was recorded without probabilities, its bin stands for the most probable one.
    likeliest = np.where(
        np.isfinite(probabilities).all(axis=1), np.nan_to_num(probabilities).argmax(axis=1), judged["bin_pred"]
    )
    hits = {
        SCORES["mem_bin"]["accuracy"]: likeliest == judged["mem_bin"],
        SCORES["wallclock"]["kill_time_coverage"]: judged["wallclock"] <= judged["kill_time"],
    }
    found = []
    for score, hit in hits.items():
        if score.name in held_out_scores:
            before = held_out_scores[score.name]
            bounds = _difference_interval(int(hit.sum()), len(hit), round(before * len(held_out)), len(held_out))
            found.append(Realised(score, float(hit.mean()), before, *bounds))
    if "bin_pred" in held_out and held_out["bin_pred"].notna().all():
        (now, nows), (before, befores) = (_resampled_excess(side, n) for n, side in enumerate((judged, held_out)))
        low, high = np.percentile(nows - befores, TAILS)
        found.append(Realised(SCORES["mem_bin"]["excess_cost"], now, before, float(low), float(high)))
    return found


def _difference_interval(hits: int, n: int, other_hits: int, other_n: int) -> tuple[float, float]:
    """Newcombe's 95 % interval of a difference of two shares, Statistics in Medicine 17 (1998), method 10."""
    share, other_share = hits / n, other_hits / other_n
    one, other = (binomtest(*counts).proportion_ci(method="wilson") for counts in ((hits, n), (other_hits, other_n)))
    low = np.hypot(share - one.low, other.high - other_share)
    high = np.hypot(one.high - share, other_share - other.low)
    return share - other_share - float(low), share - other_share + float(high)


def _resampled_excess(jobs: pd.DataFrame, seed: int) -> tuple[float, NDArray[np.float64]]:
    """Excess cost of the jobs, and of resamples of them."""
    needed, wallclock_s = jobs["mem_bin"].to_numpy(), jobs["wallclock"].to_numpy()
    chosen = jobs["bin_pred"].to_numpy(dtype=int)
    dollars = np.column_stack([allocation_cost(bins, needed, wallclock_s) for bins in (chosen, needed)])
    sums = np.vstack([dollars.sum(axis=0), resampled_sums(dollars, seed)])
    excess = sums[:, 0] / sums[:, 1] - 1
    return float(excess[0]), excess[1:]
