"""Fit the three networks as `main` does, and see how the time grows with the jobs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calmlflow.console import progress
from calmlflow.networks.config import TrainingConfig, read_config
from calmlflow.networks.preprocess import fit_scaling
from calmlflow.networks.rows import distinct_rows
from calmlflow.runs.data import TrainingData
from calmlflow.runs.fit import Fit as NetworkFit
from calmlflow.runs.fit import fit_network
from calmlflow.runs.train import TrainingRequest
from calmlflow.settings import NETWORKS

FACTORS = (1, 3, 10)


@dataclass(frozen=True)
class Fit:
    """One fit of the three networks.

    Attributes
    ----------
    factor, train_jobs, distinct_rows : int
        Of the training split.
    epochs : int
        Until training stopped, of the three networks together; without the refit's, which are fixed.
    fit_seconds : float
        Scaling, grouping, compiling and training.
    total_seconds : float
        The same with kill times, export, the check of ONNX against Keras, predictions, scores and files.
    """

    factor: int
    train_jobs: int
    distinct_rows: int
    epochs: int
    fit_seconds: float
    total_seconds: float


def fit_networks(
    data: TrainingData, request: TrainingRequest, models: Path, factor: int = 1
) -> tuple[dict[str, NetworkFit], Fit]:
    """Fit the three networks to ``factor`` times the training jobs; their files go into the folder ``models``."""
    data = enlarged(data, factor, request.seed)
    configs = read_config(request.config)
    started, epochs = time.perf_counter(), 0
    fit_seconds = prepare_seconds(data, configs, request.seed)
    fits = {}
    for network in NETWORKS:
        with progress(f"{network}, {len(data.train):,} jobs", "epochs") as update:
            fits[network] = fit_network(
                network, data, configs[network], request.seed, models, request.risk,
                lambda done, total, loss: update(done, total),
            )  # fmt: skip
        fit_seconds += fits[network].fit_seconds
        epochs += len((fits[network].results.history or {"loss": ()})["loss"])
    rows = len(distinct_rows(data.features[data.train]).counts)
    return fits, Fit(factor, len(data.train), rows, epochs, fit_seconds, time.perf_counter() - started)


def enlarged(data: TrainingData, factor: int, seed: int) -> TrainingData:
    """The same jobs with a training split of ``factor`` times the size, drawn from it with replacement."""
    if factor == 1:
        return data
    drawn = np.random.default_rng(seed).choice(data.train, factor * len(data.train))
    return replace(data, train=drawn)


def prepare_seconds(data: TrainingData, configs: Mapping[str, TrainingConfig], seed: int) -> float:
    """Seconds of what grows with the jobs: the scaling's fit, and the grouping that each network's fit begins with."""
    started = time.perf_counter()
    fit_scaling(data.features[data.train])
    for network in NETWORKS:
        data.training_rows(network, configs[network].members, seed)
    return time.perf_counter() - started
