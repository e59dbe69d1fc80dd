"""Fit the scaling of the two size features."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.preprocessing import PowerTransformer

from calmlflow.hst.scaling import Scaling, yeo_johnson


def fit_scaling(features: ArrayLike) -> Scaling:
    """Fit Yeo-Johnson power, mean and deviation of n_files and total_mb.

    Parameters
    ----------
    features : array_like, shape (n, 9)
        Raw features of the training split, one row per job.
    """
    sizes = np.asarray(features, dtype=float)[:, :2]
    lambdas, mus, sigmas = [], [], []
    for column in sizes.T:
        # A column with one value has no power to fit; any finite one does.
        varies = np.ptp(column) > 0
        lam = float(PowerTransformer(standardize=False).fit(column[:, None]).lambdas_[0]) if varies else 1.0
        powered = yeo_johnson(column, lam)
        sigma = float(powered.std())
        lambdas.append(lam)
        mus.append(float(powered.mean()))
        sigmas.append(sigma if sigma > 0 else 1.0)
    return Scaling((lambdas[0], lambdas[1]), (mus[0], mus[1]), (sigmas[0], sigmas[1]))
