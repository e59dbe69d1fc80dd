"""Predict many jobs from any table or store, with a progress bar."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pyarrow as pa

from calmlflow import settings
from calmlflow.console import progress
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.predictions import store_predictions
from calmlflow.jobs.stores.base import JOBS, Source
from calmlflow.jobs.stores.open import is_database, open_source, open_store
from calmlflow.predictor.batch import BatchOutcome
from calmlflow.predictor.predictor import Predictor
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.settings import hide_password

ERRORS = Path("out/predictions.errors.csv")
"""Rows without an answer, if the answers go into a database."""

FETCH_S = 30.0
"""Many jobs are worth a wait for the version in the stage."""


def predict_in_run(data: str, output: str, stage: str) -> str:
    """Predict a table as an MLflow run, which records the version that answered; see `predict_table`."""
    with tracked_run("predict"):
        log_new_params({"data": data, "output": output, "stage": stage})
        outcome = predict_table(data, output, stage)
        mlflow.set_tag("predicted_by_version", outcome.version)
        mlflow.log_metrics({"jobs_answered": outcome.answered, "jobs_failed": outcome.failed})
        return str(outcome)


def predict_table(data: str, output: str | Path, stage: str) -> BatchOutcome:
    """Predict a table or store with the version in a stage, into a file or the predictions of a database."""
    if is_database(str(output)):
        return _into_store(data, str(output), stage)
    predictor = Predictor(stage, timeout_s=max(FETCH_S, settings.timeout_s()))
    with progress("predicting", "jobs") as on_progress:
        if _is_table(data):
            return predictor.predict_many(data, output, on_progress=on_progress)
        with closing(open_source(data)) as source:
            return predictor.predict_many(_batches(source), output, on_progress=on_progress)


def _into_store(data: str, uri: str, stage: str) -> BatchOutcome:
    # A database out of reach is reported before the work.
    open_store(uri, create=True).close()
    with tempfile.TemporaryDirectory(prefix="calmlflow-") as folder:
        file = Path(folder) / "predictions.parquet"
        outcome = predict_table(data, file, stage)
        store_predictions(file, uri, outcome.version)
        if outcome.errors:
            ERRORS.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(outcome.errors, ERRORS)
    return replace(outcome, output=hide_password(uri), errors=str(ERRORS) if outcome.errors else None)


def _batches(source: Source) -> Iterator[pa.RecordBatch]:
    for part in source.read(JOBS, ["ipst", *FEATURES]):
        yield from pa.Table.from_pandas(part, preserve_index=False).to_batches()


def _is_table(data: str) -> bool:
    """Tell a table from a store: a database, an archive, the folder of a training, or the sample."""
    if data.startswith("s3://"):
        return not data.lower().endswith((".zip", ".tgz", ".tar.gz", ".db", ".sqlite"))
    path = Path(data)
    if path.is_dir():
        return any(path.rglob("*.parquet"))
    return path.suffix.lower() in (".csv", ".parquet") and not re.match("(sample|[A-Za-z][A-Za-z0-9+.-]+):", data)
