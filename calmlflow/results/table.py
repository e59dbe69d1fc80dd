"""Build and read the training set with the networks' predictions (``latest.csv``), or with answers to its jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.checks import memory_bins
from calmlflow.results.files import read_csv
from calmlflow.results.scores import PREDICTED

PREDICTIONS = tuple(PREDICTED.values())
PREDICTION_COLUMNS = (*PREDICTIONS, "wc_mean", "wc_std", "wc_err", "split")

PROBABILITIES = [f"prob_{name}" for name in BIN_NAMES]
COUNTS = [f"jobs_{level}" for level in ("row", "programme", "visit", "run")]
ANSWER_COLUMNS = (*PREDICTIONS, "kill_time", *PROBABILITIES, *COUNTS)
"""Columns of ``answers.csv``, beside ipst and split: the answer, and the finished jobs behind it at each level."""

_NEEDED = (*FEATURES, "wallclock", "memory", "mem_bin")


def training_table(jobs: pd.DataFrame, predictions: Mapping[str, ArrayLike], split: ArrayLike) -> pd.DataFrame:
    """Add predictions, wallclock statistics and the split to a table of jobs.

    With ``wall_pred`` also wc_mean, wc_std (sample standard deviation, 0 for a job alone) and wc_err (standard error)
    of the actual wallclock of the jobs that share a wallclock prediction, to the last digit: predict once per distinct
    row of features, so that jobs with the same features do. Columns of an earlier training are replaced.

    ``predictions`` holds ``bin_pred`` (memory bins, 0..3), ``mem_pred`` (GB) and ``wall_pred`` (seconds), or some of
    them; ``split`` is ``train`` or ``test`` for each job.
    """
    columns: dict[str, NDArray[Any]] = {name: np.asarray(values, dtype=float) for name, values in predictions.items()}
    for name, values in columns.items():
        if not np.all(np.isfinite(values)):
            raise InputError(f"{name} holds a value that is not finite; expected one number per job")
    if "bin_pred" in columns:
        columns["bin_pred"] = memory_bins(columns["bin_pred"], "bin_pred")
    if "wall_pred" in columns:
        groups = pd.Series(jobs["wallclock"].to_numpy(dtype=float)).groupby(columns["wall_pred"])
        std = groups.transform("std").fillna(0.0)
        columns["wc_mean"] = groups.transform("mean").to_numpy()
        columns["wc_std"] = std.to_numpy()
        columns["wc_err"] = (std / np.sqrt(groups.transform("size"))).to_numpy()
    columns["split"] = np.asarray(split)
    table = jobs.drop(columns=list(PREDICTION_COLUMNS), errors="ignore")
    return table.assign(**{name: columns[name] for name in PREDICTION_COLUMNS if name in columns})


def read_training_table(path: str | Path) -> pd.DataFrame:
    """Read ``latest.csv`` of this or an earlier training; features, targets and predictions are finite numbers."""
    return _read(Path(path), _NEEDED, PREDICTIONS)


def read_answers(path: str | Path) -> pd.DataFrame:
    """Read ``answers.csv``: ipst, split and `ANSWER_COLUMNS`."""
    return _read(Path(path), ("split", *ANSWER_COLUMNS))


def with_answers(jobs: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The training set with answers in place of the networks' predictions; jobs without an answer are left out."""
    return jobs.drop(columns=list(PREDICTION_COLUMNS), errors="ignore").merge(answers, on="ipst")


def _read(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    table = read_csv(path, ("ipst", *needed), {"ipst": str, "split": str})
    for name in (*needed, *(name for name in optional if name in table)):
        if name == "split":
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        if not np.all(np.isfinite(values)):
            raise InputError(f"{path}, column {name}, holds a value that is no finite number; expected one per job")
        table[name] = memory_bins(values, f"{path}, column {name},") if name in ("mem_bin", "bin_pred") else values
    return table
