"""Training jobs as distinct rows, dealt to the members of an ensemble: each leaves out a part of its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.networks.distinct import DistinctRows


@dataclass(frozen=True)
class RowSet:
    """What a set of jobs says of each of m distinct rows, for each of k members (1: the same for all).

    Attributes
    ----------
    targets : ndarray of float32, shape (k, m, 4) or (k, m)
        Class frequencies, or means in the target's unit.
    weights : ndarray of float32, shape (k, m)
        Share of the jobs; each member's sum to 1. A row that no job of the set shares has none.
    spread : ndarray of float32, shape (k,)
        Mean squared distance of the jobs from their row's mean (0 for the classifier); added to the squared error so
        that histories speak of jobs.
    """

    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    spread: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingRows:
    """The n training jobs of one network, as m distinct rows.

    Attributes
    ----------
    inputs : ndarray of float32, shape (m, 9)
        Scaled features.
    row_of_job, member_of_job : ndarray of int64, shape (n,)
        Each job's row, and the member that leaves it out.
    fit, validation : RowSet
        For each of k members: the jobs it learns from, and those it leaves out.
    train : RowSet
        All jobs.
    """

    inputs: NDArray[np.float32]
    row_of_job: NDArray[np.int64]
    member_of_job: NDArray[np.int64]
    fit: RowSet
    validation: RowSet
    train: RowSet


def training_rows(
    inputs: ArrayLike, rows: DistinctRows, values: ArrayLike, member_of_job: ArrayLike, is_classifier: bool
) -> TrainingRows:
    """Make jobs ready for `calmlflow.networks.training.train_network`.

    Parameters
    ----------
    inputs : array_like, shape (m, 9)
        Scaled features of ``rows``.
    rows : DistinctRows
        Of n jobs.
    values : array_like, shape (n,)
        Memory bins, GB or seconds.
    member_of_job : array_like of int, shape (n,)
        0 to k - 1, k >= 2; each occurs.
    is_classifier : bool
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
                # What a row without a job has for a target does not matter, but must have a logarithm.
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
