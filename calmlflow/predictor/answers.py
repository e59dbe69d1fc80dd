"""Word predictions as answers, and answer by policy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calmlflow.hst.ladder import LADDER, Ladder, needed_bin
from calmlflow.predictor.bundle import Predictions, fallback
from calmlflow.settings import NETWORKS

# Levels whose finished jobs an answer counts, as the columns of ``evidence`` in predictions.
COUNTED = ("row", "programme", "visit", "run")


def mosaic_policy(ladder: Ladder = LADDER) -> dict[str, Any]:
    """The answer for a mosaic, which no network covers: the second rung (8g), twelve hours, kill time three days."""
    return _policy(43_200, 259_200, ladder)


def fallback_policy() -> dict[str, Any]:
    """The answer without a bundle: the second rung, 20 minutes, kill time six times that, and ``fallback`` true."""
    fixed = fallback(LADDER)
    return {**_policy(fixed["wall_pred"], fixed["kill_time"], LADDER), "fallback": True}


def _policy(clock_time_s: int, kill_time_s: int, ladder: Ladder) -> dict[str, Any]:
    return {
        "memBin": 1,
        "memVal": fallback(ladder)["mem_pred"],
        "clockTime": clock_time_s,
        "killTime": kill_time_s,
        "probabilities": [float(rung == 1) for rung in range(len(ladder))],
        "unseen": False,
        "evidence": dict.fromkeys(COUNTED, 0),
        "warnings": [],
        "version": None,
        "source": "policy",
    }


def as_answers(found: Predictions, ladder: Ladder = LADDER) -> list[dict[str, Any]]:
    """Predictions of n jobs, by a bundle with this ladder, in the keys of the answer.

    A key is absent if the bundle lacks its network.
    """
    columns: dict[str, list[Any]] = {}
    if "bin_pred" in found:
        columns["memBin"] = found["bin_pred"].tolist()
        columns["probabilities"] = [[round(p, 6) for p in row] for row in found["probabilities"].tolist()]
        columns["unseen"] = found["unseen"].tolist() if "unseen" in found else [False] * len(columns["memBin"])
    if "mem_pred" in found:
        columns["memVal"] = [round(value, 2) for value in found["mem_pred"].tolist()]
    if "wall_pred" in found:
        columns["clockTime"] = [max(int(value), 1) for value in found["wall_pred"].tolist()]
        columns["killTime"] = found["kill_time"].tolist()
    n = len(next(iter(columns.values())))
    counts = found["evidence"].tolist() if "evidence" in found else [[0] * len(COUNTED)] * n
    columns["evidence"] = [dict(zip(COUNTED, count, strict=True)) for count in counts]
    nothing = [None] * n
    # As the answer says it: the memory is rounded.
    bins, amounts, unseen = (columns.get(key, nothing) for key in ("memBin", "memVal", "unseen"))
    columns["warnings"] = [_warnings(*said, ladder) for said in zip(bins, amounts, unseen, strict=True)]
    for job in np.flatnonzero(found["by_policy"].any(axis=1)) if "by_policy" in found else ():
        columns["warnings"][job] = [by_policy(found["by_policy"][job])]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def by_policy(wrong: NDArray[np.bool_]) -> str:
    """Say why a job, or some of n, were answered by policy; shape (3,) or (n, 3)."""
    jobs = f"{wrong.any(axis=1).sum():,} of {len(wrong):,} jobs are" if wrong.ndim == 2 else "This job is"
    names = np.array(NETWORKS)[wrong.reshape(-1, len(NETWORKS)).any(axis=0)]
    return (
        f"{jobs} answered by policy, for {', '.join(names)} gave what cannot be true: not finite, 0 or less, beyond "
        "every job, or no probabilities."
    )


def _warnings(chosen: int | None, memory_gb: float | None, unseen: bool | None, ladder: Ladder) -> list[str]:
    """What somebody who reads an answer should know, as sentences."""
    warnings, rungs = [], ladder.rungs
    if unseen:
        warnings.append(
            "No job that a network learned from is like this one: its answer is a guess, with wider probabilities or "
            "the longest kill time."
        )
    if memory_gb is not None and memory_gb >= rungs[-1].limit_gb:
        warnings.append(
            f"The memory of {memory_gb:.2f} GB is beyond the largest rung, {rungs[-1].name} with "
            f"{rungs[-1].limit_gb} GB: the job may fit nowhere."
        )
    if memory_gb is not None and chosen is not None and memory_gb >= rungs[chosen].limit_gb:
        needed = rungs[int(needed_bin(min(memory_gb, rungs[-1].limit_gb), ladder))]
        if needed is not rungs[chosen]:
            warnings.append(
                f"The memory of {memory_gb:.2f} GB needs rung {needed.name}, but by the probabilities of the rungs "
                f"{rungs[chosen].name} is the better choice."
            )
    return warnings
