"""Where a search keeps its trials: one database in the output folder, for one search at a time.

What was under way when a search was killed is begun again by the next.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.settings import NETWORKS
from calmlflow.storage.files import replacing


@contextmanager
def open_storage(folder: Path) -> Iterator[optuna.storages.RDBStorage]:
    """The database of trials in a folder, which is made if need be and kept free of other searches meanwhile.

    Raises
    ------
    CalmlflowError
        The folder cannot be written, another search is at work in it, or its database is none of a search.
    """
    with _alone(folder):
        path = folder / "study.db"
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            try:
                yield storage
            finally:
                storage.remove_session()
                storage.engine.dispose()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise CalmlflowError(f"{path} cannot be used ({reason}); expected the database of a search") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "search.lock").open("a")
    except OSError as error:
        raise CalmlflowError(f"output {folder} cannot be written ({error.strerror}); expected a folder") from None
    with lock:
        try:
            # The kernel lets go when the process ends, however that comes.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CalmlflowError(f"another search is at work in {folder}; expected none, or another output") from None
        yield


def open_study(
    storage: optuna.storages.BaseStorage,
    network: str,
    search: Mapping[str, object],
    first: Mapping[str, float],
    run_id: str,
) -> optuna.Study:
    """The search for a network, begun or gone on with.

    Parameters
    ----------
    storage : BaseStorage
    network : str
    search : mapping
        What makes objectives comparable; ``config`` is the one that the search sets out from.
    first : mapping of str to float
        Values of the first trial.
    run_id : str
        The MLflow run that now goes on with the search.

    Raises
    ------
    InputError
        The database holds a search for this network that differs in ``search``.
    """
    study = optuna.create_study(
        storage=storage, study_name=network, load_if_exists=True, pruner=optuna.pruners.MedianPruner()
    )
    if "search" not in study.user_attrs:
        # In this order: killed in between, the next search finds the trial queued.
        study.enqueue_trial(dict(first), skip_if_exists=True)
        study.set_user_attr("search", dict(search))
    known = study.user_attrs["search"]
    if different := [name for name in search if search[name] != known[name]]:
        name = different[0]
        raise InputError(
            f"output holds a search for {network} with {name} {known[name]}, not {search[name]}; "
            "expected the same, or another output"
        )
    if study.user_attrs.get("run_id") != run_id:
        _clear_up_after_a_kill(study)
        study.set_user_attr("run_id", run_id)
    return study


def digest(jobs: pd.DataFrame) -> str:
    """Sixteen characters that tell one table of jobs from another."""
    return hashlib.sha256(pd.util.hash_pandas_object(jobs, index=False).to_numpy().tobytes()).hexdigest()[:16]


def ended_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to their end, in order: complete, pruned, or failed by themselves, but not killed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "failure" in trial.user_attrs]


def write_winners(storage: optuna.storages.BaseStorage, path: Path) -> None:
    """Write the best values of every network that was searched in this folder."""
    searched = set(optuna.get_all_study_names(storage))
    winners = {}
    for network in NETWORKS:
        if network in searched:
            study = optuna.load_study(study_name=network, storage=storage)
            if study.get_trials(states=(TrialState.COMPLETE,)):
                winners[network] = study.user_attrs["search"]["config"] | study.best_params
    with replacing(path) as file:
        file.write(json.dumps(winners, indent=2) + "\n")


def _clear_up_after_a_kill(study: optuna.Study) -> None:
    """End what the last search left open: nobody works at it any more, for the folder is ours alone.

    A killed trial is drawn again, from the same stream and so with the same values. Only the first, whose values were
    given, has to be queued again.
    """
    running = study.get_trials(states=(TrialState.RUNNING,))
    waiting = study.get_trials(states=(TrialState.WAITING,))
    for trial in running:
        values = trial.system_attrs.get("fixed_params")
        if values and not waiting:
            study.enqueue_trial(values)
        study.tell(trial.number, state=TrialState.FAIL)
    client = MlflowClient()
    for run_id in [trial.user_attrs.get("run_id") for trial in running] + [study.user_attrs.get("run_id")]:
        # Another server than then knows nothing of it.
        with suppress(MlflowException):
            if run_id and client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "KILLED")
