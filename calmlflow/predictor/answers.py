"""The answer's words, and the answers that no network gives."""

from typing import Any

from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Predictions


def mosaic_policy() -> dict[str, Any]:
    """The answer for a mosaic, which no network covers: the 8g rung, twelve hours, killed after three days."""
    return _policy(clock_time_s=43_200, kill_time_s=259_200)


def fallback_policy() -> dict[str, Any]:
    """The answer where no bundle can be had: the 8g rung, 20 minutes, killed after six times that; and ``fallback``."""
    return {**_policy(clock_time_s=1_200, kill_time_s=7_200), "fallback": True}


def _policy(clock_time_s: int, kill_time_s: int) -> dict[str, Any]:
    return {
        "memBin": 1,
        "memVal": round(LADDER[1].limit_gb, 2),
        "clockTime": clock_time_s,
        "killTime": kill_time_s,
        "probabilities": [0.0, 1.0, 0.0, 0.0],
        "unseen": False,
        "version": None,
        "source": "policy",
    }


def as_answers(found: Predictions) -> list[dict[str, Any]]:
    """Predictions of n jobs in the words of the answer; a key is left out where the bundle lacks its network."""
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
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
