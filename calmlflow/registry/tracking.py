"""Record a run in MLflow: parameters, epochs, lineage, environment."""

import logging
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import PandasDataset, from_pandas
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.records import digest_of
from calmlflow.predictor.registry_client import RegistryUnavailableError, check_reachable
from calmlflow.registry.versions import check_named, explained
from calmlflow.settings import hide_password, refuse_password
from calmlflow.storage.files import replacing

VERSIONS = ("calmlflow", "keras", "mlflow", "numpy", "onnxruntime", "pandas", "scikit-learn", "tensorflow")


def connect(registry_only: bool = False) -> None:
    """Point MLflow at `settings.tracking_uri`, silence what it prints about itself, and bound its patience.

    A CalmlflowError where neither a variable nor a running embedded server names the tracking server (with
    ``registry_only`` the registry), or where it does not answer.
    """
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    # Job records hold no missing values, so integer columns are what they are.
    warnings.filterwarnings("ignore", message=".*Inferred schema contains integer column.*")
    warnings.filterwarnings("ignore", message=".*dataset source can be interpreted in multiple ways.*")
    # Its progress bars and links to runs would stand between lines meant for scripts.
    quiet = {"DISABLE_TELEMETRY": "true", "ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    quiet["SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    for name, value in {**{f"MLFLOW_{key}": value for key, value in quiet.items()}, **settings.MLFLOW_PATIENCE}.items():
        os.environ.setdefault(name, value)
    check_named("MLFLOW_TRACKING_URI", *(("MLFLOW_REGISTRY_URI",) if registry_only else ()))
    mlflow.set_tracking_uri(settings.tracking_uri())
    check_reachable(settings.registry_uri() if registry_only else settings.tracking_uri())
    if not registry_only:
        _end_left_runs()


def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing; a CalmlflowError where it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Another process was first.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise CalmlflowError(
            f"experiment {name} is deleted; expected it to be there: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


@contextmanager
def tracked_run(name: str, nested: bool = False) -> Iterator[mlflow.ActiveRun]:
    """Open a run, or take over the one that `mlflow run` opened; it is marked FAILED if the block raises.

    Where the server is gone by then, the next command that reaches it marks the run.
    """
    taken_over = "" if nested else os.environ.get("MLFLOW_RUN_ID", "")
    try:
        if not nested:
            connect()
            if not taken_over:
                own = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.EXPERIMENT
                mlflow.set_experiment(experiment_id=open_experiment(MlflowClient(), own))
        run = mlflow.start_run(run_name=name, nested=nested)
    except (MlflowException, RegistryUnavailableError) as error:
        if taken_over:
            _mark_failed(taken_over)
        # The run around a nested one was made, so the server is gone: that run says what is kept.
        if nested or not isinstance(error, MlflowException):
            raise
        raise explained(error, "a run", "make", "EDIT on the experiment") from error
    try:
        if not nested:
            # MLflow's kind of experiment for model training; in 3.17 the view chosen on its page comes before it.
            MlflowClient().set_experiment_tag(
                run.info.experiment_id, "mlflow.experimentKind", "custom_model_development"
            )
        if taken_over:
            mlflow.set_tag("mlflow.runName", name)
        yield run
        # A block may have ended it as FAILED, and the run around it goes on.
        if (active := mlflow.active_run()) and active.info.run_id == run.info.run_id:
            mlflow.end_run()
    except BaseException as error:
        is_marked = _mark_failed(run.info.run_id)
        if is_marked or nested or isinstance(error, CalmlflowError) or not isinstance(error, Exception):
            raise
        raise CalmlflowError(
            f"the MLflow server at {hide_password(settings.tracking_uri())} stopped answering; expected it until the "
            f"end{''.join(f', and {note}' for note in getattr(error, '__notes__', ()))}: start it again and repeat the "
            f"command, which marks run {run.info.run_id} as FAILED"
        ) from error


@contextmanager
def noting(text: str) -> Iterator[None]:
    """Add to whatever fails in the block what a user should know, for `tracked_run` to say."""
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def _mark_failed(run_id: str) -> bool:
    """Mark a run FAILED, or note that the next command has to."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    patience = os.environ.get(name)
    # Whoever failed has waited already.
    os.environ[name] = "0"
    try:
        active = mlflow.active_run()
        if active and active.info.run_id == run_id:
            mlflow.end_run("FAILED")
        else:
            MlflowClient().set_terminated(run_id, "FAILED")
    except MlflowException:
        with replacing(_left_runs() / run_id, private=True) as file:
            file.write(hide_password(settings.tracking_uri()))
        return False
    finally:
        os.environ.pop(name)
        if patience is not None:
            os.environ[name] = patience
    return True


def _left_runs() -> Path:
    return settings.home() / "unfinished-runs"


def _end_left_runs() -> None:
    """Mark the runs of this server that an outage left RUNNING."""
    for note in _left_runs().glob("[0-9a-f]*"):
        # Another process may do the same.
        with suppress(OSError):
            if note.read_text(encoding="utf-8") == hide_password(settings.tracking_uri()):
                # The run may have been deleted.
                with suppress(MlflowException):
                    MlflowClient().set_terminated(note.name, "FAILED")
                note.unlink()


def log_new_params(params: Mapping[str, Any]) -> None:
    """Log parameters, but for those that `mlflow run` has logged already: MLflow refuses another spelling."""
    for value in params.values():
        # Before anything of it goes to the server: parameters, tags and lineage come after this.
        refuse_password(str(value))
        if (shown := str(value).encode(errors="replace").decode()) != str(value):
            raise InputError(f"the value {shown[:80]!r} is not UTF-8; expected text that is")
    run = mlflow.active_run()
    assert run is not None  # noqa: S101 - a caller without a run is a bug
    known = MlflowClient().get_run(run.info.run_id).data.params
    mlflow.log_params({name: value for name, value in params.items() if name not in known})


def environment_params() -> dict[str, str]:
    """Versions of the packages that the numbers depend on, the ladder, and the git commit where there is one."""
    run = mlflow.active_run()
    commit = run.data.tags.get("mlflow.source.git.commit") if run else None
    found = {"version_python": platform.python_version(), "git_commit": commit or "unknown", "ladder": LADDER.version}
    for package in VERSIONS:
        with suppress(ModuleNotFoundError):
            found[f"version_{package.replace('-', '_')}"] = version(package)
    return found


def log_history(history: Mapping[str, np.ndarray]) -> None:
    """Log one metric per epoch and column, in as few requests as the server allows."""
    run = mlflow.active_run()
    assert run is not None  # noqa: S101
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, epoch) for name, values in history.items() for epoch, value in enumerate(values)
    ]
    for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        MlflowClient().log_batch(run.info.run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])


def lineage(jobs: pd.DataFrame, source: str, context: str) -> PandasDataset:
    """The jobs of a run for `mlflow.log_input`: schema, size and a digest of the rows."""
    # MLflow knows files; what it cannot resolve (a sample, a store) is noted by the URI that our reader takes.
    is_file = not source.startswith("sample") and Path(source).exists()
    origin = source if is_file else CodeDatasetSource(tags={"calmlflow.data": source})
    # MLflow's own digest looks at the first rows only.
    digest = digest_of(jobs)[:8]
    return from_pandas(jobs.reset_index(drop=True), source=origin, name=f"jobs-{context}", digest=digest)
