"""Predict many jobs from any table or store, with a progress bar."""

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq

from calmlflow import settings
from calmlflow.console import progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.predictions import store_predictions
from calmlflow.jobs.stores.base import JOBS, Source
from calmlflow.jobs.stores.open import is_database, open_source, open_store
from calmlflow.predictor.batch import BatchOutcome
from calmlflow.predictor.batch.row_groups import answer_part, parts_of
from calmlflow.predictor.predictor import Predictor
from calmlflow.registry.tracking import log_new_params, tracked_run
from calmlflow.runs.executor import LOCAL, Failure, executor, name_of
from calmlflow.settings import hide_password

ERRORS = Path("out/predictions.errors.csv")
"""Rows without an answer, if the answers go into a database."""

FETCH_S = 30.0
"""Many jobs are worth a wait for the version in the stage."""


def predict_in_run(data: str, output: str, stage: str, workers: int = 0, scheduler: str = LOCAL) -> str:
    """Predict a table as an MLflow run, which records the version that answered; see `predict_table`."""
    with tracked_run("predict"):
        log_new_params({"data": data, "output": output, "stage": stage, "workers": workers, "scheduler": scheduler})
        if is_folder(output):
            outcome = predict_parts(data, Path(output), stage, workers, scheduler)
        elif scheduler != LOCAL:
            raise InputError(f"output {output} is one place; expected the name of a folder for workers of {scheduler}")
        else:
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


def is_folder(output: str) -> bool:
    """Whether answers go to a folder, in parts: a path without the ending of a file."""
    return not re.match("[A-Za-z][A-Za-z0-9+.-]+:", output) and not Path(output).suffix


def predict_parts(data: str, output: Path, stage: str, workers: int = 0, scheduler: str = LOCAL) -> BatchOutcome:
    """Predict a Parquet file, or a folder of them, side by side into a folder that all workers see.

    All parts are answered by one version. They are named by order and content: parts that are there already are not
    answered again. An InputError where the folder holds others; a CalmlflowError names the first part that failed.
    """
    timeout_s = max(FETCH_S, settings.timeout_s())
    with executor(scheduler, workers) as run:
        version = Predictor(stage, timeout_s=timeout_s).serving.version or ""
        parts = parts_of(data, version, settings.registry_uri(), timeout_s)
        places = [output / f"part-{number:05d}-{name_of(part)}.parquet" for number, part in enumerate(parts)]
        if others := sorted({*output.glob("*.parquet")} - {*places}):
            raise InputError(f"{others[0]} is of other jobs or another version; expected an empty folder")
        missing = [(part, place) for part, place in zip(parts, places, strict=True) if not place.exists()]
        tasks = [{**part, "place": str(place.resolve())} for part, place in missing]
        warnings: Counter[str] = Counter()
        failed: list[str] = []
        with progress("predicting", "parts", len(parts)) as show:
            for done, (number, outcome) in enumerate(run(answer_part, tasks, None) if tasks else (), 1):
                if isinstance(outcome, Failure):
                    failed.append(f"{missing[number][1].name}: {outcome}")
                else:
                    warnings.update(outcome)
                show(len(parts) - len(tasks) + done)
        if failed:
            raise CalmlflowError(f"{len(failed)} of {len(parts)} parts failed; the first: {failed[0]}")
    answered = sum(pq.read_metadata(place).num_rows for place in places)
    rejected = sum(part["rows"] for part in parts) - answered
    errors = f"{output}/*.errors.csv" if rejected else None
    if not answered:
        raise InputError(f"no row of {data} can be answered; expected one at least: {errors or 'it has none'}")
    return BatchOutcome(str(output), answered, errors, rejected, version, dict(warnings))


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
