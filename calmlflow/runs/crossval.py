"""Cross-validate the networks on all cores: score every job by a network that has not seen it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError
from calmlflow.networks.config import read_config
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.files import write_results
from calmlflow.results.regression import RegressionResults
from calmlflow.runs.data import held_out_folds
from calmlflow.runs.executor import LOCAL, executor
from calmlflow.runs.fit import ANSWERS, network_results
from calmlflow.runs.folds import Dealt, Fold, Source, deal, forget, score_folds
from calmlflow.runs.summary import CrossvalOutcome, Spread
from calmlflow.runs.train import log_pictures
from calmlflow.settings import TARGETS, parse_networks
from calmlflow.storage.files import new_tree

KEPT = ".crossval"
"""Hidden folder in the output that keeps the folds of a cross-validation that has not ended."""


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
    scheduler: str = LOCAL


def cross_validate(request: CrossvalRequest) -> CrossvalOutcome:
    """Cross-validate networks in one run, on all cores or a Dask cluster, with one child run per fold.

    Folds are of whole programmes, of jobs, or by time, where each is scored by what came before and the first is not
    scored. The run's artifacts are its new folder: in ``results/{target}`` the standard files, of every job predicted
    by the network that had not seen it, and ``kfold.json``. Numbers depend on the seed, and not on how many workers
    there are, or where. A failed fold is reported and counted; a CalmlflowError is raised where every fold of a network
    fails. After an interruption the same request goes on with the folds that are done.
    """
    with tracked_run("crossval") as run, executor(request.scheduler, request.workers) as run_tasks:
        started = time.perf_counter()
        networks = parse_networks(request.networks)
        configs = read_config(request.config)
        dealt = deal(Source(request.data, request.seed, None, request.split, request.folds))
        data = dealt.data
        params = {**asdict(request), **environment_params()}
        params |= {name: data.sizes()[name] for name in ("n_jobs", "n_quarantined", "n_distinct_rows")}
        for network in networks:
            params |= {f"{network}_{name}": value for name, value in asdict(configs[network]).items()}
        log_new_params(params)
        mlflow.log_input(lineage(data.jobs, request.data, "cross-validation"), context="cross-validation")

        fits: dict[str, dict[int, Fold]] = {network: {} for network in networks}
        failures: dict[str, dict[int, str]] = {network: {} for network in networks}
        folds = [(network, fold) for fold in held_out_folds(data.split, request.folds) for network in networks]
        tasks = [dealt.task(network, configs[network], fold, request.seed + fold) for network, fold in folds]
        kept = Path(request.output, KEPT)
        with (
            new_tree(Path(request.output)) as tree,
            progress("cross-validation", "folds", len(tasks)) as show,
            closing(score_folds(run_tasks, dealt, tasks, kept)) as ended,
        ):
            show(0)
            for count, (number, outcome) in enumerate(ended, start=1):
                network, fold = folds[number]
                if isinstance(outcome, Fold):
                    fits[network][fold] = outcome
                else:
                    failures[network][fold] = outcome
                    say(f"warning: fold {fold + 1} of {TARGETS[network]} failed: {outcome}")
                if all(fold in fits[name] or fold in failures[name] for name in networks):
                    of_fold = {name: fits[name][fold] for name in networks if fold in fits[name]}
                    _log_fold(fold, of_fold, {name: failures[name][fold] for name in networks if name not in of_fold})
                show(count, note=f"{sum(map(len, failures.values()))} failed")
            scores = {}
            for network, by_fold in fits.items():
                if by_fold:
                    folder = tree.partial / "results" / TARGETS[network]
                    scores[TARGETS[network]] = _summarise(network, dealt, by_fold, failures[network], folder)
            mlflow.log_artifacts(str(tree.partial))
        forget(tasks, kept)
        seconds = time.perf_counter() - started
        mlflow.log_metrics({"seconds": seconds, "folds_failed": sum(map(len, failures.values()))})
        if lost := [network for network in networks if not fits[network]]:
            names = " and ".join(TARGETS[network] for network in lost)
            reason = next(iter(failures[lost[0]].values()))
            raise CalmlflowError(f"no fold of {names} succeeded; expected one at least: {reason}")
    by_target = {TARGETS[network]: reasons for network, reasons in failures.items()}
    return CrossvalOutcome(run.info.run_id, tree.final, request.folds, scores, by_target, seconds)


# -- Scores over the folds --------------------------------------------------------------------------------------------


def _log_fold(fold: int, fits: Mapping[str, Fold], failures: Mapping[str, str]) -> None:
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
    network: str, dealt: Dealt, fits: Mapping[int, Fold], failures: Mapping[int, str], folder: Path
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
    held_out = np.flatnonzero(np.isin(dealt.fold_of_job, list(fits)))
    row_of_job = dealt.data.rows.row_of_job
    predictions = {
        name: np.stack([fits[dealt.fold_of_job[job]].predictions[name][row_of_job[job]] for job in held_out])
        for name in fits[folds[0]].predictions
    }
    results = _held_out_results(network, dealt.data.jobs.iloc[held_out], predictions[ANSWERS[network]], fits)
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
    network: str, jobs: pd.DataFrame, answers: NDArray, fits: Mapping[int, Fold]
) -> ClassificationResults | RegressionResults:
    """Results of all jobs held out, in the order of the table; training scores and curves are means over the folds."""
    histories = [fit.history for fit in fits.values()]
    shortest = min(len(history["loss"]) for history in histories)
    history = {name: np.mean([h[name][:shortest] for h in histories], axis=0) for name in histories[0]}
    train_scores = np.mean([fit.train_scores for fit in fits.values()], axis=0).tolist()
    return network_results(network, jobs, answers, history, train_scores)
