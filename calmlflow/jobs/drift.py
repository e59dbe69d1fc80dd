"""Measure the drift of new jobs from those of a training by the population stability index."""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.dataset import programmes
from calmlflow.hst.features import FEATURES

TARGETS = ("wallclock", "memory")
MEASURED = (*FEATURES, "row", *TARGETS)
"""What is measured: the features; whether other programmes had the row; and the targets given the row, as
ln(actual) - mean ln(actual) of the other programmes' jobs of the row. The memory bin follows from the memory."""

BINS = 10
FEWEST_NEW = 200
"""Fewer new jobs are not judged: they are of a dozen programmes, which hardly any shift tells from another dozen."""

_DRAWS = 500
_FALSE_ALARMS = 0.01
_FEWEST_KNOWN = 50
_PSEUDO_COUNT = 0.5


def drift_table(seen: pd.DataFrame, new: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Index of each of `MEASURED`, worst first: ``psi``, and the ``chance`` that it must exceed.

    Jobs of one programme are alike, so a new month differs from the years before by its programmes alone. ``chance`` is
    what programmes of one population do: seen and new jobs are both drawn anew from the programmes seen, 500 times, the
    new ones with as many jobs of each programme. In one draw of a hundred, any of the indices exceeds its chance.

    A target is left out where fewer than 50 new jobs have a row that other programmes had.
    """
    values = [_measured(jobs, seen) for jobs in (seen, new)]
    names = [name for name in MEASURED if np.isfinite(values[1][name]).sum() >= _FEWEST_KNOWN]
    binned = [bin_places(values[0][name], values[1][name]) for name in names]
    starts = np.cumsum([0, *(n_bins for *_, n_bins in binned)])
    # Bins of all columns side by side; what has no value is in a last one that is dropped.
    old, fresh = (
        np.column_stack(
            [
                np.where(found[side] < 0, starts[-1], found[side] + start)
                for found, start in zip(binned, starts, strict=False)
            ]
        )
        for side in (0, 1)
    )

    def indices(seen_counts: NDArray, new_counts: NDArray) -> NDArray[np.float64]:
        parts = [slice(start, end) for start, end in pairwise(starts)]
        return np.column_stack([stability_index(seen_counts[:, part], new_counts[:, part]) for part in parts])

    def counts(places: NDArray) -> NDArray[np.int64]:
        return np.bincount(places.ravel(), minlength=starts[-1] + 1)

    drawn = _draws(old, programmes(seen["ipst"]), programmes(new["ipst"]), int(starts[-1]) + 1, seed)
    # Roots of indices are alike in their distribution, those of two bins and those of ten.
    by_chance = np.sqrt(indices(*drawn))
    mean, sd = by_chance.mean(axis=0), np.maximum(by_chance.std(axis=0), np.finfo(float).tiny)
    chance = (mean + sd * np.quantile(((by_chance - mean) / sd).max(axis=1), 1 - _FALSE_ALARMS)) ** 2
    psi = indices(counts(old)[None], counts(fresh)[None])[0]
    table = pd.DataFrame({"psi": psi, "chance": chance}, index=names)
    return table.sort_values("psi", ascending=False, kind="stable")


def stability_index(seen: ArrayLike, new: ArrayLike) -> NDArray[np.float64]:
    """Population stability index of two samples, given their counts in the same bins, shape (..., bins).

    The sum over bins of (q - p) ln(q / p), where p and q are the shares of the samples. Half a job is added to every
    bin, so that an empty one stays finite. 0 for equal samples; above 0.25 is usually called shifted.

    References
    ----------
    Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk Model Validation 14
    (2020).
    """
    counts = (np.asarray(sample, dtype=float) + _PSEUDO_COUNT for sample in (seen, new))
    p, q = (sample / sample.sum(axis=-1, keepdims=True) for sample in counts)
    return np.sum((q - p) * np.log(q / p), axis=-1)


def bin_places(seen: ArrayLike, new: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Bins of two samples, made from the first one, and how many there are; -1 where a value is NaN.

    A column of few values has a bin for each, and one for all values that were not seen; others have bins between the
    deciles of ``seen``, fewer where deciles are tied.
    """
    samples = [np.asarray(sample, dtype=float) for sample in (seen, new)]
    known = samples[0][~np.isnan(samples[0])]
    values = np.unique(known)
    if len(values) <= BINS:
        places = [np.where(np.isin(sample, values), np.searchsorted(values, sample), len(values)) for sample in samples]
        n_bins = len(values) + bool(np.any((places[1] == len(values)) & ~np.isnan(samples[1])))
    else:
        # Edges are values of the sample, so that no bin is empty from the start.
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf"))
        # A decile that is the greatest value would leave the bin above it empty.
        edges = edges[edges < values[-1]]
        places, n_bins = [np.searchsorted(edges, sample) for sample in samples], len(edges) + 1
    one, other = (np.where(np.isnan(sample), -1, place) for sample, place in zip(samples, places, strict=True))
    return one, other, n_bins


def _measured(jobs: pd.DataFrame, seen: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Values of `MEASURED` for each job; NaN for targets where no other programme had the row."""
    found = {name: jobs[name].to_numpy(dtype=float) for name in FEATURES}
    both = pd.concat([jobs[[*FEATURES]], seen[[*FEATURES]]])
    row = both.groupby([*FEATURES], sort=False).ngroup().to_numpy()
    names = np.unique(programmes([*jobs["ipst"], *seen["ipst"]]), return_inverse=True)[1]
    cell = pd.factorize(row * (names.max() + 1) + names)[0]
    n = len(jobs)

    def others(values: NDArray) -> NDArray[np.float64]:
        """Sums over the seen jobs of the row, without those of the job's own programme."""
        of_row, of_cell = (np.bincount(of[n:], values, of.max() + 1) for of in (row, cell))
        return of_row[row[:n]] - of_cell[cell[:n]]

    counts = np.rint(others(np.ones(len(seen))))
    found["row"] = (counts > 0).astype(float)
    for target in TARGETS:
        means = others(np.log(seen[target].to_numpy(dtype=float))) / np.where(counts > 0, counts, np.nan)
        found[target] = np.log(jobs[target].to_numpy(dtype=float)) - means
    return found


def _draws(
    places: NDArray[np.int64], seen: NDArray[np.str_], new: NDArray[np.str_], n_bins: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts in all bins of seen and of new jobs that are drawn from the programmes seen, each of shape (500, bins).

    ``places`` holds the bins of the seen jobs, a column for each index; ``seen`` and ``new`` are programmes of jobs.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(seen, kind="stable")
    _, first, sizes = np.unique(seen[order], return_index=True, return_counts=True)
    places, n = places[order], len(sizes)
    of_job = np.repeat(np.arange(n), sizes)
    cells = (of_job[:, None] * n_bins + places).ravel()
    by_programme = np.bincount(cells, minlength=n * n_bins).reshape(n, n_bins)
    wanted = np.unique(new, return_counts=True)[1]
    old, fresh = [], []
    for _ in range(_DRAWS):
        old.append(np.bincount(generator.integers(n, size=n), minlength=n) @ by_programme)
        # By a random job, so that a programme is drawn the likelier the more of the jobs are its.
        picked = np.repeat(of_job[generator.integers(len(of_job), size=len(wanted))], wanted)
        jobs = first[picked] + generator.integers(sizes[picked])
        fresh.append(np.bincount(places[jobs].ravel(), minlength=n_bins))
    return np.stack(old), np.stack(fresh)
