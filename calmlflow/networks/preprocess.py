"""Jobs split in two, or dealt to folds."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def stratified_split(bins: ArrayLike, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split jobs in two so that each memory bin gives the same share to the second part.

    A bin with a single job keeps it in the first part; a bin with two or more gives at least one.

    Parameters
    ----------
    bins : array_like of int, shape (n,)
    share : float
        Share of the second part, between 0 and 1.
    seed : int

    Returns
    -------
    first, second : ndarray of int64
        Positions, ascending.
    """
    bins = np.asarray(bins)
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(bins), dtype=bool)
    for value in np.unique(bins):
        members = generator.permutation(np.flatnonzero(bins == value))
        taken[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def deal(bins: ArrayLike, folds: int, seed: int, stratified: bool) -> NDArray[np.int64]:
    """Deal shuffled jobs to folds like cards, shape (n,): the fold (from 0) in which each job is held out.

    Folds differ by one job at most; stratified ones also in the jobs of each memory bin.

    Parameters
    ----------
    bins : array_like of int, shape (n,)
    folds : int
    seed : int
    stratified : bool
    """
    bins = np.asarray(bins)
    order = np.random.default_rng(seed).permutation(len(bins))
    if stratified:
        order = order[np.argsort(bins[order], kind="stable")]
    fold_of_job = np.empty(len(bins), dtype=np.int64)
    fold_of_job[order] = np.arange(len(bins)) % folds
    return fold_of_job
