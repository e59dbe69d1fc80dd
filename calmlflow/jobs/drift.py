"""How far new jobs have moved away from those that a training saw: the population stability index."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri

from calmlflow.hst.features import FEATURES

MEASURED = (*FEATURES, "wallclock", "memory", "mem_bin")
"""Columns of job records that are looked at. Bins are quantiles, so that logarithms would change nothing."""

BINS = 10
FEWEST_NEW = 200
"""Fewer new jobs say nothing of a population: with so many, and many more seen, an index of ten bins is 0.045 by chance
on the average, and above 0.17 once in ten thousand."""

_SURPRISE = 1e-4
_PSEUDO_COUNT = 0.5


def drift_table(seen: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The index of each column of `MEASURED`, worst first.

    Parameters
    ----------
    seen, new : DataFrame of n and m job records
        At least one each.

    Returns
    -------
    DataFrame
        Index: name of the column. ``psi``: see `stability_index`; ``chance``: see `chance_index`.
    """
    counts = {name: binned(seen[name], new[name]) for name in MEASURED}
    found = {
        name: (stability_index(old, fresh), chance_index(len(old), len(seen), len(new)))
        for name, (old, fresh) in counts.items()
    }
    table = pd.DataFrame.from_dict(found, orient="index", columns=["psi", "chance"])
    return table.sort_values("psi", ascending=False, kind="stable")


def stability_index(seen: ArrayLike, new: ArrayLike) -> float:
    """Population stability index of two samples, by how many of each lie in every bin.

    The sum over bins of (q - p) ln(q / p), where p and q are the shares of the samples. Half a job is added to every
    bin, so that an empty one is no infinite surprise. 0 for equal samples; under 0.1 is usually called stable, above
    0.25 shifted.

    Parameters
    ----------
    seen, new : array_like of int, shape (bins,)

    References
    ----------
    Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14
    (2020).
    """
    p, q = (_shares(np.asarray(counts, dtype=float)) for counts in (seen, new))
    return float(np.sum((q - p) * np.log(q / p)))


def chance_index(bins: int, n_seen: int, n_new: int) -> float:
    """The index that two samples of one population exceed once in ten thousand.

    By chance it is (1 / n + 1 / m) times a chi-squared number of bins - 1 degrees of freedom, and so on the average
    (bins - 1) (1 / n + 1 / m).
    """
    return float((1 / n_seen + 1 / n_new) * chdtri(bins - 1, _SURPRISE)) if bins > 1 else 0.0


def binned(seen: ArrayLike, new: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count two samples in bins that the first one makes.

    A number that takes few values has a bin for each, and one for all values that were not seen, where there are any.
    Others have bins between the deciles of ``seen``, fewer where deciles are tied.

    Parameters
    ----------
    seen, new : array_like, shapes (n,) and (m,)

    Returns
    -------
    tuple of ndarray of int64, shape (bins,)
    """
    seen, new = np.asarray(seen, dtype=float), np.asarray(new, dtype=float)
    values = np.unique(seen)
    if len(values) <= BINS:
        unseen = ~np.isin(new, values)
        bins = len(values) + bool(unseen.any())
        places = np.where(unseen, len(values), np.searchsorted(values, new))
        return np.bincount(np.searchsorted(values, seen), minlength=bins), np.bincount(places, minlength=bins)
    # Values themselves, not what lies between two of them, so that no bin is empty from the start.
    edges = np.unique(np.quantile(seen, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    # Nothing seen lies above a decile that is the greatest value.
    edges = edges[edges < values[-1]]
    counts = [np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1) for sample in (seen, new)]
    return counts[0], counts[1]


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return (counts + _PSEUDO_COUNT) / (counts.sum() + _PSEUDO_COUNT * len(counts))
