"""Search for hyper-parameters by cross-validation on training jobs; the same command resumes an interrupted search."""

# The jobs that a training with the same split and seed holds out (a fifth) are never read. Trials are kept in
# ``study.db`` in the output folder: Optuna's own storage, whose heartbeat shows which trials are still running.

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import optuna
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from calmlflow.console import progress, say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.config import MAX_EPOCHS, Searched, TrainingConfig, read_config
from calmlflow.registry.tracking import environment_params, lineage, log_new_params, tracked_run
from calmlflow.runs.data import TrainingData, deal_folds, held_out_folds, hold_out, load_training_data
from calmlflow.runs.fit import fit_network
from calmlflow.runs.summary import Search, TuneOutcome
from calmlflow.settings import NETWORKS, parse_networks
from calmlflow.storage.files import replacing

FOLDS = 3
TEST_SIZE = 0.2  # as `main` does by default: with the same split and seed, the same jobs are held out
HEARTBEAT_S, GRACE_S = 10, 60  # a trial without a heartbeat in the grace time was killed

Space = Mapping[str, tuple[float, float, bool]]


@dataclass(frozen=True)
class TuneRequest:
    """Options of the entry point; see docs/reference.md."""

    data: str = "sample"
    network: str = "all"
    trials: int = 30
    seed: int = 0
    output: str = "out/tune"
    config: str = "default"
    split: str = "programme"


def tune(request: TuneRequest) -> TuneOutcome:
    """Search for the hyper-parameters of networks in one run, with one child run per trial.

    The winners go to ``config.json`` in the output folder, which `read_config` takes, and to the run's artifacts.
    Trials that an earlier search in that folder ended count; with equal arguments, an interrupted search ends with
    the numbers of one that was not interrupted. Raises an InputError where the folder holds another search, and a
    CalmlflowError where no trial of a network succeeds.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tracked_run("tune") as run:
        networks = parse_networks(request.network)
        if request.trials < 1:
            raise InputError(f"trials is {request.trials}; expected a whole number, 1 or more")
        starts = read_config(request.config)
        data = load_training_data(request.data, request.seed, TEST_SIZE, request.split)
        log_new_params({**asdict(request), "inner_folds": FOLDS, "n_train": len(data.train), **environment_params()})
        jobs = lineage(data.jobs.iloc[data.train], request.data, "tuning")
        mlflow.log_input(jobs, context="tuning")
        config = Path(request.output) / "config.json"
        newest = int(data.jobs["timestamp"].iloc[data.train].max())
        found_on = Searched(request.data, data.split, request.seed, TEST_SIZE, newest, LADDER.version)
        with _open_storage(config.with_name("study.db")) as storage:
            searches = {}
            for network in networks:
                study = open_study(storage, network, starts[network], request, jobs.digest)
                study.set_user_attr("found_on", asdict(found_on))
                searches[network] = _search(study, network, starts[network], data, request)
                _write_winners(storage, config)
        mlflow.log_artifact(str(config))
    return TuneOutcome(run.info.run_id, config, searches)


def search_space(network: str, start: TrainingConfig) -> Space:
    """Ranges around a config by name: lowest value, highest, and whether drawn by the logarithm.

    What is 0 at the start (no refit, no decay) stays so; so do patience and members, of which more are always a little
    better and as much slower.
    """
    space: dict[str, tuple[float, float, bool]] = {
        "epochs": (-(-start.epochs // 3), min(2 * start.epochs, MAX_EPOCHS), True),
        "learning_rate": (max(start.learning_rate / 5, 1e-7), min(start.learning_rate * 5, 1.0), True),
    }
    if start.refit_epochs:
        space["refit_epochs"] = -(-start.refit_epochs // 3), min(2 * start.refit_epochs, MAX_EPOCHS), True
    if start.weight_decay:
        # Nor may rounding make it 0, which has no logarithm.
        lowest = max(start.weight_decay / 100, min(start.weight_decay, 1e-12))
        space["weight_decay"] = lowest, min(start.weight_decay * 100, 1.0), True
    if network != "mem_clf":
        space["linear_share"] = 0.0, max(0.5, start.linear_share), False
    return space


def objective_of(network: str, scores: Mapping[str, float]) -> tuple[str, float]:
    """Name and value of the objective: log_loss of the classifier, error of a regressor.

    The error is the geometric mean of rmse, mae and log_mae, so that one per cent of each counts the same: large jobs
    dominate the first, small ones the last.
    """
    if network == "mem_clf":
        return "log_loss", scores["log_loss"]
    return "error", float(np.exp(np.mean([np.log(scores[name]) for name in ("rmse", "mae", "log_mae")])))


def _search(
    study: optuna.Study, network: str, start: TrainingConfig, data: TrainingData, request: TuneRequest
) -> Search:
    """Run the missing trials for one network, that of the starting config first."""
    space = search_space(network, start)
    # By time the first fold is never held out. Another stream than the one that chose the test split.
    count = FOLDS + (data.split == "time")
    fold_of_job = deal_folds(data, data.train, count, request.seed, stream=1)
    folds = [hold_out(data, data.train, fold_of_job, fold) for fold in held_out_folds(data.split, count)]
    with progress(f"searching {network}", "trials", request.trials) as show:
        while (done := len(ended_trials(study))) < request.trials:
            show(done)
            if not done and not study.get_trials(states=(TrialState.WAITING,)):
                study.enqueue_trial({name: getattr(start, name) for name in space})
            # Its own stream for each trial: a resumed search draws what an uninterrupted one would have drawn.
            stream = np.random.SeedSequence((request.seed, done)).generate_state(1)[0]
            study.sampler = optuna.samplers.TPESampler(seed=int(stream))
            study.optimize(
                lambda trial: _try(trial, network, space, start, folds, request.seed), n_trials=1, catch=CalmlflowError
            )
        show(done)
    ended = ended_trials(study)
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    counts = {name: sum(trial.state == state for trial in ended) for name, state in states.items()}
    if not counts["complete"]:
        raise CalmlflowError(f"no trial of {network} succeeded out of {len(ended)}; expected one: see the child runs")
    first = ended[0].value if ended[0].state == TrialState.COMPLETE else None
    objective = "log_loss" if network == "mem_clf" else "error"
    found = Search(objective, first, study.best_value, study.best_trial.number, counts)
    best = {f"best_{network}_{objective}": found.best, f"best_{network}_trial": found.trial}
    mlflow.log_metrics(best | {f"trials_{network}_{state}": count for state, count in counts.items()})
    return found


def _try(
    trial: optuna.Trial, network: str, space: Space, start: TrainingConfig, folds: Sequence[TrainingData], seed: int
) -> float:
    """Draw a config and score it fold by fold; stop where it does worse than the median of the trials before it."""
    drawn: dict[str, Any] = {}
    for name, (low, high, log) in space.items():
        suggest: Any = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        drawn[name] = suggest(name, low, high, log=log)
    config = replace(start, **drawn)
    values: list[float] = []
    with tracked_run(f"{network}-trial-{trial.number:03d}", nested=True) as run, TemporaryDirectory() as folder:
        trial.set_user_attr("run_id", run.info.run_id)
        mlflow.log_params({"network": network, "trial": trial.number, **asdict(config)})
        for step, fold in enumerate(folds):
            try:
                scores = fit_network(network, fold, config, seed + step, Path(folder, str(step))).scores
            except CalmlflowError as error:
                trial.set_user_attr("failure", str(error))
                mlflow.set_tags({"trial_state": "failed", "failure": str(error)})
                say(f"warning: trial {trial.number} of {network} failed: {error}")
                raise
            name, value = objective_of(network, scores)
            values.append(value)
            mlflow.log_metrics({f"test_{score}": found for score, found in scores.items()}, step=step)
            mlflow.log_metric(name, float(np.mean(values)), step=step)
            trial.report(float(np.mean(values)), step)
            if step < len(folds) - 1 and trial.should_prune():
                break
        is_complete = len(values) == len(folds)
        mlflow.set_tag("trial_state", "complete" if is_complete else "pruned")
    if not is_complete:
        raise optuna.TrialPruned
    return float(np.mean(values))


# -- The study --------------------------------------------------------------------------------------------------------


@contextmanager
def _open_storage(path: Path) -> Iterator[RDBStorage]:
    """Open the database of trials, or make it; its errors become a CalmlflowError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            storage = RDBStorage(
                f"sqlite:///{path}",
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_end_runs,
            )
        with ExitStack() as ending:
            ending.callback(storage.engine.dispose)
            ending.callback(storage.remove_session)
            yield storage
    except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise CalmlflowError(f"{path} cannot be used ({reason}); expected the database of a search") from error


def open_study(
    storage: RDBStorage, network: str, start: TrainingConfig, request: TuneRequest, digest: str
) -> optuna.Study:
    """Begin or resume the search for a network; an InputError if the database holds one of other jobs or configs."""
    study = optuna.create_study(
        storage=storage, study_name=network, load_if_exists=True, pruner=optuna.pruners.MedianPruner()
    )
    search = {"data": request.data, "split": request.split, "seed": request.seed, "config": asdict(start)}
    search["jobs"] = digest
    known = study.user_attrs.get("search")
    if known is None:
        study.set_user_attr("search", search)
        known = search
    for name, value in search.items():
        if value != (found := known.get(name)):
            raise InputError(
                f"output holds a search for {network} with {name} {found}, not {value}; expected another output"
            )
    return study


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are complete, pruned, or failed by themselves, but not killed; in order."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "failure" in trial.user_attrs]


def _end_runs(study: optuna.Study, trial: FrozenTrial) -> None:
    """Mark the MLflow runs of a killed trial and of its search as killed."""
    client, run_id = MlflowClient(), trial.user_attrs.get("run_id")
    # Another server than then does not know them.
    with suppress(MlflowException):
        while run_id:
            run = client.get_run(run_id)
            if run.info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")
            run_id = run.data.tags.get("mlflow.parentRunId")


def _write_winners(storage: RDBStorage, path: Path) -> None:
    """Write the best values of every network that was searched in this folder, and the jobs they were found on."""
    winners: dict[str, dict[str, Any]] = {}
    found_on: dict[str, Any] = {}
    for network in set(optuna.get_all_study_names(storage)).intersection(NETWORKS):
        study = optuna.load_study(study_name=network, storage=storage)
        if study.get_trials(states=(TrialState.COMPLETE,)):
            winners[network] = study.user_attrs["search"]["config"] | study.best_params
            if "found_on" in study.user_attrs:
                found_on[network] = study.user_attrs["found_on"]
    with replacing(path) as file:
        file.write(json.dumps(winners | {"found_on": found_on}, indent=2, sort_keys=True) + "\n")
