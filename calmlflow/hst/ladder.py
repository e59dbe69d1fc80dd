"""Find the rung of the ladder that a job needs, and the cost of a choice of rungs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError


@dataclass(frozen=True)
class Rung:
    """One rung (memory bin) of the ladder.

    ``limit_gb`` is 7/8 of the nominal size: 128 MB of every 1024 are reserved by the instance.
    """

    name: str
    limit_gb: float
    instance: str
    usd_per_hour: float
    jobs_at_once: int

    @property
    def usd_per_job_second(self) -> float:
        return self.usd_per_hour / self.jobs_at_once / 3600


LADDER = (
    Rung("2g", 1.792, "c5a.2xlarge", 0.308, 8),
    Rung("8g", 7.168, "m5a.2xlarge", 0.344, 4),
    Rung("16g", 14.336, "r5a.xlarge", 0.226, 2),
    Rung("64g", 57.344, "r5a.2xlarge", 0.452, 1),
)
BIN_NAMES = tuple(rung.name for rung in LADDER)

_LIMITS_GB = np.array([rung.limit_gb for rung in LADDER])
_PRICES = np.array([rung.usd_per_job_second for rung in LADDER])
# _CLIMB[chosen, needed]: price of one job-second on every rung from the chosen one up to the needed one.
_CLIMB = np.array([[_PRICES[chosen : max(chosen, needed) + 1].sum() for needed in range(4)] for chosen in range(4)])
# _KILLED[chosen, needed]: the part of it for runs that are killed.
_KILLED = np.array([[_PRICES[chosen : max(chosen, needed)].sum() for needed in range(4)] for chosen in range(4)])


def needed_bin(memory_gb: ArrayLike) -> NDArray[np.int64]:
    """Lowest rung (0..3) whose limit lies above the memory that a job used, GB, elementwise.

    A job that used exactly a limit needs the next rung; one beyond the last limit counts for the last rung.
    """
    memory_gb = np.asarray(memory_gb, dtype=float)
    if not np.all(np.isfinite(memory_gb) & (memory_gb >= 0)):
        raise InputError("memory must be a finite number of GB, 0 or more")
    return np.minimum(np.searchsorted(_LIMITS_GB, memory_gb, side="right"), len(LADDER) - 1)


def allocation_cost(chosen: ArrayLike, needed: ArrayLike, wallclock_s: ArrayLike) -> NDArray[np.float64]:
    """Dollars spent on each job: it runs its full wallclock on every rung from the chosen up to the needed one.

    Parameters
    ----------
    chosen, needed : array_like of int
        Memory bins, 0..3.
    wallclock_s : array_like of float
        Seconds.

    Raises
    ------
    InputError
        A memory bin is not on the ladder.
    """
    return _CLIMB[_bins(chosen), _bins(needed)] * np.asarray(wallclock_s, dtype=float)


def expected_costs(probabilities: ArrayLike, wallclock_ratio: ArrayLike, risk: float = 0.0) -> NDArray[np.float64]:
    """Expected price of each choice of rung, per second of the job's expected wallclock.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, 4)
        Of needing each rung.
    wallclock_ratio : array_like of float, shape (4,) or (n, 4)
        Expected wallclock of a job that needs each rung, over the expected wallclock whatever it needs.
    risk : float
        Dollars added for each dollar spent on a run that is killed. A larger value moves the choice up the ladder.

    Returns
    -------
    ndarray of float64, shape (n, 4)
        Dollars per second, one column per choice.
    """
    weights = np.asarray(probabilities, dtype=float) * np.asarray(wallclock_ratio, dtype=float)
    return weights @ (_CLIMB + risk * _KILLED).T


def excess_cost(chosen: ArrayLike, needed: ArrayLike, wallclock_s: ArrayLike) -> float:
    """Cost of a policy / cost of always choosing the needed rung - 1 (0.03: 3 % too much)."""
    best = allocation_cost(needed, needed, wallclock_s).sum()
    if best == 0:
        return float("nan")
    return float(allocation_cost(chosen, needed, wallclock_s).sum() / best - 1)


def _bins(values: ArrayLike) -> NDArray[np.int64]:
    bins = np.asarray(values)
    off = bins[~np.isin(bins, range(len(LADDER)))]
    if off.size:
        raise InputError(f"memory bin is {off.flat[0]}; expected a whole number, 0 to {len(LADDER) - 1}")
    return bins.astype(int)
