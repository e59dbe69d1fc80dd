"""Measure the drift of new jobs from those of a training by the population stability index."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri

from calmlflow.hst.features import FEATURES

MEASURED = (*FEATURES, "wallclock", "memory", "mem_bin")
"""Columns of job records that are measured."""

BINS = 10
FEWEST_NEW = 200
"""Fewer new jobs are not judged: with so many, and many more seen, an index of ten bins is 0.045 by chance on average,
and above 0.17 once in ten thousand."""

_SURPRISE = 1e-4
_PSEUDO_COUNT = 0.5


def drift_table(seen: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Index of each column of `MEASURED`, worst first: ``psi``, and the ``chance`` that it must exceed."""
    counts = {name: binned(seen[name], new[name]) for name in MEASURED}
    found = {
        name: (stability_index(old, fresh), chance_index(len(old), len(seen), len(new)))
        for name, (old, fresh) in counts.items()
    }
    table = pd.DataFrame.from_dict(found, orient="index", columns=["psi", "chance"])
    return table.sort_values("psi", ascending=False, kind="stable")


def stability_index(seen: ArrayLike, new: ArrayLike) -> float:
    """Population stability index of two samples, given their counts in the same bins.

    The sum over bins of (q - p) ln(q / p), where p and q are the shares of the samples. Half a job is added to every
    bin, so that an empty one stays finite. 0 for equal samples; above 0.25 is usually called shifted.

    References
    ----------
    Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14
    (2020).
    """
    p, q = (
        (counts + _PSEUDO_COUNT) / (counts.sum() + _PSEUDO_COUNT * len(counts))
        for counts in (np.asarray(seen, dtype=float), np.asarray(new, dtype=float))
    )
    return float(np.sum((q - p) * np.log(q / p)))


def chance_index(bins: int, n_seen: int, n_new: int) -> float:
    """The index that two samples of one population exceed once in ten thousand.

    By chance the index is (1 / n + 1 / m) times a chi-squared number of bins - 1 degrees of freedom.
    """
    return float((1 / n_seen + 1 / n_new) * chdtri(bins - 1, _SURPRISE)) if bins > 1 else 0.0


def binned(seen: ArrayLike, new: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count two samples in bins made from the first one.

    A column of few values has a bin for each, and one for all values that were not seen; others have bins between the
    deciles of ``seen``, fewer where deciles are tied.
    """
    seen, new = np.asarray(seen, dtype=float), np.asarray(new, dtype=float)
    values = np.unique(seen)
    if len(values) <= BINS:
        unseen = ~np.isin(new, values)
        bins = len(values) + bool(unseen.any())
        places = np.where(unseen, len(values), np.searchsorted(values, new))
        return np.bincount(np.searchsorted(values, seen), minlength=bins), np.bincount(places, minlength=bins)
    # Edges are values of the sample, so that no bin is empty from the start.
    edges = np.unique(np.quantile(seen, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    # A decile that is the greatest value would leave the bin above it empty.
    edges = edges[edges < values[-1]]
    counts = [np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1) for sample in (seen, new)]
    return counts[0], counts[1]
