"""Cross-validate the networks on all cores: score every job by a network that has not seen it."""

import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.backend import tf
from calmlflow.networks.config import TrainingConfig, read_config
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.files import write_results
from calmlflow.results.regression import RegressionResults
from calmlflow.runs.data import TrainingData, deal_folds, held_out_folds, hold_out, load_training_data
from calmlflow.runs.fit import ANSWERS, Fit, fit_network, network_results
from calmlflow.runs.summary import CrossvalOutcome, Spread
from calmlflow.runs.train import log_pictures
from calmlflow.settings import TARGETS, parse_networks
from calmlflow.storage.files import new_tree

Task = tuple[str, int]
"""A network and the fold (from 0) on which it is scored."""

_KILLED = "its worker process was killed"


@dataclass(frozen=True)
class CrossvalRequest:
    """Options of the entry point; see docs/reference.md."""

    data: str = "sample"
    output: str = "data"
    seed: int = 0
    folds: int = 10
    networks: str = "all"
    config: str = "default"
    workers: int = 0
    split: str = "programme"


@dataclass(frozen=True)
class Plan:
    """The jobs, their folds, and by network the hyper-parameters."""

    data: TrainingData
    fold_of_job: NDArray[np.int64]
    configs: dict[str, TrainingConfig]
    seed: int


def cross_validate(request: CrossvalRequest) -> CrossvalOutcome:
    """Cross-validate networks in one run, on all cores, with one child run per fold.

    Folds are of whole programmes, of jobs, or by time, where each is scored by what came before and the first is not
    scored. The run's artifacts are its new folder: in ``results/{target}`` the standard files, of every job predicted
    by the network that had not seen it, and ``kfold.json``. Numbers depend on the seed, and not on how many workers
    there are. A failed fold is reported and counted; a CalmlflowError is raised where every fold of a network fails.
    """
    with tracked_run("crossval") as run:
        started = time.perf_counter()
        networks = parse_networks(request.networks)
        if request.workers < 0:
            raise InputError(f"workers is {request.workers}; expected a number of processes, or 0 for one per core")
        configs = read_config(request.config)
        data = load_training_data(request.data, request.seed, None, request.split)
        if not 2 <= request.folds <= len(data.jobs):
            raise InputError(f"folds is {request.folds}; expected 2 to {len(data.jobs)}, as many as valid jobs")
        plan = Plan(data, deal_folds(data, data.train, request.folds, request.seed), configs, request.seed)
        params = {**asdict(request), **environment_params()}
        params |= {name: data.sizes()[name] for name in ("n_jobs", "n_quarantined", "n_distinct_rows")}
        for network in networks:
            params |= {f"{network}_{name}": value for name, value in asdict(configs[network]).items()}
        log_new_params(params)
        mlflow.log_input(lineage(data.jobs, request.data, "cross-validation"), context="cross-validation")

        fits: dict[str, dict[int, Fit]] = {network: {} for network in networks}
        failures: dict[str, dict[int, str]] = {network: {} for network in networks}
        tasks = [(network, fold) for fold in held_out_folds(data.split, request.folds) for network in networks]
        with (
            new_tree(Path(request.output)) as tree,
            progress("cross-validation", "folds", len(tasks)) as show,
            closing(_run_tasks(plan, tasks, request.workers or None)) as ended,
        ):
            show(0)
            for count, ((network, fold), fit) in enumerate(ended, start=1):
                if isinstance(fit, Fit):
                    fits[network][fold] = fit
                else:
                    failures[network][fold] = fit
                    say(f"warning: fold {fold + 1} of {TARGETS[network]} failed: {fit}")
                if all(fold in fits[name] or fold in failures[name] for name in networks):
                    of_fold = {name: fits[name][fold] for name in networks if fold in fits[name]}
                    _log_fold(fold, of_fold, {name: failures[name][fold] for name in networks if name not in of_fold})
                show(count, note=f"{sum(map(len, failures.values()))} failed")
            scores = {}
            for network, by_fold in fits.items():
                if by_fold:
                    folder = tree.partial / "results" / TARGETS[network]
                    scores[TARGETS[network]] = _summarise(network, plan, by_fold, failures[network], folder)
            mlflow.log_artifacts(str(tree.partial))
        seconds = time.perf_counter() - started
        mlflow.log_metrics({"seconds": seconds, "folds_failed": sum(map(len, failures.values()))})
        if lost := [network for network in networks if not fits[network]]:
            names = " and ".join(TARGETS[network] for network in lost)
            reason = next(iter(failures[lost[0]].values()))
            raise CalmlflowError(f"no fold of {names} succeeded; expected one at least: {reason}")
    by_target = {TARGETS[network]: reasons for network, reasons in failures.items()}
    return CrossvalOutcome(run.info.run_id, tree.final, request.folds, scores, by_target, seconds)


# -- Worker processes -------------------------------------------------------------------------------------------------


def run_task(plan: Plan, task: Task) -> Fit:
    """Train and score one network on one fold, from nothing but the plan: no fold depends on another."""
    network, fold = task
    data = hold_out(plan.data, plan.data.train, plan.fold_of_job, fold)
    with tempfile.TemporaryDirectory() as folder:
        return fit_network(network, data, plan.configs[network], plan.seed + fold, Path(folder))


def _run_tasks(plan: Plan, tasks: Sequence[Task], workers: int | None) -> Generator[tuple[Task, Fit | str], None, None]:
    """Run tasks in separate processes (default: one per core); yields each with its fit or the reason of its failure.

    If a process is killed, the pool loses all open tasks. They run again one by one, so that a task that ends its
    process fails alone.
    """
    lost = []
    with _pool(workers) as pool:
        futures = {_submit(pool, plan, task): task for task in tasks}
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                lost.append(futures[future])
            else:
                yield futures[future], _outcome(future)
    while lost:
        with _pool(1) as pool:
            outcome: Fit | str = ""
            while lost and outcome != _KILLED:
                task = lost.pop(0)
                outcome = _outcome(_submit(pool, plan, task))
                yield task, outcome


def _submit(pool: ProcessPoolExecutor, plan: Plan, task: Task) -> Future[Fit]:
    try:
        # A signal raises in the main thread alone. Raised while a worker starts, it would leave a process that nobody
        # knows and that holds the queues of the pool: the parent would wait for it for ever.
        with ThreadPoolExecutor(1) as starter:
            return starter.submit(pool.submit, run_task, plan, task).result()
    except BrokenProcessPool as error:  # a process was killed before the pool took this task
        future: Future[Fit] = Future()
        future.set_exception(error)
        return future


def _outcome(future: Future[Fit]) -> Fit | str:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return _KILLED
    return future.result() if error is None else " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _pool(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes that end with the block."""
    others = set(multiprocessing.active_children())
    # TensorFlow does not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The processes are as many as the cores, and numbers must not depend on how many there are.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)


# -- Scores over the folds --------------------------------------------------------------------------------------------


def _log_fold(fold: int, fits: Mapping[str, Fit], failures: Mapping[str, str]) -> None:
    """Write the child run of a fold, by network."""
    with tracked_run(f"fold-{fold + 1:02d}", nested=True):
        mlflow.log_param("fold", fold + 1)
        for network, fit in fits.items():
            target = TARGETS[network]
            mlflow.log_metrics({f"test_{target}_{name}": value for name, value in fit.scores.items()})
            mlflow.log_metric(f"fit_seconds_{target}", fit.fit_seconds)
        if failures:
            mlflow.set_tags({f"failure_{TARGETS[network]}": reason for network, reason in failures.items()})
            mlflow.end_run("FAILED")


def _summarise(
    network: str, plan: Plan, fits: Mapping[int, Fit], failures: Mapping[int, str], folder: Path
) -> dict[str, Spread]:
    """Log scores and pictures of one network over its folds, and write its standard files and ``kfold.json``."""
    folds = sorted(fits)
    names = sorted({name for fit in fits.values() for name in fit.scores})
    by_fold = {name: [fits[fold].scores.get(name) for fold in folds] for name in names}
    spreads = {name: spread([value for value in values if value is not None]) for name, values in by_fold.items()}
    mlflow.log_metrics(
        {
            f"kfold_{TARGETS[network]}_{name}_{part}": value
            for name, found in spreads.items()
            for part, value in found._asdict().items()
            if value is not None
        }
    )
    held_out = np.flatnonzero(np.isin(plan.fold_of_job, list(fits)))
    predictions = {
        name: np.stack([fits[plan.fold_of_job[job]].predictions[name][job] for job in held_out])
        for name in fits[folds[0]].predictions
    }
    results = _held_out_results(network, plan.data.jobs.iloc[held_out], predictions[ANSWERS[network]], fits)
    write_results(results, folder)
    log_pictures(TARGETS[network], results, predictions.get("bin_pred"))
    # The first three keys are those of the earlier library: accuracies, or squared errors with scikit-learn's sign.
    if network == "mem_clf":
        per_fold = [fits[fold].scores["accuracy"] for fold in folds]
        score = float(np.mean(per_fold))
    else:
        per_fold = [-(fits[fold].scores["rmse"] ** 2) for fold in folds]
        score = math.sqrt(-float(np.mean(per_fold)))
    kfold = {
        "results": per_fold,
        "score": score,
        "time": sum(fits[fold].fit_seconds for fold in folds),
        "folds": [fold + 1 for fold in folds],
        "failed": {str(fold + 1): reason for fold, reason in sorted(failures.items())},
        "scores": {name: {"folds": by_fold[name], **spreads[name]._asdict()} for name in names},
    }
    (folder / "kfold.json").write_text(json.dumps(kfold))
    return spreads


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (of k - 1) and 95 % t interval of the mean of k values, k >= 1."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Spread(mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(count - 1, 0.975)) * sd / math.sqrt(count)
    return Spread(mean, sd, mean - half, mean + half)


def _held_out_results(
    network: str, jobs: pd.DataFrame, answers: NDArray, fits: Mapping[int, Fit]
) -> ClassificationResults | RegressionResults:
    """Results of all jobs held out, in the order of the table; training scores and curves are means over the folds."""
    histories = [fit.results.history or {} for fit in fits.values()]
    shortest = min(len(history["loss"]) for history in histories)
    history = {name: np.mean([h[name][:shortest] for h in histories], axis=0) for name in histories[0]}
    train_scores = np.mean([fit.train_scores for fit in fits.values()], axis=0).tolist()
    return network_results(network, jobs, answers, history, train_scores)
