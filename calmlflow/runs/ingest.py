"""Ingest and copy job records, for the command line and as MLflow runs."""

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Literal

from calmlflow import settings
from calmlflow.console import progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.jobs.copy import Copied, copy
from calmlflow.jobs.events import read_event
from calmlflow.jobs.ingest import Ingested, ingest
from calmlflow.jobs.stores.open import open_store
from calmlflow.settings import hide_password, refuse_password
from calmlflow.storage.s3 import check_bucket

_SHOWN = 3


def parse_datasets(text: str, bucket: str) -> list[str] | Literal["new", "all"]:
    """Parse the option ``datasets``: new, all, names with commas, or a file of names or with a notification of S3."""
    if text in ("new", "all"):
        return "all" if text == "all" else "new"
    if not os.path.isfile(text):  # noqa: PTH113 - pathlib would raise for a long list of names
        names = [name for name in text.split(",") if name.strip()]
        if not names:
            raise InputError(f"datasets is {text!r}; expected new, all, names with commas between, or a file of names")
        return [parse_dataset(name).name for name in names]
    try:
        content = Path(text).read_text(encoding="utf-8-sig")
        if not content.lstrip().startswith("{"):
            return [parse_dataset(line).name for line in content.split("\n") if line.strip()]
        finished, refused = read_event(json.loads(content))
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{text} cannot be read; expected names of datasets, one a line, or a notification") from error
    if refused:
        raise refused[0]
    foreign = sorted({job.bucket for job in finished} - {bucket})
    if foreign:
        raise InputError(f"{text} names bucket {foreign[0]}; expected {bucket}")
    return [job.name for job in finished]


def ingest_jobs(bucket: str, datasets: str, store: str, retry_quarantine: bool) -> Ingested:
    """Read finished jobs into a store, with a progress bar; see `calmlflow.jobs.ingest.ingest`."""
    bucket = bucket.removeprefix("s3://").removesuffix("/")
    check_bucket(bucket)
    wanted = parse_datasets(datasets, bucket)
    with closing(open_store(store, create=True)) as opened, progress("ingesting", "jobs") as on_progress:
        return ingest(opened, bucket, wanted, retry_quarantine=retry_quarantine, on_progress=on_progress)


def check_complete(ingested: Ingested) -> None:
    """Raise a CalmlflowError where datasets are pending."""
    if ingested.pending:
        shown = "; ".join(list(ingested.pending.values())[:_SHOWN])
        more = f" and {len(ingested.pending) - _SHOWN:,} more" if len(ingested.pending) > _SHOWN else ""
        raise CalmlflowError(
            f"{len(ingested.pending):,} of {ingested.total:,} datasets are pending: {shown}{more}; the same command "
            "tries them again"
        )


def copy_jobs(source: str, target: str) -> Copied:
    """Copy records, with a progress bar; see `calmlflow.jobs.copy.copy`."""
    with progress("copying", "records") as on_progress:
        return copy(source, target, on_progress)


def ingest_in_run(bucket: str, datasets: str, store: str, retry_quarantine: bool) -> str:
    """`ingest_jobs` as an MLflow run, which is marked FAILED if datasets stay pending."""
    import mlflow

    from calmlflow.registry.tracking import log_new_params, tracked_run

    with tracked_run("ingest"):
        refuse_password(store)
        uri = settings.jobs_uri() if store == "default" else store
        params = {"bucket": bucket, "datasets": datasets, "store": store, "retry_quarantine": retry_quarantine}
        log_new_params({**params, "store_uri": hide_password(uri)})
        ingested = ingest_jobs(bucket, datasets, uri, retry_quarantine)
        mlflow.log_metrics(ingested.figures())
        check_complete(ingested)
        return str(ingested)


def copy_in_run(source: str, target: str) -> str:
    """`copy_jobs` as an MLflow run."""
    import mlflow

    from calmlflow.registry.tracking import log_new_params, tracked_run

    with tracked_run("copy"):
        for uri in (source, target):
            refuse_password(uri)
        log_new_params({"source": source, "target": target})
        copied = copy_jobs(source, target)
        mlflow.log_metrics(copied.figures())
        return str(copied)
