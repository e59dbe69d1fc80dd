"""Word predictions as answers, and answer by policy."""

import math
from typing import Any

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
        # Rounded up it would not fit in the rung.
        "memVal": math.floor(100 * LADDER[1].limit_gb) / 100,
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
    nothing = [None] * n
    # As the answer says it: the memory is rounded.
    said = (columns.get(key, nothing) for key in ("memBin", "memVal", "unseen"))
    columns["warnings"] = list(map(_warnings, *said))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _warnings(chosen: int | None, memory_gb: float | None, unseen: bool | None) -> list[str]:
    """What somebody who reads an answer should know, as sentences."""
    warnings = []
    if unseen:
        warnings.append(
            "No job that a network learned from is like this one: its answer is a guess, with wider probabilities or "
            "the longest kill time."
        )
    if memory_gb is not None and memory_gb >= LADDER[-1].limit_gb:
        warnings.append(
            f"The memory of {memory_gb:.2f} GB is beyond the largest rung, {LADDER[-1].name} with "
            f"{LADDER[-1].limit_gb} GB: the job may fit nowhere."
        )
    if memory_gb is not None and chosen is not None and memory_gb >= LADDER[chosen].limit_gb:
        needed = LADDER[int(needed_bin(min(memory_gb, LADDER[-1].limit_gb)))]
        if needed is not LADDER[chosen]:
            warnings.append(
                f"The memory of {memory_gb:.2f} GB needs rung {needed.name}, but by the probabilities of the rungs "
                f"{LADDER[chosen].name} is the better choice."
            )
    return warnings
