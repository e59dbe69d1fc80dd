"""Group jobs by their feature row, and deal the rows' jobs to the members of an ensemble."""

# Two jobs with equal features get equal predictions, so a loss that is a mean over jobs equals the loss over distinct
# rows, weighted by how many jobs share each, with the jobs' class frequencies as soft labels (cross-entropy) or their
# mean as target (squared error, up to a constant that no network can lower). Training then costs what the number of
# *different* jobs costs.

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.ladder import LADDER


@dataclass(frozen=True)
class DistinctRows:
    """The m distinct feature rows of n jobs."""

    features: NDArray[np.float64]  # (m, 9)
    counts: NDArray[np.int64]  # (m,), the jobs of each row
    row_of_job: NDArray[np.int64]  # (n,)

    @property
    def weights(self) -> NDArray[np.float32]:
        """Share of the jobs in each row; sums to 1."""
        return (self.counts / self.counts.sum()).astype(np.float32)

    def bin_shares(self, bins: ArrayLike) -> NDArray[np.float32]:
        """Frequencies of the four bins in each row, shape (m, 4), of bins (n,) or of shares of each job, (n, 4)."""
        shares = np.asarray(bins, dtype=float)
        if shares.ndim == 1:
            shares = np.eye(len(LADDER))[shares.astype(np.int64)]
        table = np.column_stack([np.bincount(self.row_of_job, column, len(self.counts)) for column in shares.T])
        return (table / np.maximum(self.counts, 1)[:, None]).astype(np.float32)

    def means(self, values: ArrayLike) -> NDArray[np.float64]:
        """Mean of a value of the jobs in each row, shape (m,)."""
        sums = np.bincount(self.row_of_job, weights=np.asarray(values, dtype=float), minlength=len(self.counts))
        return sums / np.maximum(self.counts, 1)

    def spread(self, values: ArrayLike) -> float:
        """Mean squared distance of the jobs' values from their row's mean: the error no network can go below."""
        values = np.asarray(values, dtype=float)
        return float(np.mean((values - self.means(values)[self.row_of_job]) ** 2))

    def among(self, jobs: NDArray[np.bool_]) -> "DistinctRows":
        """The same m rows for some of the n jobs; a row that none of them shares has a count, shares and mean of 0."""
        row_of_job = self.row_of_job[jobs]
        return DistinctRows(self.features, np.bincount(row_of_job, minlength=len(self.counts)), row_of_job)


def distinct_rows(features: NDArray | pd.DataFrame) -> DistinctRows:
    """Group n >= 1 jobs by equal feature rows, shape (n, 9), in ascending order."""
    table = pd.DataFrame(features)
    row_of_job = np.zeros(len(table), dtype=np.int64)
    # Numbering the few different values, column by column, is quicker than any sorting of jobs, and needs less memory.
    for _, column in table.items():
        value_of_job, values = pd.factorize(column, sort=True)
        row_of_job = pd.factorize(row_of_job * len(values) + value_of_job, sort=True)[0]
    counts = np.bincount(row_of_job)
    first = np.empty(len(counts), dtype=np.int64)
    first[row_of_job] = np.arange(len(table))
    return DistinctRows(table.iloc[first].to_numpy(dtype=float), counts, row_of_job)


@dataclass(frozen=True)
class RowSet:
    """Targets and weights of m distinct rows in a set of jobs, for each of k members (1: the same for all)."""

    targets: NDArray[np.float32]  # (k, m, 4), class frequencies, or (k, m), means in the target's unit
    weights: NDArray[np.float32]  # (k, m), shares of the jobs; each member's sum to 1
    # (k,), mean squared distance of the jobs from their row's mean; with it the squared error is that of the jobs.
    spread: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingRows:
    """The n training jobs of one network, as m distinct rows."""

    inputs: NDArray[np.float32]  # (m, 9), scaled features
    row_of_job: NDArray[np.int64]  # (n,)
    member_of_job: NDArray[np.int64]  # (n,), the member that leaves the job out
    fit: RowSet  # the jobs that each member learns from
    validation: RowSet  # the jobs that each member leaves out
    train: RowSet  # all jobs


def training_rows(
    inputs: ArrayLike, rows: DistinctRows, values: ArrayLike, member_of_job: ArrayLike, is_classifier: bool
) -> TrainingRows:
    """Make n jobs ready for training: scaled features of their rows (m, 9), and GB or seconds (n,), or needed bins.

    Bins are numbers, (n,), or shares of the four bins, (n, 4): a job that was killed for lack of memory needs one of
    the bins above. ``member_of_job``, shape (n,), holds 0 to k - 1, each at least once.
    """
    values, member_of_job = np.asarray(values), np.asarray(member_of_job)
    is_left_out = member_of_job == np.arange(member_of_job.max() + 1)[:, None]

    def row_set(is_in: NDArray[np.bool_]) -> RowSet:
        targets, weights, spread = [], [], []
        for chosen in is_in:
            part = rows.among(chosen)
            if is_classifier:
                targets.append(part.bin_shares(values[chosen]))
            else:
                # The target of a row without a job does not count, but must have a logarithm.
                targets.append(np.where(part.counts > 0, part.means(values[chosen]), 1.0))
            weights.append(part.weights)
            spread.append(0.0 if is_classifier else part.spread(values[chosen]))
        return RowSet(*(np.asarray(parts, np.float32) for parts in (targets, weights, spread)))

    return TrainingRows(
        inputs=np.asarray(inputs, np.float32),
        row_of_job=rows.row_of_job,
        member_of_job=member_of_job,
        fit=row_set(~is_left_out),
        validation=row_set(is_left_out),
        train=row_set(np.ones((1, len(values)), dtype=bool)),
    )
