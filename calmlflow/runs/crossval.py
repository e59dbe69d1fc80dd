"""Cross-validation: how well the networks do on jobs that they have not seen, and how sure that is."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.config import read_config
from calmlflow.networks.preprocess import deal
from calmlflow.networks.training import TrainingConfig
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.results.classification import classification_results
from calmlflow.results.files import write_results
from calmlflow.results.regression import regression_results
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.folds import FoldResult, hold_out, train_and_score
from calmlflow.runs.workers import Failure, count_cores, share_out
from calmlflow.settings import TARGETS, parse_networks
from calmlflow.storage.files import new_tree

CONFIDENCE = 0.95


@dataclass(frozen=True)
class CrossvalRequest:
    """What the user of the entry point says; see the table in the README."""

    data: str = "sample"
    output: str = "data"
    seed: int = 0
    folds: int = 10
    networks: str = "all"
    config: str = "default"
    workers: int = 0


class Summary(NamedTuple):
    """One score over the folds: mean, standard deviation, and the bounds of the mean's 95 % t interval.

    With a single fold the last three are None. Folds share most of their training jobs, so the interval is somewhat
    too narrow: no estimate of the variance from the folds alone is unbiased (Bengio & Grandvalet, JMLR 5, 2004).
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass
class CrossvalOutcome:
    """What a cross-validation left behind: by target, each score's `Summary` and the folds that came to nothing."""

    run_id: str
    tree: Path = Path()
    folds: int = 0
    scores: dict[str, dict[str, Summary]] = field(default_factory=dict)
    failures: dict[str, dict[int, str]] = field(default_factory=dict)
    seconds: float = 0.0


class Task(NamedTuple):
    """A network and the fold (from 0) on which it is scored."""

    network: str
    fold: int


@dataclass(frozen=True)
class Plan:
    """What every worker process is told: the jobs, and by network their folds and the hyper-parameters."""

    data: TrainingData
    fold_of_job: dict[str, NDArray[np.int64]]
    configs: dict[str, TrainingConfig]
    seed: int


def run_fold(plan: Plan, task: Task) -> FoldResult:
    """Train and score one network on one fold, from nothing but the plan: no fold knows of another."""
    seed = plan.seed + task.fold
    everyone = np.arange(len(plan.data.jobs))
    data = hold_out(plan.data, everyone, plan.fold_of_job[task.network], task.fold)
    return train_and_score(task.network, data, plan.configs[task.network], seed)


def cross_validate(request: CrossvalRequest) -> CrossvalOutcome:
    """Cross-validate networks in one run, on all cores, with one child run per fold.

    Folds are stratified by memory bin for the classifier and plain for the regressors. The run's artifacts are its new
    folder: in ``results/{target}`` the standard files, of every job predicted by the network that had not seen it, and
    ``kfold.json``. Numbers depend on the seed, and not on how many workers there are.

    Raises
    ------
    CalmlflowError
        A value out of range, or a network of which no fold succeeded (the others' results are kept). A fold that fails
        beside others that do not is marked in its child run, told on standard error and counted.
    """
    with tracked_run("crossval") as run:
        started = time.perf_counter()
        networks = parse_networks(request.networks)
        _check(request)
        configs = read_config(request.config)
        # Its test split plays no part here: every job is held out once.
        data = load_training_data(request.data, request.seed, test_size=0.2)
        if request.folds > len(data.jobs):
            raise InputError(f"folds is {request.folds}; expected at most one per job, and {len(data.jobs)} are valid")
        log_new_params({**asdict(request), **_described(data, networks, configs), **environment_params()})
        mlflow.log_input(lineage(data.jobs, request.data, "cross-validation"), context="cross-validation")
        bins = data.jobs["mem_bin"].to_numpy()
        dealt = {network: deal(bins, request.folds, request.seed, network == "mem_clf") for network in networks}
        plan = Plan(data, dealt, {network: configs[network] for network in networks}, request.seed)
        outcome = CrossvalOutcome(run.info.run_id, folds=request.folds)
        with new_tree(Path(request.output)) as tree:
            results = _run_folds(plan, networks, request, outcome)
            for network in networks:
                _summarise(network, plan, results[network], outcome, tree.partial)
            mlflow.log_artifacts(str(tree.partial))
        outcome.tree = tree.final
        outcome.seconds = time.perf_counter() - started
        mlflow.log_metrics({"seconds": outcome.seconds, "folds_failed": sum(map(len, outcome.failures.values()))})
        if lost := [target for target, failures in outcome.failures.items() if len(failures) == request.folds]:
            reason = next(iter(outcome.failures[lost[0]].values()))
            raise CalmlflowError(f"no fold of {' and '.join(lost)} succeeded; expected one at least: {reason}")
    return outcome


def _check(request: CrossvalRequest) -> None:
    if request.folds < 2:
        raise InputError(f"folds is {request.folds}; expected a whole number, 2 or more")
    if request.workers < 0:
        raise InputError(f"workers is {request.workers}; expected a number of processes, or 0 for one per core")


def _described(data: TrainingData, networks: Sequence[str], configs: Mapping[str, TrainingConfig]) -> dict[str, Any]:
    sizes = {name: data.sizes()[name] for name in ("n_jobs", "n_quarantined", "n_distinct_rows")}
    return sizes | {
        f"{network}_{name}": value for network in networks for name, value in asdict(configs[network]).items()
    }


def _run_folds(
    plan: Plan, networks: Sequence[str], request: CrossvalRequest, outcome: CrossvalOutcome
) -> dict[str, dict[int, FoldResult]]:
    """Results by network and fold; the child run of a fold is written when all its networks are done."""
    tasks = [Task(network, fold) for fold in range(request.folds) for network in networks]
    done: dict[str, dict[int, FoldResult]] = {network: {} for network in networks}
    outcome.failures = {TARGETS[network]: {} for network in networks}
    failed = outcome.failures
    with progress("cross-validation", "folds", len(tasks)) as on_progress:
        on_progress(0)
        shared_out = share_out(run_fold, plan, tasks, request.workers or count_cores())
        for count, ((network, fold), result) in enumerate(shared_out, start=1):
            if isinstance(result, Failure):
                failed[TARGETS[network]][fold] = result.reason
                say(f"warning: fold {fold + 1} of {TARGETS[network]} failed: {result.reason}")
            else:
                done[network][fold] = result
            if all(fold in done[name] or fold in failed[TARGETS[name]] for name in networks):
                _log_fold(fold, {name: done[name][fold] for name in networks if fold in done[name]}, outcome)
            on_progress(count, note=f"{sum(map(len, failed.values()))} failed")
    return done


def _log_fold(fold: int, results: Mapping[str, FoldResult], outcome: CrossvalOutcome) -> None:
    reasons = {target: failures[fold] for target, failures in outcome.failures.items() if fold in failures}
    with tracked_run(f"fold-{fold + 1:02d}", nested=True):
        mlflow.log_param("fold", fold + 1)
        for network, result in results.items():
            target = TARGETS[network]
            mlflow.log_metrics({f"test_{target}_{name}": value for name, value in result.scores.items()})
            mlflow.log_metric(f"fit_seconds_{target}", result.fit_seconds)
        if reasons:
            mlflow.set_tags({f"failure_{target}": reason for target, reason in reasons.items()})
            mlflow.end_run("FAILED")


def _summarise(
    network: str, plan: Plan, results: Mapping[int, FoldResult], outcome: CrossvalOutcome, tree: Path
) -> None:
    """Log and write what the folds of one network say together."""
    target = TARGETS[network]
    if not results:
        return
    folds = sorted(results)
    names = sorted({name for result in results.values() for name in result.scores})
    by_fold = {name: [results[fold].scores.get(name) for fold in folds] for name in names}
    summaries = {name: summarise([value for value in values if value is not None]) for name, values in by_fold.items()}
    outcome.scores[target] = summaries
    mlflow.log_metrics(
        {
            f"kfold_{target}_{name}_{part}": value
            for name, summary in summaries.items()
            for part, value in summary._asdict().items()
            if value is not None
        }
    )
    folder = tree / "results" / target
    _write_standard_files(network, plan, [(fold, results[fold]) for fold in folds], folder)
    # The first three keys are those of the earlier library: accuracies, or squared errors with scikit-learn's sign.
    classifier = network == "mem_clf"
    scored = [results[fold].scores["accuracy" if classifier else "rmse"] for fold in folds]
    per_fold = scored if classifier else [-(rmse**2) for rmse in scored]
    kfold = {
        "results": per_fold,
        "score": float(np.mean(per_fold)) if classifier else math.sqrt(abs(float(np.mean(per_fold)))),
        "time": sum(results[fold].fit_seconds for fold in folds),
        "folds": [fold + 1 for fold in folds],
        "failed": {str(fold + 1): reason for fold, reason in sorted(outcome.failures[target].items())},
        "scores": {name: {"folds": by_fold[name], **summaries[name]._asdict()} for name in names},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kfold.json").write_text(json.dumps(kfold))


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (of k - 1) and 95 % t interval of the mean of k values, k >= 1."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Summary(mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(count)
    return Summary(mean, sd, mean - half, mean + half)


def _write_standard_files(network: str, plan: Plan, results: Sequence[tuple[int, FoldResult]], folder: Path) -> None:
    """The files of a training, of all jobs held out; training scores and curves are means over the folds."""
    target = TARGETS[network]
    jobs, fold_of_job = plan.data.jobs, plan.fold_of_job[network]
    # Folds hold their jobs in ascending order of position; so do the files.
    positions = np.concatenate([np.flatnonzero(fold_of_job == fold) for fold, _ in results])
    order = np.argsort(positions)
    answers = np.concatenate([result.answers for _, result in results])[order]
    held_out = jobs.iloc[positions[order]]
    test_idx = pd.Series(held_out[target].to_numpy(), index=pd.Index(held_out["ipst"], name="ipst"), name=target)
    histories = [result.history for _, result in results]
    shortest = min(len(history["loss"]) for history in histories)
    history = {name: np.mean([h[name][:shortest] for h in histories], axis=0) for name in histories[0]}
    train_scores = np.mean([result.train_scores for _, result in results], axis=0)
    if network == "mem_clf":
        write_results(
            classification_results(test_idx, answers, history, (float(train_scores[0]), float(train_scores[1]))), folder
        )
    else:
        write_results(regression_results(test_idx, answers, history, float(train_scores[0])), folder)
