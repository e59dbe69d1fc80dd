"""Many jobs, few different ones: group jobs by their feature row.

Two jobs with equal features get equal predictions, so a loss that is a mean over jobs equals the loss over distinct
rows, weighted by how many jobs share each, with the jobs' class frequencies as soft labels (cross-entropy) or their
mean as target (squared error, up to a constant that no network can lower). Training then costs what the number of
*different* jobs costs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.ladder import LADDER


@dataclass(frozen=True)
class DistinctRows:
    """The distinct feature rows of n jobs.

    Attributes
    ----------
    features : ndarray of float64, shape (m, 9)
    counts : ndarray of int64, shape (m,)
        How many jobs share each row.
    row_of_job : ndarray of int64, shape (n,)
        Index of each job's row.
    """

    features: NDArray[np.float64]
    counts: NDArray[np.int64]
    row_of_job: NDArray[np.int64]

    @property
    def weights(self) -> NDArray[np.float32]:
        """Share of the jobs in each row; sums to 1."""
        return (self.counts / self.counts.sum()).astype(np.float32)

    def bin_shares(self, bins: ArrayLike) -> NDArray[np.float32]:
        """Frequencies of the four bins in each row, shape (m, 4)."""
        cells = self.row_of_job * len(LADDER) + np.asarray(bins, dtype=np.int64)
        table = np.bincount(cells, minlength=len(self.counts) * len(LADDER)).reshape(-1, len(LADDER))
        return (table / self._at_least_one[:, None]).astype(np.float32)

    def means(self, values: ArrayLike) -> NDArray[np.float64]:
        """Mean of a value of the jobs in each row, shape (m,)."""
        sums = np.bincount(self.row_of_job, weights=np.asarray(values, dtype=float), minlength=len(self.counts))
        return sums / self._at_least_one

    def spread(self, values: ArrayLike) -> float:
        """Mean squared distance of the jobs' values from their row's mean: the error no network can go below."""
        values = np.asarray(values, dtype=float)
        return float(np.mean((values - self.means(values)[self.row_of_job]) ** 2))

    def among(self, jobs: NDArray[np.bool_]) -> "DistinctRows":
        """The same m rows for some of the jobs, shape (n,).

        A row that none of them shares stays, with a count, frequencies and a mean of 0.
        """
        row_of_job = self.row_of_job[jobs]
        return DistinctRows(self.features, np.bincount(row_of_job, minlength=len(self.counts)), row_of_job)

    @property
    def _at_least_one(self) -> NDArray[np.int64]:
        return np.maximum(self.counts, 1)


def distinct_rows(features: ArrayLike) -> DistinctRows:
    """Group jobs by equal feature rows.

    Parameters
    ----------
    features : array_like, shape (n, 9)
        n >= 1.
    """
    features = np.asarray(features, dtype=float)
    # Sorting by columns is ten times quicker than numpy.unique, which sorts rows as blocks of bytes.
    order = np.lexsort(features.T[::-1])
    ascending = features[order]
    is_new = np.concatenate([[True], np.any(ascending[1:] != ascending[:-1], axis=1)])
    row_of_job = np.empty(len(features), dtype=np.int64)
    row_of_job[order] = np.cumsum(is_new) - 1
    return DistinctRows(ascending[is_new], np.bincount(row_of_job), row_of_job)
