"""Score recorded predictions of finished and killed jobs, and compare them with a training's held-out scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import programmes
from calmlflow.hst.ladder import LADDER, allocation_cost
from calmlflow.hst.resources import KILLS
from calmlflow.results.comparison import (
    effective_number,
    programme_sums,
    resampled_interval,
    resampled_sums,
    share_interval,
)
from calmlflow.results.scores import SCORES, Score, Verdict
from calmlflow.results.table import PROBABILITIES
from calmlflow.settings import SHADOW

# Score of a share of answers -> the columns of `count_runs` that hold its hits, and the answers that it counts.
_SHARES = {
    SCORES["mem_bin"]["accuracy"]: ("accurate", "placed"),
    SCORES["mem_bin"]["underallocated"]: ("too_low", "placed"),
    SCORES["wallclock"]["kill_time_coverage"]: ("covered", "judged"),
}
_EXCESS = SCORES["mem_bin"]["excess_cost"]


@dataclass(frozen=True)
class Joined:
    """Runs of jobs that have ended, with the prediction that each one was given."""

    judged: pd.DataFrame  # one row a run: see `ended_runs`, the columns of its prediction, and those of `count_runs`
    others: dict[str, int]  # version -> runs that it answered, of versions that are not judged
    left_out: int  # runs that a policy answered, or whose prediction is incomplete


@dataclass(frozen=True)
class Realised:
    """A score of recorded answers beside the held-out one; low and high bound found - held_out (95 %, by programme)."""

    score: Score
    found: float
    held_out: float
    low: float
    high: float
    jobs: int
    programmes: int  # of these jobs

    def verdict(self, margin: float = 0.0) -> Verdict:
        """Verdict on the score of the recorded answers; see `Score.verdict`."""
        bounds = self.low, self.high
        return self.score.verdict(self.found - self.held_out, bounds, self.jobs, margin, self.programmes)


def ended_runs(jobs: pd.DataFrame, killed: pd.DataFrame) -> pd.DataFrame:
    """Finished and killed jobs in one table, a row for each run.

    ``jobs`` are valid job records, ``killed`` has ``ipst``, ``timestamp``, ``kind`` (one of `KILLS`), and
    ``wallclock``, the seconds reached where known. A finished job's kind is ``finished``, a killed one's bin unknown.
    """
    names = ["ipst", "timestamp", "kind", "wallclock"]
    ended = pd.concat([jobs.assign(kind="finished")[[*names, "mem_bin"]], killed[names]], ignore_index=True)
    return ended.astype({"timestamp": "int64", "wallclock": float, "mem_bin": float})


def join_predictions(ended: pd.DataFrame, predictions: pd.DataFrame, version: str | None = None) -> Joined:
    """Join each run of `ended_runs` with the latest prediction before its end.

    A run's timestamp is its end. It is judged by the answer that it ran with: where that is another version's, or a
    policy's, an earlier one of the version to judge (None: any) does not count. For ``predictions`` see
    `calmlflow.jobs.predictions.Recorded`; no job ran with a shadow answer.
    """
    given = predictions[predictions["source"].ne(SHADOW)]
    paired = ended.rename(columns={"timestamp": "finished_at"}).merge(given, on="ipst")
    paired = paired[paired["timestamp"] <= paired["finished_at"]]
    latest = paired.sort_values("timestamp", kind="stable").drop_duplicates(["ipst", "finished_at"], keep="last")
    complete = latest["bin_pred"].isin(range(len(LADDER))) & np.isfinite(latest["kill_time"])
    sound = latest[complete & latest["version"].notna() & ~latest["source"].isin(["policy", "fallback"])]
    own = sound["version"] == version if version else sound["version"].notna()
    others = {str(name): int(count) for name, count in sound.loc[~own, "version"].value_counts().items()}
    return Joined(count_runs(sound[own].reset_index(drop=True)), others, len(latest) - len(sound))


def count_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Add to n runs with their answers what each one counts in the scores.

    Numbers to sum up: counts (``finished``, ``killed_time`` and so on, ``too_high``; ``too_low`` and ``accurate`` of
    ``placed``; ``covered`` of ``judged`` by their kill time; ``charged``, the runs that an answer pays for) and dollars
    (``paid``, ``perfect``, ``lost_to_kills``, ``lost_to_air``). Without ``kill_time``, or without probabilities,
    ``covered`` or ``accurate`` is missing.
    """
    kind = runs["kind"].to_numpy(dtype=str)
    finished, by_time = kind == "finished", kind == "time"
    chosen = runs["bin_pred"].to_numpy(dtype=int)
    needed = runs["mem_bin"].where(finished, chosen).to_numpy(dtype=int)
    answer = pd.MultiIndex.from_frame(runs[["ipst", "timestamp"]])
    climbed = answer[finished & (chosen < needed)]
    # A job that climbed pays for its kills by memory with its own cost.
    killed_low = (kind == "memory") & ~answer.isin(climbed)

    def once(killed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """An answer counts once, however often its job was tried: as killed, where it was, or else as finished."""
        first = ~pd.MultiIndex.from_arrays([*map(answer.get_level_values, range(2)), killed]).duplicated()
        return (finished & ~answer.isin(answer[killed])) | (killed & first)

    placed, judged = once(killed_low), once(by_time)
    used_s = runs["wallclock"].fillna(0).to_numpy()
    charged = finished | by_time | killed_low
    paid = np.where(charged, allocation_cost(chosen, needed, used_s), 0)
    perfect = np.where(finished, allocation_cost(needed, needed, used_s), 0)
    too_high = finished & (chosen > needed)
    counts = {
        "finished": finished,
        **{f"killed_{name}": kind == name for name in KILLS},
        "placed": placed,
        "too_low": placed & ((chosen < needed) | killed_low),
        "too_high": too_high,
        "judged": judged,
        "charged": charged,
        "paid": paid,
        "perfect": perfect,
        "lost_to_kills": np.where(too_high, 0, paid - perfect),
        "lost_to_air": np.where(too_high, paid - perfect, 0),
    }
    if "kill_time" in runs:
        counts["covered"] = judged & finished & (runs["wallclock"] <= runs["kill_time"]).to_numpy()
    if set(PROBABILITIES) <= set(runs):
        probabilities = runs[PROBABILITIES].to_numpy(dtype=float)
        # Where an answer was recorded without probabilities, its bin stands for the most probable one.
        likeliest = np.where(
            np.isfinite(probabilities).all(axis=1), np.nan_to_num(probabilities).argmax(axis=1), chosen
        )
        # A bin above the one that was too small for a killed job may have been right: nobody knows.
        counts["accurate"] = placed & np.where(finished, likeliest == needed, likeliest > chosen)
    return runs.assign(**counts)


def realised_scores(runs: pd.DataFrame, held_out: pd.DataFrame, held_out_scores: Mapping[str, float]) -> list[Realised]:
    """Scores of recorded answers against those of a training; scores that one of the two lacks are left out.

    ``runs`` are those of `Joined`. ``held_out`` are the training's test jobs: ``ipst``, ``timestamp``, ``mem_bin``,
    ``wallclock`` and, as far as they are known, the columns of a prediction. ``held_out_scores`` are ``accuracy`` and
    ``kill_time_coverage`` on these.
    """
    if held_out.empty:
        return []
    # Without a decision the needed bin stands for it; what rests on it is left out.
    is_decided = "bin_pred" in held_out and held_out["bin_pred"].notna().all()
    chosen = held_out["bin_pred" if is_decided else "mem_bin"]
    before = count_runs(held_out.assign(kind="finished", bin_pred=chosen))
    found = []
    for score, (hits, count) in _SHARES.items():
        if (hits == "too_low" and not is_decided) or not runs[count].any():
            continue
        if hits not in before and score.name in held_out_scores:
            # An older training kept the share alone, so its jobs count as if they were independent.
            before = before.assign(**{hits: held_out_scores[score.name]})
        if hits in before:
            now, other = share(runs, hits, count), share(before, hits, count)
            bounds = _difference_interval(now, other)
            found.append(Realised(score, now[0], other[0], *bounds, *_behind(runs[runs[count]])))
    if is_decided and (runs["perfect"] > 0).any():
        (excess, resamples, number), (other_excess, others, other_number) = (
            resampled_excess(side, seed) for seed, side in enumerate((runs, before))
        )
        bounds = resampled_interval(resamples - others, min(number, other_number))
        found.append(Realised(_EXCESS, excess, other_excess, *bounds, *_behind(runs[runs["charged"]])))
    return found


def share(runs: pd.DataFrame, hits: str, count: str) -> tuple[float, float, float]:
    """Share of the counted answers that hit, with the bounds of its interval; of columns of `count_runs`."""
    counted = runs[runs[count]]
    sums = programme_sums(counted[[hits, count]].to_numpy(), counted["ipst"])
    return float(counted[hits].mean()), *share_interval(*sums.T)


def _behind(runs: pd.DataFrame) -> tuple[int, int]:
    return len(runs), len(np.unique(programmes(runs["ipst"])))


def _difference_interval(this: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float]:
    """Newcombe's interval of a difference of two shares from their own, Statistics in Medicine 17 (1998), method 10."""
    (share, low, high), (other_share, other_low, other_high) = this, other
    difference = share - other_share
    below, above = np.hypot(share - low, other_high - other_share), np.hypot(high - share, other_share - other_low)
    return difference - float(below), difference + float(above)


def resampled_excess(runs: pd.DataFrame, seed: int) -> tuple[float, NDArray[np.float64], float]:
    """Excess cost of runs, the same of resamples of them, and the effective number of programmes.

    Runs have dollars ``paid`` and ``perfect``, those of a perfect choice. Resamples without the latter are NaN.
    """
    dollars = runs[["paid", "perfect"]].to_numpy(dtype=float)
    by_programme = programme_sums(dollars, runs["ipst"])
    paid, perfect = np.vstack([dollars.sum(axis=0), resampled_sums(by_programme, seed)]).T
    excess = paid / np.where(perfect > 0, perfect, np.nan) - 1
    return float(excess[0]), excess[1:], float(effective_number(by_programme[:, 1:])[0])
