"""Read jobs and make them ready for training: split, scaled, grouped by feature row."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.console import say
from calmlflow.errors import InputError
from calmlflow.hst.dataset import programmes
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.hst.scaling import Scaling
from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.records import Checked
from calmlflow.jobs.stores.base import KILLED, conform
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.networks.preprocess import SPLITS, Split, deal, fit_scaling, parts_of_jobs
from calmlflow.networks.rows import DistinctRows, TrainingRows, distinct_rows, training_rows
from calmlflow.settings import TARGETS

MIN_JOBS = 40
"""Splits of fewer jobs leave nothing to learn or to measure."""

FEWEST_PROGRAMMES = 5
"""In each part of a split by programme: scores of fewer are those of single programmes."""


@dataclass(frozen=True)
class TrainingData:
    """The n valid jobs of one training, and the records left out. Test jobs decide nothing: they are only scored."""

    jobs: pd.DataFrame
    quarantine: pd.DataFrame
    train: NDArray[np.int64]  # positions
    test: NDArray[np.int64]
    scaling: Scaling  # fitted on ``train``
    rows: DistinctRows  # of all n jobs
    split: Split  # what the test jobs were held out by
    # Datasets that were killed and have not finished since, see `calmlflow.jobs.killed.read_killed`.
    killed: pd.DataFrame = field(default_factory=lambda: conform(pd.DataFrame(), KILLED))

    @property
    def features(self) -> NDArray[np.float64]:
        """Raw features, shape (n, 9), made anew each time."""
        return self.rows.features[self.rows.row_of_job]

    @property
    def earlier(self) -> pd.DataFrame:
        """Records of earlier runs of the same datasets that may be known when the test jobs are answered."""
        return self._known(Checked(self.jobs, self.quarantine).earlier)

    @property
    def known_killed(self) -> pd.DataFrame:
        """Those of ``killed`` that may be known when the test jobs are answered."""
        return self._known(self.killed)

    def _known(self, records: pd.DataFrame) -> pd.DataFrame:
        if self.split == "programme":
            held_out = np.delete(self.jobs["ipst"].to_numpy(), self.train)
            return records[~np.isin(programmes(records["ipst"]), programmes(held_out))]
        newest = self.jobs["timestamp"].iloc[self.train].max()
        return records[records["timestamp"] <= newest] if self.split == "time" else records

    @property
    def part_of_job(self) -> NDArray[np.str_]:
        """``train`` or ``test`` for each job."""
        names = np.full(len(self.jobs), "train")
        names[self.test] = "test"
        return names

    def training_rows(self, network: str, members: int, seed: int) -> TrainingRows:
        """Deal the training jobs by ``seed`` to the members of a network, stratified by memory bin.

        After them, for the classifier, come the jobs that were killed for lack of memory.
        """
        features = self.rows.features[self.rows.row_of_job[self.train]]
        values = self.jobs[TARGETS[network]].to_numpy()[self.train]
        member_of_job = deal(self.jobs["mem_bin"].to_numpy()[self.train], members, seed + 1)
        killed = self.known_killed
        killed = killed[killed["kind"] == "memory"]
        if network == "mem_clf" and len(killed):
            values = np.vstack([np.eye(len(LADDER))[values], bins_above(killed["memory"], values)])
            features = np.vstack([features, killed[list(FEATURES)].to_numpy(dtype=float)])
            member_of_job = np.append(member_of_job, np.arange(len(killed)) % members)
        rows = distinct_rows(features)
        return training_rows(self.scaling.apply(rows.features), rows, values, member_of_job, network == "mem_clf")

    def sizes(self) -> dict[str, int]:
        """Count jobs, records left out, distinct rows and programmes, as parameters of a run."""
        return {
            "n_jobs": len(self.jobs),
            "n_quarantined": len(self.quarantine),
            "n_killed": len(self.killed),
            "n_distinct_rows": len(self.rows.counts),
            "n_train": len(self.train),
            "n_test": len(self.test),
            "n_train_programmes": self.jobs["ipst"].iloc[self.train].str[:4].nunique(),
            "n_test_programmes": self.jobs["ipst"].iloc[self.test].str[:4].nunique(),
        }


def load_training_data(data: str, seed: int, test_size: float | None, split: str = "programme") -> TrainingData:
    """Read jobs from a URI of `calmlflow.jobs.stores.open.read_jobs`, and hold out a share of them as test split.

    Without a ``test_size`` all are training jobs. For ``split`` see `parts_of_jobs`. Raises an InputError where data
    cannot be read, jobs or programmes are too few, or a value is out of range.
    """
    if test_size is not None and not 0 < test_size <= 0.5:
        raise InputError(f"test_size is {test_size:g}; expected a share above 0 and at most 0.5")
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; expected {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected a whole number, 0 or more")
    checked = read_jobs(data, seed)
    jobs = checked.valid
    if checked.mended:
        say(f"mem_bin of {checked.mended:,} records is not the bin that their memory needs: it was taken from memory")
    if len(jobs) < MIN_JOBS:
        raise InputError(f"{data} holds {len(jobs)} valid jobs; expected {MIN_JOBS} at least to train on")
    is_test = np.zeros(len(jobs), dtype=bool)
    if test_size is not None:
        cut = 1 - test_size if split == "time" else test_size
        part = parts_of_jobs(jobs["ipst"], jobs["timestamp"], split, seed, [cut])
        is_test = part == (split == "time")
        _check_parts(jobs["ipst"], is_test, split, f"{data}, test_size {test_size:g} and seed {seed}")
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    rows = distinct_rows(jobs[list(FEATURES)])
    scaling = fit_scaling(rows.features[:, :2][rows.row_of_job[train]])
    killed = read_killed(data)
    # What a dataset needed is known once it has finished.
    # The small set first: pandas takes the set that it looks in apart, value by value.
    finished = jobs["ipst"][jobs["ipst"].isin(killed["ipst"])]
    unfinished = killed[~killed["ipst"].isin(finished)].reset_index(drop=True)
    return TrainingData(jobs, checked.quarantine, train, test, scaling, rows, split, unfinished)


def bins_above(memory_gb: ArrayLike, bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares of the bins, shape (n, rungs), of jobs that were killed when they had reached so much memory, GB.

    Each shares itself among the rungs from the one that this much needs on, as finished jobs (their ``bins``) do; where
    the memory is not known, from the second on.
    """
    least = needed_bin(np.nan_to_num(np.asarray(memory_gb, dtype=float), nan=LADDER.rungs[0].limit_gb))
    frequencies = np.bincount(bins, minlength=len(LADDER)) + 1.0
    shares = frequencies * (np.arange(len(LADDER)) >= least[:, None])
    return shares / shares.sum(axis=1, keepdims=True)


def deal_folds(data: TrainingData, pool: NDArray[np.int64], folds: int, seed: int, stream: int = 0) -> NDArray:
    """Deal a pool of jobs (positions) to folds as the split says; returns the fold (from 0) of each, shape (n,).

    By time, folds are consecutive, and the first one has nothing earlier to be trained on: it is never held out. An
    InputError says where a fold would hold too little to be scored.
    """
    jobs = data.jobs.iloc[pool]
    cuts = [fold / folds for fold in range(1, folds)]
    fold_of_job = parts_of_jobs(jobs["ipst"], jobs["timestamp"], data.split, seed, cuts, stream)
    for fold in held_out_folds(data.split, folds):
        _check_parts(jobs["ipst"], fold_of_job == fold, data.split, f"{folds} folds and seed {seed}")
    return fold_of_job


def held_out_folds(split: Split, folds: int) -> range:
    """Folds that are held out once each."""
    return range(1 if split == "time" else 0, folds)


def hold_out(data: TrainingData, pool: NDArray[np.int64], fold_of_job: NDArray[np.int64], fold: int) -> TrainingData:
    """Hold out one fold of a pool of jobs (positions) as test split; by time, train on earlier ones alone."""
    train = pool[fold_of_job < fold if data.split == "time" else fold_of_job != fold]
    scaling = fit_scaling(data.rows.features[:, :2][data.rows.row_of_job[train]])
    return replace(data, train=train, test=pool[fold_of_job == fold], scaling=scaling)


def _check_parts(names: pd.Series, is_test: NDArray[np.bool_], split: Split, request: str) -> None:
    """Raise an InputError where a part has no job or, by programme, hardly any programme."""
    fewest, what = (FEWEST_PROGRAMMES, "programmes") if split == "programme" else (1, "jobs")
    train, test = (
        names[part].str[:4].nunique() if split == "programme" else part.sum() for part in (~is_test, is_test)
    )
    if min(train, test) < fewest:
        raise InputError(
            f"split={split} of {request} trains on {train} {what} and holds out {test}; expected {fewest} at least of "
            f"each{'; split=job needs jobs alone' if split == 'programme' else ''}"
        )
