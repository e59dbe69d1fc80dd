"""Read jobs and make them ready for training: split, scaled, grouped by feature row."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.records import Checked
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.preprocess import deal, fit_scaling, stratified_split
from calmlflow.networks.rows import DistinctRows, TrainingRows, distinct_rows, training_rows
from calmlflow.settings import TARGETS

MIN_JOBS = 40
"""Splits of fewer jobs leave nothing to learn or to measure."""


@dataclass(frozen=True)
class TrainingData:
    """The n valid jobs of one training, and the records left out. Test jobs decide nothing: they are only scored."""

    jobs: pd.DataFrame
    quarantine: pd.DataFrame
    features: NDArray[np.float64]  # (n, 9), raw
    train: NDArray[np.int64]  # positions
    test: NDArray[np.int64]
    scaling: Scaling  # fitted on ``train``
    rows: DistinctRows  # of all n jobs
    # Datasets that were killed and have not finished since, see `calmlflow.jobs.killed.read_killed`.
    killed: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["kind"]))

    @property
    def earlier(self) -> pd.DataFrame:
        """Records of earlier runs of the same datasets."""
        return Checked(self.jobs, self.quarantine).earlier

    @property
    def split(self) -> NDArray[np.str_]:
        """``train`` or ``test`` for each job."""
        names = np.full(len(self.jobs), "train")
        names[self.test] = "test"
        return names

    def training_rows(self, network: str, members: int, seed: int) -> TrainingRows:
        """Deal the training jobs by ``seed`` to the members of a network, stratified by memory bin.

        After them, for the classifier, come the jobs that were killed for lack of memory.
        """
        features, values = self.features[self.train], self.jobs[TARGETS[network]].to_numpy()[self.train]
        # Another stream than the one that chose the test split.
        member_of_job = deal(self.jobs["mem_bin"].to_numpy()[self.train], members, seed + 1, stratified=True)
        killed = self.killed[self.killed["kind"] == "memory"]
        if network == "mem_clf" and len(killed):
            values = np.vstack([np.eye(len(LADDER))[values], bins_above(killed["memory"], values)])
            features = np.vstack([features, killed[list(FEATURES)].to_numpy(dtype=float)])
            member_of_job = np.append(member_of_job, np.arange(len(killed)) % members)
        rows = distinct_rows(features)
        return training_rows(self.scaling.apply(rows.features), rows, values, member_of_job, network == "mem_clf")

    def sizes(self) -> dict[str, int]:
        """Count jobs, records left out and distinct rows, as parameters of a run."""
        return {
            "n_jobs": len(self.jobs),
            "n_quarantined": len(self.quarantine),
            "n_killed": len(self.killed),
            "n_distinct_rows": len(self.rows.counts),
            "n_train": len(self.train),
            "n_test": len(self.test),
        }


def load_training_data(data: str, seed: int, test_size: float) -> TrainingData:
    """Read jobs from a URI of `calmlflow.jobs.stores.open.read_jobs`, and split them by ``seed``.

    Raises an InputError where data cannot be read, jobs are too few, or a value is out of range.
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
    scaling, rows = fit_scaling(features[train]), distinct_rows(features)
    killed = read_killed(data)
    # What a dataset needed is known once it has finished.
    unfinished = killed[~killed["ipst"].isin(jobs["ipst"])].reset_index(drop=True)
    return TrainingData(jobs, checked.quarantine, features, train, test, scaling, rows, unfinished)


def bins_above(memory_gb: ArrayLike, bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of the four bins, shape (n, 4), of jobs that were killed when they had reached so much memory, GB.

    Each shares itself among the rungs from the one that this much needs on, as finished jobs (their ``bins``) do; where
    the memory is not known, from the second on.
    """
    least = needed_bin(np.nan_to_num(np.asarray(memory_gb, dtype=float), nan=LADDER[0].limit_gb))
    frequencies = np.bincount(bins, minlength=len(LADDER)) + 1.0
    shares = frequencies * (np.arange(len(LADDER)) >= least[:, None])
    return shares / shares.sum(axis=1, keepdims=True)


def hold_out(data: TrainingData, pool: NDArray[np.int64], fold_of_job: NDArray[np.int64], fold: int) -> TrainingData:
    """Hold out one fold of a pool of jobs (positions) as test split; the rest of the pool is the training split."""
    train = pool[fold_of_job != fold]
    return replace(data, train=train, test=pool[fold_of_job == fold], scaling=fit_scaling(data.features[train]))
