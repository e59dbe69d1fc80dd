"""Word predictions as answers, and answer by policy."""

from typing import Any

import numpy as np

from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.predictor.bundle import Predictions

# Levels whose finished jobs an answer counts, as the columns of ``evidence`` in predictions.
COUNTED = ("row", "programme", "visit", "run")


def mosaic_policy() -> dict[str, Any]:
    """The answer for a mosaic, which no network covers: the 8g rung, twelve hours, kill time three days."""
    return _policy(43_200, 259_200)


def fallback_policy() -> dict[str, Any]:
    """The answer without a bundle: the 8g rung, 20 minutes, kill time six times that, and ``fallback`` true."""
    return {**_policy(1_200, 7_200), "fallback": True}


def _policy(clock_time_s: int, kill_time_s: int) -> dict[str, Any]:
    return {
        "memBin": 1,
        "memVal": round(LADDER[1].limit_gb, 2),
        "clockTime": clock_time_s,
        "killTime": kill_time_s,
        "probabilities": [0.0, 1.0, 0.0, 0.0],
        "unseen": False,
        "evidence": dict.fromkeys(COUNTED, 0),
        "warnings": [],
        "version": None,
        "source": "policy",
    }


def as_answers(found: Predictions) -> list[dict[str, Any]]:
    """Predictions of n jobs in the keys of the answer; a key is absent if the bundle lacks its network."""
    columns: dict[str, list[Any]] = {}
    if "bin_pred" in found:
        columns["memBin"] = found["bin_pred"].tolist()
        columns["probabilities"] = [[round(p, 6) for p in row] for row in found["probabilities"].tolist()]
        columns["unseen"] = found["unseen"].tolist() if "unseen" in found else [False] * len(columns["memBin"])
    if "mem_pred" in found:
        columns["memVal"] = [round(value, 2) for value in found["mem_pred"].tolist()]
    if "wall_pred" in found:
        columns["clockTime"] = [int(value) for value in found["wall_pred"].tolist()]
        columns["killTime"] = found["kill_time"].tolist()
    n = len(next(iter(columns.values())))
    counts = found["evidence"].tolist() if "evidence" in found else [[0] * len(COUNTED)] * n
    columns["evidence"] = [dict(zip(COUNTED, count, strict=True)) for count in counts]
    columns["warnings"] = _warnings(found, n)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _warnings(found: Predictions, n: int) -> list[list[str]]:
    """What somebody who reads an answer should know, as sentences."""
    warnings: list[list[str]] = [[] for _ in range(n)]
    for job in np.flatnonzero(found.get("unseen", np.zeros(n))):
        warnings[job].append(
            "No training job is like this one: its rung has the lowest cost under widened probabilities, and its kill "
            "time is the longest."
        )
    if "mem_pred" not in found:
        return warnings
    memory_gb, largest = found["mem_pred"], LADDER[-1]
    for job in np.flatnonzero(memory_gb >= largest.limit_gb):
        warnings[job].append(
            f"The memory of {memory_gb[job]:.2f} GB is beyond the largest rung, {largest.name} with "
            f"{largest.limit_gb} GB: the job may fit nowhere."
        )
    if "bin_pred" in found:
        needed = needed_bin(np.nan_to_num(memory_gb))
        for job in np.flatnonzero(found["bin_pred"] < needed):
            chosen = LADDER[found["bin_pred"][job]]
            warnings[job].append(
                f"The memory of {memory_gb[job]:.2f} GB needs rung {LADDER[needed[job]].name}, but {chosen.name} has "
                "the lower expected cost."
            )
    return warnings
