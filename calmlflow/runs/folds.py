"""Train and score networks fold by fold, in processes that read the jobs for themselves."""

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.jobs.records import digest_of
from calmlflow.networks.backend import tf
from calmlflow.networks.config import TrainingConfig
from calmlflow.runs.data import TrainingData, deal_folds, hold_out, load_training_data
from calmlflow.runs.executor import Failure, Run, Task, name_of
from calmlflow.runs.fit import fit_network
from calmlflow.storage.files import replacing


@dataclass(frozen=True)
class Source:
    """Where jobs are read from, and how their training split is dealt to folds."""

    data: str
    seed: int
    test_size: float | None
    split: str
    folds: int
    stream: int = 0


@dataclass(frozen=True)
class Dealt:
    """The jobs of a source, the fold (from 0) of each training job, and a digest of the jobs."""

    source: Source
    data: TrainingData
    fold_of_job: NDArray[np.int64]
    digest: str

    def task(self, network: str, config: TrainingConfig, fold: int, seed: int) -> Task:
        """What a worker needs to train a network and to score it on a fold."""
        jobs = {"source": asdict(self.source), "digest": self.digest}
        return {"jobs": jobs, "network": network, "config": asdict(config), "fold": fold, "seed": seed}


@dataclass(frozen=True)
class Fold:
    """One network that was trained on the other folds, and scored on this one."""

    predictions: dict[str, NDArray]  # for each distinct row of all jobs
    history: dict[str, NDArray]
    scores: dict[str, float]
    train_scores: tuple[float, ...]
    fit_seconds: float

    def write(self, path: Path) -> None:
        figures = json.dumps([self.scores, self.train_scores, self.fit_seconds])
        arrays = {f"predictions.{name}": column for name, column in self.predictions.items()}
        arrays |= {f"history.{name}": column for name, column in self.history.items()}
        with replacing(path, "wb") as file:
            np.savez(file, figures=np.array(figures), allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Fold | None":
        """None where there is none, or a damaged one."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                scores, train_scores, fit_seconds = json.loads(str(kept["figures"]))
                predictions, history = (
                    {name.removeprefix(kind): kept[name] for name in kept if name.startswith(kind)}
                    for kind in ("predictions.", "history.")
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        return cls(predictions, history, scores, tuple(train_scores), fit_seconds)


def deal(source: Source) -> Dealt:
    """Read jobs and deal the training jobs to folds; an InputError where they are too few, see `deal_folds`."""
    if Path(source.data).exists():
        # Workers have working folders of their own.
        source = replace(source, data=str(Path(source.data).resolve()))
    data = load_training_data(source.data, source.seed, source.test_size, source.split)
    if not 2 <= source.folds <= len(data.train):
        raise InputError(f"folds is {source.folds}; expected 2 to {len(data.train)}, as many as valid jobs")
    fold_of_job = deal_folds(data, data.train, source.folds, source.seed, source.stream)
    digest = digest_of(pd.concat([data.jobs, data.killed], ignore_index=True))
    return Dealt(source, data, fold_of_job, digest)


def run_fold(task: Task) -> Fold:
    """Train and score one network on one fold, from nothing but the task: no fold depends on another."""
    dealt = _recalled(Source(**task["jobs"]["source"]), task["jobs"]["digest"])
    # Processes are as many as the cores, and numbers must not depend on how many there are.
    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = hold_out(dealt.data, dealt.data.train, dealt.fold_of_job, task["fold"])
    with TemporaryDirectory() as folder:
        fit = fit_network(task["network"], data, TrainingConfig(**task["config"]), task["seed"], Path(folder))
    _, job_of_row = np.unique(data.rows.row_of_job, return_index=True)
    predictions = {name: column[job_of_row] for name, column in fit.predictions.items()}
    return Fold(predictions, dict(fit.results.history or {}), fit.scores, fit.train_scores, fit.fit_seconds)


def score_folds(
    run: Run, dealt: Dealt, tasks: Sequence[Task], kept: Path
) -> Generator[tuple[int, Fold | Failure], None, None]:
    """Run tasks of `Dealt.task`; gives the position of each as it ends, with its fold or the reason of its failure.

    Folds are kept in a folder until `forget`, so that a command that is interrupted goes on.
    """
    missing = []
    for number, task in enumerate(tasks):
        if fold := Fold.read(_place(kept, task)):
            yield number, fold
        else:
            missing.append(number)
    if not missing:
        return
    for position, outcome in run(run_fold, [tasks[number] for number in missing], partial(_remember, dealt)):
        if isinstance(outcome, Fold):
            outcome.write(_place(kept, tasks[missing[position]]))
        yield missing[position], outcome


def forget(tasks: Sequence[Task], kept: Path) -> None:
    """Remove the folds of tasks, and their folder if nothing else is in it."""
    for task in tasks:
        # Half-written ones too, that a kill left.
        for path in kept.glob(f"*{name_of(task)}*"):
            path.unlink(missing_ok=True)
    if kept.is_dir() and not any(kept.iterdir()):
        kept.rmdir()


def _place(kept: Path, task: Task) -> Path:
    return kept / f"{name_of(task)}.npz"


# -- In a worker ------------------------------------------------------------------------------------------------------

_last: list[Dealt] = []


def _remember(dealt: Dealt) -> None:
    """Keep jobs for the tasks of this process."""
    _last[:] = [dealt]


def _recalled(source: Source, digest: str) -> Dealt:
    if not (_last and (_last[0].source, _last[0].digest) == (source, digest)):
        dealt = deal(source)
        if dealt.digest != digest:
            raise InputError(f"{source.data} holds other jobs for a worker; expected the same for all, and no changes")
        _remember(dealt)
    return _last[0]
