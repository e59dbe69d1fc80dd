"""Search for hyper-parameters by cross-validation on training jobs; the same command resumes an interrupted search."""

# The jobs that a training with the same split and seed holds out (a fifth) are never read. Trials are kept in
# ``study.db`` in the output folder: Optuna's own storage. Trials are drawn in generations of a fixed size, from what
# those before found, and scored side by side: numbers do not depend on how many run at once, or where.

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
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
from calmlflow.runs.data import held_out_folds
from calmlflow.runs.executor import LOCAL, Failure, Run, Task, executor
from calmlflow.runs.folds import Dealt, Fold, Source, deal, forget, score_folds
from calmlflow.runs.summary import Search, TuneOutcome
from calmlflow.settings import NETWORKS, parse_networks
from calmlflow.storage.files import LockedError, locked, replacing

FOLDS = 3
TEST_SIZE = 0.2  # as `main` does by default: with the same split and seed, the same jobs are held out
GENERATION = 8  # trials that are drawn at once
OBJECTIVES = {"mem_clf": "log_loss", "mem_reg": "error", "wall_reg": "error"}
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
KEPT = ".folds"
"""Hidden folder in the output that keeps the folds of trials that have not ended."""

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
    workers: int = 0
    scheduler: str = LOCAL


def tune(request: TuneRequest) -> TuneOutcome:
    """Search for the hyper-parameters of networks in one run, with one child run per trial.

    The winners go to ``config.json`` in the output folder, which `read_config` takes, and to the run's artifacts.
    Trials that an earlier search in that folder ended count; with equal arguments, an interrupted search ends with
    the numbers of one that was not interrupted. Raises an InputError where the folder holds another search, and a
    CalmlflowError where no trial of a network succeeds.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tracked_run("tune") as run, executor(request.scheduler, request.workers) as run_tasks:
        networks = parse_networks(request.network)
        if request.trials < 1:
            raise InputError(f"trials is {request.trials}; expected a whole number, 1 or more")
        starts = read_config(request.config)
        # By time the first fold is never held out. Another stream than the one that chose the test split.
        count = FOLDS + (request.split == "time")
        dealt = deal(Source(request.data, request.seed, TEST_SIZE, request.split, count, stream=1))
        data = dealt.data
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
                searches[network] = _search(study, network, starts[network], dealt, request, run_tasks)
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


def objective_of(network: str, scores: Mapping[str, float]) -> float:
    """The objective, see `OBJECTIVES`: log_loss of the classifier, error of a regressor.

    The error is the geometric mean of rmse, mae and log_mae, so that one per cent of each counts the same: large jobs
    dominate the first, small ones the last.
    """
    if network == "mem_clf":
        return scores["log_loss"]
    return float(np.exp(np.mean([np.log(scores[name]) for name in ("rmse", "mae", "log_mae")])))


def _search(
    study: optuna.Study, network: str, start: TrainingConfig, dealt: Dealt, request: TuneRequest, run_tasks: Run
) -> Search:
    """Run the missing trials for one network, that of the starting config first."""
    space = search_space(network, start)
    with progress(f"searching {network}", "trials", request.trials) as show:
        while (done := len(ended_trials(study))) < request.trials:
            show(done)
            if not done and not study.get_trials(states=(TrialState.WAITING,)):
                study.enqueue_trial({name: getattr(start, name) for name in space})
            end = min(done - done % GENERATION + GENERATION, request.trials)
            trials = [_draw(study, network, space, start, request.seed, number) for number in range(done, end)]
            tasks = _score(trials, dealt, request, run_tasks)
            for trial in trials:
                trial.log()
            # At once, so that none of a generation knows of another, not even after a kill.
            for trial in trials:
                trial.end(study)
            forget(tasks, Path(request.output, KEPT))
        show(done)
    ended = ended_trials(study)
    counts = {name: sum(trial.state == state for trial in ended) for name, state in STATES.items()}
    if not counts["complete"]:
        raise CalmlflowError(f"no trial of {network} succeeded out of {len(ended)}; expected one: see the child runs")
    first = ended[0].value if ended[0].state == TrialState.COMPLETE else None
    objective = OBJECTIVES[network]
    found = Search(objective, first, study.best_value, study.best_trial.number, counts)
    best = {f"best_{network}_{objective}": found.best, f"best_{network}_trial": found.trial}
    mlflow.log_metrics(best | {f"trials_{network}_{state}": count for state, count in counts.items()})
    return found


@dataclass
class _Trial:
    """A config that was drawn, and what it scored on its folds so far."""

    drawn: optuna.Trial
    network: str
    config: TrainingConfig
    scores: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""
    is_pruned: bool = False

    def add(self, outcome: Fold | Failure, is_last: bool) -> None:
        """Take the next fold; prune the trial where it does worse than the median of the generations before it."""
        if not isinstance(outcome, Fold):
            self.failure = str(outcome)
            return
        self.scores.append(outcome.scores)
        self.drawn.report(self.values()[-1], len(self.scores) - 1)
        self.is_pruned = not is_last and self.drawn.should_prune()

    def values(self) -> list[float]:
        """The objective after each fold: its mean so far."""
        values = [objective_of(self.network, scores) for scores in self.scores]
        return [float(np.mean(values[: count + 1])) for count in range(len(values))]

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return "failed" if self.failure else "pruned" if self.is_pruned else "complete"

    def log(self) -> None:
        """Log the trial as a child run."""
        number = self.drawn.number
        name = OBJECTIVES[self.network]
        with tracked_run(f"{self.network}-trial-{number:03d}", nested=True):
            mlflow.log_params({"network": self.network, "trial": number, **asdict(self.config)})
            for step, (scores, value) in enumerate(zip(self.scores, self.values(), strict=True)):
                mlflow.log_metrics({f"test_{score}": found for score, found in scores.items()}, step=step)
                mlflow.log_metric(name, value, step=step)
            mlflow.set_tag("trial_state", self.state)
            if self.failure:
                mlflow.set_tag("failure", self.failure)
                mlflow.end_run("FAILED")
                say(f"warning: trial {number} of {self.network} failed: {self.failure}")

    def end(self, study: optuna.Study) -> None:
        """Tell the study what became of the trial."""
        if self.failure:
            self.drawn.set_user_attr("failure", self.failure)
        study.tell(self.drawn, self.values()[-1] if self.state == "complete" else None, STATES[self.state])


def _draw(study: optuna.Study, network: str, space: Space, start: TrainingConfig, seed: int, number: int) -> _Trial:
    """Draw a config, from a stream of its own: a resumed search draws what an uninterrupted one would have drawn."""
    stream = np.random.SeedSequence((seed, number)).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(stream))
    trial = study.ask()
    run = mlflow.active_run()
    trial.set_user_attr("search_run", run.info.run_id if run else None)
    drawn: dict[str, Any] = {}
    for name, (low, high, log) in space.items():
        suggest: Any = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        drawn[name] = suggest(name, low, high, log=log)
    return _Trial(trial, network, replace(start, **drawn))


def _score(trials: Sequence[_Trial], dealt: Dealt, request: TuneRequest, run_tasks: Run) -> list[Task]:
    """Score trials fold by fold, those side by side that are still in the race; gives the tasks to forget."""
    folds, kept = held_out_folds(dealt.data.split, dealt.source.folds), Path(request.output, KEPT)
    tasks: list[Task] = []
    for step, fold in enumerate(folds):
        racing = [trial for trial in trials if not (trial.failure or trial.is_pruned)]
        of_step = [dealt.task(trial.network, trial.config, fold, request.seed + step) for trial in racing]
        tasks += of_step
        with closing(score_folds(run_tasks, dealt, of_step, kept)) as ended:
            for number, outcome in ended:
                racing[number].add(outcome, step == len(folds) - 1)
    return tasks


# -- The study --------------------------------------------------------------------------------------------------------


@contextmanager
def _open_storage(path: Path) -> Iterator[RDBStorage]:
    """Open the database of trials, or make it, for one search; its errors become a CalmlflowError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as ending:
            ending.enter_context(locked(path.with_name(".study.lock")))
            storage = RDBStorage(f"sqlite:///{path}")
            ending.callback(storage.engine.dispose)
            ending.callback(storage.remove_session)
            yield storage
    except LockedError as error:
        raise CalmlflowError(
            f"another search runs in {path.parent}; expected one at a time, or another output"
        ) from error
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
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # The search was killed: no other has the database open.
        study.tell(trial.number, state=TrialState.FAIL)
        _end_run(trial.user_attrs.get("search_run"))
    return study


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that are complete, pruned, or failed by themselves, but not killed; in order."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "failure" in trial.user_attrs]


def _end_run(run_id: str | None) -> None:
    """Mark the MLflow run of a killed search as killed."""
    # Another server than then does not know it.
    with suppress(MlflowException):
        if run_id and MlflowClient().get_run(run_id).info.status == "RUNNING":
            MlflowClient().set_terminated(run_id, "KILLED")


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
