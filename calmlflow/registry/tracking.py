"""Record a run in MLflow: parameters, epochs, lineage, environment."""

import hashlib
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
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from calmlflow import settings
from calmlflow.predictor.registry_client import check_reachable
from calmlflow.settings import refuse_password

VERSIONS = ("calmlflow", "keras", "mlflow", "numpy", "onnxruntime", "pandas", "scikit-learn", "tensorflow")


def connect(uri: str = "") -> None:
    """Point MLflow at `settings.tracking_uri`, and silence what it prints about itself.

    ``uri``, by default the tracking server, must answer, or a RegistryUnavailableError is raised; MLflow itself would
    try for minutes.
    """
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    # Job records hold no missing values, so integer columns are what they are.
    warnings.filterwarnings("ignore", message=".*Inferred schema contains integer column.*")
    warnings.filterwarnings("ignore", message=".*dataset source can be interpreted in multiple ways.*")
    # Its progress bars and links to runs would stand between lines meant for scripts.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    check_reachable(uri or settings.tracking_uri())
    mlflow.set_tracking_uri(settings.tracking_uri())


@contextmanager
def tracked_run(name: str, nested: bool = False) -> Iterator[mlflow.ActiveRun]:
    """Open a run, or take over the one that `mlflow run` opened; it is marked FAILED if the block raises."""
    taken_over = not nested and bool(os.environ.get("MLFLOW_RUN_ID"))
    if not nested:
        connect()
        if not taken_over and not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(settings.EXPERIMENT)
    with mlflow.start_run(run_name=name, nested=nested) as run:
        if not nested:
            # MLflow's kind of experiment for model training; in 3.17 the view chosen on its page comes before it.
            MlflowClient().set_experiment_tag(
                run.info.experiment_id, "mlflow.experimentKind", "custom_model_development"
            )
        if taken_over:
            mlflow.set_tag("mlflow.runName", name)
        yield run


def log_new_params(params: Mapping[str, Any]) -> None:
    """Log parameters, but for those that `mlflow run` has logged already: MLflow refuses another spelling."""
    for value in params.values():
        # Before anything of it goes to the server: parameters, tags and lineage come after this.
        refuse_password(str(value))
    run = mlflow.active_run()
    assert run is not None  # noqa: S101 - a caller without a run is a bug
    known = MlflowClient().get_run(run.info.run_id).data.params
    mlflow.log_params({name: value for name, value in params.items() if name not in known})


def environment_params() -> dict[str, str]:
    """Versions of the packages that the numbers depend on, and the git commit where there is one."""
    run = mlflow.active_run()
    commit = run.data.tags.get("mlflow.source.git.commit") if run else None
    found = {"version_python": platform.python_version(), "git_commit": commit or "unknown"}
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
    digest = hashlib.sha256(pd.util.hash_pandas_object(jobs, index=False).to_numpy().tobytes()).hexdigest()[:8]
    return from_pandas(jobs.reset_index(drop=True), source=origin, name=f"jobs-{context}", digest=digest)
