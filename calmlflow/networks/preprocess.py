"""Split jobs in two, deal them to folds, and fit the scaling of the two size features."""

# scikit-learn's stratified splitters refuse a bin with a single job, which the rarest bin may have; these do not.

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import PowerTransformer

from calmlflow.hst.scaling import Scaling, yeo_johnson


def stratified_split(bins: ArrayLike, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split jobs in two so that each memory bin gives the same share to the second part.

    A bin with a single job keeps it in the first part; a bin with two or more gives at least one. Returns the
    positions of both parts, ascending.
    """
    bins = np.asarray(bins)
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(bins), dtype=bool)
    for value in np.unique(bins):
        members = generator.permutation(np.flatnonzero(bins == value))
        taken[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def deal(bins: ArrayLike, folds: int, seed: int, stratified: bool) -> NDArray[np.int64]:
    """Deal shuffled jobs to folds like cards; returns the fold (from 0) that holds out each job, shape (n,).

    Folds differ by one job at most; stratified ones also in the jobs of each memory bin.
    """
    bins = np.asarray(bins)
    order = np.random.default_rng(seed).permutation(len(bins))
    if stratified:
        order = order[np.argsort(bins[order], kind="stable")]
    fold_of_job = np.empty(len(bins), dtype=np.int64)
    fold_of_job[order] = np.arange(len(bins)) % folds
    return fold_of_job


def fit_scaling(features: ArrayLike) -> Scaling:
    """Fit Yeo-Johnson power, mean and deviation of n_files and total_mb to raw features of jobs, shape (n, 9)."""
    sizes = np.asarray(features, dtype=float)[:, :2]
    lambdas, mus, sigmas = [], [], []
    for column in sizes.T:
        # A column with one value has no power to fit; any finite one does.
        varies = np.ptp(column) > 0
        lam = float(PowerTransformer(standardize=False).fit(column[:, None]).lambdas_[0]) if varies else 1.0
        powered = yeo_johnson(column, lam)
        lambdas.append(lam)
        mus.append(float(powered.mean()))
        sigmas.append(float(powered.std()) or 1.0)
    return Scaling((lambdas[0], lambdas[1]), (mus[0], mus[1]), (sigmas[0], sigmas[1]))
