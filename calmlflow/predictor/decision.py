"""Choose the memory rung with the lowest expected cost, and find jobs unlike any in training."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, Ladder, expected_costs
from calmlflow.hst.scaling import Scaling

# A job is unlike any seen if no training job of equal flags lies within this distance, in standard deviations of the
# scaled sizes; about one in a thousand held-out jobs of the archive is.
MAX_DISTANCE = 0.5
# And by how much ln(1 + size) of a job may lie outside of the range of the training jobs of equal flags: a factor of 2.
MAX_LOG_SIZE = float(np.log(2.0))
# Jobs that the network's probabilities count as for a job unlike any seen.
UNSEEN_JOBS = 4
MAX_RISK = 1e6
# Jobs of the mean ratio that are added to those of a feature row and rung, because few jobs say little.
PRIOR_JOBS = 10


@dataclass(frozen=True)
class Decision:
    """The table that chooses a rung."""

    # Shape (m + 1, 4): wallclock of the jobs that need each rung, over the mean of their feature row. One line for each
    # row of seen_rows.json, and a last one, the mean of all, for other jobs. Among jobs of equal features those that
    # need more memory run longer, in some rows by half.
    wallclock_ratio: NDArray[np.float64]
    # Dollars added for each dollar spent on a run that is killed.
    risk: float = 0.0
    ladder: Ladder = LADDER

    def __post_init__(self) -> None:
        ratio = self.wallclock_ratio
        has_shape = ratio.ndim == 2 and ratio.shape[1] == len(self.ladder) and len(ratio)
        if not has_shape or not np.all((ratio > 0) & (ratio < 1e6)):
            raise InputError(f"decision.json: wallclock_ratio must be lines of {len(self.ladder)} numbers above 0")
        if not 0 <= self.risk <= MAX_RISK:
            raise InputError(f"decision.json: risk is {self.risk:g}; expected 0 to {MAX_RISK:g}")

    def choose(self, probabilities: ArrayLike, nearest: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rung with the lowest expected cost for each of n jobs; of equals the higher one."""
        return len(self.ladder) - 1 - self.costs(probabilities, nearest)[:, ::-1].argmin(axis=1)

    def costs(self, probabilities: ArrayLike, nearest: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected dollars of each rung per second of the expected wallclock, shape (n, 4)."""
        return expected_costs(probabilities, self.wallclock_ratio[nearest], self.risk, self.ladder)

    def to_json(self) -> str:
        return json.dumps({"risk": self.risk, "wallclock_ratio": np.round(self.wallclock_ratio, 6).tolist()})

    @classmethod
    def from_json(cls, text: str | bytes, ladder: Ladder = LADDER) -> "Decision":
        """Read the text of ``decision.json``; an InputError names what does not fit."""
        try:
            data = json.loads(text)
            ratio, risk = np.asarray(data["wallclock_ratio"], dtype=float), float(data["risk"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError("decision.json does not parse; expected wallclock_ratio and risk") from error
        return cls(ratio, risk, ladder)


def fit_decision(bins: ArrayLike, wallclock_s: ArrayLike, row_of_job: ArrayLike, risk: float = 0.0) -> Decision:
    """Measure on training jobs how wallclock (s) varies with the needed rung in each feature row."""
    bins, row_of_job = np.asarray(bins, dtype=np.int64), np.asarray(row_of_job, dtype=np.int64)
    wallclock_s = np.asarray(wallclock_s, dtype=float)
    shape = int(row_of_job.max()) + 1, len(LADDER)
    cells = row_of_job * len(LADDER) + bins
    jobs = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    used = np.bincount(cells, weights=wallclock_s, minlength=shape[0] * shape[1]).reshape(shape)
    mean = used.sum(axis=1, keepdims=True) / jobs.sum(axis=1, keepdims=True)
    expected = (jobs * mean).sum(axis=0)
    overall = np.where(expected > 0, used.sum(axis=0) / np.where(expected > 0, expected, 1.0), 1.0)
    by_row = (used + PRIOR_JOBS * overall * mean) / ((jobs + PRIOR_JOBS) * mean)
    return Decision(np.vstack([by_row, overall]), risk)


def widen(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (n, 4) for jobs unlike any seen: the network's count as `UNSEEN_JOBS` jobs beside one of any rung.

    The rung is then decided on by expected cost as for every job.
    """
    return (UNSEEN_JOBS * probabilities + 1 / probabilities.shape[1]) / (UNSEEN_JOBS + 1)


class SeenRows:
    """The distinct feature rows of the training jobs: m rows, raw and scaled, shape (m, 9)."""

    def __init__(self, features: NDArray[np.float64], scaled: NDArray[np.float32]):
        self.count = len(scaled)
        flags = _flags(scaled)
        self._groups: dict[bytes, tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]] = {}
        for key in np.unique(flags, axis=0):
            members = np.flatnonzero(np.all(flags == key, axis=1))
            sizes = np.log1p(features[members, :2])
            bounds = np.stack([sizes.min(axis=0) - MAX_LOG_SIZE, sizes.max(axis=0) + MAX_LOG_SIZE])
            self._groups[key.tobytes()] = members, scaled[members, :2], bounds

    @classmethod
    def read(cls, content: bytes, scaling: Scaling) -> "SeenRows":
        """Read ``seen_rows.json``: the raw features of m rows."""
        try:
            rows = np.asarray(json.loads(content), dtype=float)
        except (ValueError, TypeError, OverflowError, RecursionError):
            rows = np.empty(())
        if rows.ndim != 2 or rows.shape[1] != len(FEATURES) or not len(rows) or not np.all(np.isfinite(rows)):
            raise InputError(f"seen_rows.json does not parse; expected rows of {len(FEATURES)} numbers")
        return cls(rows, scaling.apply(rows))

    def nearest(self, features: NDArray[np.float64], scaled: NDArray[np.float32]) -> NDArray[np.int64]:
        """Number of the nearest training row of equal flags for each job; raw and scaled features of shape (n, 9).

        -1, for a job unlike any seen, if that row is further than `MAX_DISTANCE`, if a raw size is further than
        `MAX_LOG_SIZE` from the range of the rows of equal flags, or if there is none. The scaling alone cannot tell: a
        power transform may take 43 and a million files for the same.
        """
        found = np.full(len(scaled), -1, dtype=np.int64)
        flags, log_sizes = _flags(scaled), np.log1p(features[:, :2])
        # Sorting a single job takes longer than all that follows.
        one = len(flags) == 1
        keys, group = (flags, np.zeros(1)) if one else np.unique(flags, axis=0, return_inverse=True)
        for number, key in enumerate(keys):
            rows, sizes, bounds = self._groups.get(key.tobytes(), (None, None, None))
            if rows is None or sizes is None or bounds is None:
                continue
            members = np.flatnonzero(group.ravel() == number)
            # In pieces: a million jobs against a thousand rows would take gigabytes.
            pieces = len(members) * len(rows) // 4_000_000 + 1
            for part in np.array_split(members, pieces) if pieces > 1 else [members]:
                square = ((scaled[part, None, :2] - sizes[None]) ** 2).sum(axis=2)
                best = square.argmin(axis=1)
                near = square[np.arange(len(part)), best] <= MAX_DISTANCE**2
                near &= np.all((log_sizes[part] >= bounds[0]) & (log_sizes[part] <= bounds[1]), axis=1)
                found[part[near]] = rows[best[near]]
        return found


def _flags(scaled: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.ascontiguousarray(scaled[:, 2:].astype(np.int8))
