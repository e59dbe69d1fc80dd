"""Read jobs and make them ready for training: split, scaled, grouped by feature row."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.preprocess import deal, fit_scaling, stratified_split
from calmlflow.networks.rows import DistinctRows, TrainingRows, distinct_rows, training_rows
from calmlflow.settings import TARGETS

MIN_JOBS = 40
"""Splits of fewer jobs leave nothing to learn or to measure."""


@dataclass(frozen=True)
class TrainingData:
    """Jobs of one training.

    Attributes
    ----------
    jobs : DataFrame of n jobs
        Valid records.
    quarantine : DataFrame
        Records left out, with a column ``reason``.
    features : ndarray of float64, shape (n, 9)
        Raw.
    train, test : ndarray of int64
        Positions. Test jobs decide nothing: they are only scored.
    scaling : Scaling
        Fitted on ``train``.
    rows : DistinctRows
        Of all n jobs.
    """

    jobs: pd.DataFrame
    quarantine: pd.DataFrame
    features: NDArray[np.float64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    scaling: Scaling
    rows: DistinctRows

    @property
    def split(self) -> NDArray[np.str_]:
        """``train`` or ``test`` for each job."""
        names = np.full(len(self.jobs), "train")
        names[self.test] = "test"
        return names

    def training_rows(self, network: str, members: int, seed: int) -> TrainingRows:
        """The training jobs, dealt by ``seed`` to the members of a network, stratified by memory bin."""
        rows = distinct_rows(self.features[self.train])
        # Another stream than the one that chose the test split.
        member_of_job = deal(self.jobs["mem_bin"].to_numpy()[self.train], members, seed + 1, stratified=True)
        values = self.jobs[TARGETS[network]].to_numpy()[self.train]
        return training_rows(self.scaling.apply(rows.features), rows, values, member_of_job, network == "mem_clf")

    def sizes(self) -> dict[str, int]:
        """Counts of jobs, records left out and distinct rows, as parameters of a run."""
        return {
            "n_jobs": len(self.jobs),
            "n_quarantined": len(self.quarantine),
            "n_distinct_rows": len(self.rows.counts),
            "n_train": len(self.train),
            "n_test": len(self.test),
        }


def load_training_data(data: str, seed: int, test_size: float) -> TrainingData:
    """Read jobs and make them ready.

    Parameters
    ----------
    data : str
        URI of `calmlflow.jobs.stores.open.read_jobs`.
    seed : int
        Of the synthetic sample and of the splits.
    test_size : float
        Share of the test split, above 0 and at most 0.5.

    Raises
    ------
    InputError
        Data that cannot be read, too few jobs, or a test size out of range.
    """
    if not 0 < test_size <= 0.5:
        raise InputError(f"test_size is {test_size:g}; expected a share above 0 and at most 0.5")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected a whole number, 0 or more")
    checked = read_jobs(data, seed)
    jobs = checked.valid
    if len(jobs) < MIN_JOBS:
        raise InputError(f"{data} holds {len(jobs)} valid jobs; expected {MIN_JOBS} at least to train on")
    features = jobs[list(FEATURES)].to_numpy(dtype=float)
    train, test = stratified_split(jobs["mem_bin"].to_numpy(), test_size, seed)
    return TrainingData(
        jobs=jobs,
        quarantine=checked.quarantine,
        features=features,
        train=train,
        test=test,
        scaling=fit_scaling(features[train]),
        rows=distinct_rows(features),
    )


def hold_out(data: TrainingData, pool: NDArray[np.int64], fold_of_job: NDArray[np.int64], fold: int) -> TrainingData:
    """The same jobs with one fold of a pool as test split and the rest of the pool as training split.

    ``pool`` are positions, shape (p,), of the jobs that take part; ``fold_of_job``, shape (p,), is what
    `calmlflow.networks.preprocess.deal` gave for them. No other job is trained on or scored.
    """
    train = pool[fold_of_job != fold]
    return replace(data, train=train, test=pool[fold_of_job == fold], scaling=fit_scaling(data.features[train]))
