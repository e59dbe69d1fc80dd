"""Word predictions as answers, answer by policy, and remember the answers to feature rows."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from calmlflow.hst.features import Features
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Predictions

T = TypeVar("T")

# The 45,000 jobs of the archive have 818 different rows.
MAX_KNOWN = 50_000


class KnownAnswers(Generic[T]):
    """Answer feature rows with ``answer``, each of the first ``most`` once. Safe to share between threads."""

    def __init__(self, answer: Callable[[list[Features]], Iterable[T]], most: int = MAX_KNOWN):
        self._answer = answer
        self._most = most
        self._known: dict[Features, T] = {}

    def one(self, row: Features) -> T:
        """The answer to one row; a known one without the work of many."""
        found = self._known.get(row)
        return self([row])[0] if found is None else found

    def __call__(self, rows: Sequence[Features]) -> list[T]:
        """Answers to n rows, in order. Equal rows share one answer, so a caller must not change it."""
        known = self._known
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            found = dict(zip(new, self._answer(new), strict=True))
            if len(known) + len(found) <= self._most:
                known.update(found)
            else:
                known = {row: found[row] if row in found else known[row] for row in rows}
        return [known[row] for row in rows]


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
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
