"""Search for hyper-parameters, scored by cross-validation on training jobs, and resumed wherever it was interrupted.

The jobs that a training with the same seed holds out (a fifth) are never looked at. Trials live in a database in the
output folder; see `calmlflow.runs.search_store`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
from optuna.trial import TrialState

from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.networks.config import read_config
from calmlflow.networks.preprocess import deal
from calmlflow.networks.training import TrainingConfig
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.folds import hold_out, train_and_score
from calmlflow.runs.search_store import digest, ended_trials, open_storage, open_study, write_winners
from calmlflow.settings import parse_networks

FOLDS = 3
TEST_SIZE = 0.2
"""As `main` does by default: with the same seed, the same jobs are held out."""


@dataclass(frozen=True)
class TuneRequest:
    """What the user of the entry point says; see the table in the README."""

    data: str = "sample"
    network: str = "all"
    trials: int = 30
    seed: int = 0
    output: str = "out/tune"
    config: str = "default"


@dataclass(frozen=True)
class Search:
    """What the search for one network found.

    ``start`` is the objective of the config it set out from (None if that failed), ``best`` the lowest one, of trial
    number ``trial``; ``counts`` are trials that are complete, pruned and failed.
    """

    objective: str
    start: float | None
    best: float
    trial: int
    counts: dict[str, int]


@dataclass
class TuneOutcome:
    """What a search left behind."""

    run_id: str
    config: Path
    searches: dict[str, Search] = field(default_factory=dict)


def tune(request: TuneRequest) -> TuneOutcome:
    """Search for the hyper-parameters of networks in one run, with one child run per trial.

    The winners go to ``config.json`` in the output folder, which `read_config` takes, and to the run's artifacts.
    Trials that an earlier search in that folder ended count; with equal arguments, an interrupted search ends with
    the numbers of one that was not interrupted.

    Raises
    ------
    InputError
        A value out of range, or a folder that holds a search of something else.
    CalmlflowError
        The folder cannot be used, another search is at work in it, or no trial of a network succeeded.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tracked_run("tune") as run:
        networks = parse_networks(request.network)
        if request.trials < 1:
            raise InputError(f"trials is {request.trials}; expected a whole number, 1 or more")
        starts = read_config(request.config)
        data = load_training_data(request.data, request.seed, TEST_SIZE)
        log_new_params({**asdict(request), "inner_folds": FOLDS, "n_train": len(data.train), **environment_params()})
        mlflow.log_input(lineage(data.jobs.iloc[data.train], request.data, "tuning"), context="tuning")
        folder = Path(request.output)
        outcome = TuneOutcome(run.info.run_id, folder / "config.json")
        with open_storage(folder) as storage:
            for network in networks:
                outcome.searches[network] = _search(storage, network, starts[network], data, request, run.info.run_id)
                write_winners(storage, outcome.config)
        mlflow.log_artifact(str(outcome.config))
    return outcome


def search_space(network: str, start: TrainingConfig) -> dict[str, tuple[float, float, bool]]:
    """What is searched around a config: lowest value, highest, and whether by the logarithm; whole numbers are int.

    Epochs and refit epochs go from a third of theirs to twice that, the learning rate and the weight decay within a
    factor of 5 and 100, and the share of the linear loss of a regressor up to a half. What is 0 at the start (no refit,
    no decay) stays so; so do patience and members, of which more are always a little better and as much slower.
    """
    space: dict[str, tuple[float, float, bool]] = {
        "epochs": (-(-start.epochs // 3), min(2 * start.epochs, 100_000), True),
        "learning_rate": (max(start.learning_rate / 5, 1e-7), min(start.learning_rate * 5, 1.0), True),
    }
    if start.refit_epochs:
        space["refit_epochs"] = -(-start.refit_epochs // 3), min(2 * start.refit_epochs, 100_000), True
    if start.weight_decay:
        # Nor may rounding make it 0, which has no logarithm.
        space["weight_decay"] = (
            max(start.weight_decay / 100, min(start.weight_decay, 1e-12)),
            min(start.weight_decay * 100, 1.0),
            True,
        )
    if network != "mem_clf":
        space["linear_share"] = 0.0, max(0.5, start.linear_share), False
    return space


def objective_of(network: str, scores: Mapping[str, float]) -> tuple[str, float]:
    """What a search minimises, name and value: log_loss of the classifier, error of a regressor.

    The error is the geometric mean of rmse, mae and log_mae, so that a per cent of each weighs the same: large jobs
    dominate the first, small ones the last. Its unit cancels where two configs are compared.
    """
    if network == "mem_clf":
        return "log_loss", scores["log_loss"]
    return "error", float(np.exp(np.mean([np.log(scores[name]) for name in ("rmse", "mae", "log_mae")])))


def _search(
    storage: optuna.storages.BaseStorage,
    network: str,
    start: TrainingConfig,
    data: TrainingData,
    request: TuneRequest,
    run_id: str,
) -> Search:
    """Run the trials that are missing for one network, the config it sets out from before all others."""
    space = search_space(network, start)
    search = {
        "data": request.data,
        "seed": request.seed,
        "config": asdict(start),
        "jobs": digest(data.jobs.iloc[data.train]),
    }
    study = open_study(storage, network, search, {name: getattr(start, name) for name in space}, run_id)
    fold_of_job = deal(data.jobs["mem_bin"].to_numpy()[data.train], FOLDS, request.seed, stratified=True)
    folds = [hold_out(data, data.train, fold_of_job, fold) for fold in range(FOLDS)]
    with progress(f"searching {network}", "trials", request.trials) as on_progress:
        while (done := len(ended_trials(study))) < request.trials:
            on_progress(done, note=_best_so_far(study))
            # Its own stream for each trial: a resumed search draws what an uninterrupted one would have drawn.
            stream = np.random.SeedSequence((request.seed, done)).generate_state(1)[0]
            study.sampler = optuna.samplers.TPESampler(seed=int(stream))
            trial = study.ask()
            config = _suggest(trial, space, start)
            with tracked_run(f"{network}-trial-{trial.number:03d}", nested=True) as run:
                trial.set_user_attr("run_id", run.info.run_id)
                mlflow.log_params({"network": network, "trial": trial.number, **asdict(config)})
                _try(study, trial, network, config, folds, request.seed)
        on_progress(done, note=_best_so_far(study))
    found = _found(study, network)
    best = {f"best_{network}_{found.objective}": found.best, f"best_{network}_trial": found.trial}
    mlflow.log_metrics(best | {f"trials_{network}_{state}": count for state, count in found.counts.items()})
    return found


def _try(
    study: optuna.Study,
    trial: optuna.Trial,
    network: str,
    config: TrainingConfig,
    folds: Sequence[TrainingData],
    seed: int,
) -> None:
    """Score a config fold by fold; one that does worse than the median of the trials before it is not pursued."""
    values: list[float] = []
    for step, fold in enumerate(folds):
        try:
            result = train_and_score(network, fold, config, seed + step)
        except CalmlflowError as error:
            trial.set_user_attr("failure", str(error))
            study.tell(trial, state=TrialState.FAIL)
            mlflow.set_tags({"trial_state": "failed", "failure": str(error)})
            mlflow.end_run("FAILED")
            say(f"warning: trial {trial.number} of {network} failed: {error}")
            return
        name, value = objective_of(network, result.scores)
        values.append(value)
        mlflow.log_metrics({f"test_{score}": found for score, found in result.scores.items()}, step=step)
        mlflow.log_metric(name, float(np.mean(values)), step=step)
        trial.report(float(np.mean(values)), step)
        if step < len(folds) - 1 and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            mlflow.set_tag("trial_state", "pruned")
            return
    study.tell(trial, float(np.mean(values)))
    mlflow.set_tag("trial_state", "complete")


def _suggest(
    trial: optuna.Trial, space: Mapping[str, tuple[float, float, bool]], start: TrainingConfig
) -> TrainingConfig:
    drawn: dict[str, Any] = {}
    for name, (low, high, log) in space.items():
        if isinstance(low, int):
            drawn[name] = trial.suggest_int(name, low, int(high), log=log)
        else:
            drawn[name] = trial.suggest_float(name, low, high, log=log)
    return replace(start, **drawn)


def _best_so_far(study: optuna.Study) -> str:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return f"best {study.best_value:.5g}" if complete else ""


def _found(study: optuna.Study, network: str) -> Search:
    ended = ended_trials(study)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = {name: sum(trial.state == state for trial in ended) for name, state in states.items()}
    if not counts["complete"]:
        raise CalmlflowError(
            f"no trial of {network} succeeded out of {len(ended)}; expected one at least: see the child runs"
        )
    best = study.best_trial
    return Search(
        objective="log_loss" if network == "mem_clf" else "error",
        start=ended[0].value if ended[0].state == TrialState.COMPLETE else None,
        best=study.best_value,
        trial=best.number,
        counts=counts,
    )
