"""Job records on their way: ingest and copy, on the command line and as MLflow runs."""

import json
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

_MAX_LIST_BYTES = 64 << 20
_SHOWN = 3


def parse_datasets(text: str, bucket: str) -> list[str] | Literal["new", "all"]:
    """What `calmlflow.jobs.ingest.ingest` is to read.

    Parameters
    ----------
    text : str
        ``new``, ``all``, names with commas between, or a file with a name on each line, or with a notification of S3.
    bucket : str
        That a notification must be of.

    Raises
    ------
    InputError
        A name is no dataset's, or the file is none of these.
    """
    if text in ("new", "all"):
        return "all" if text == "all" else "new"
    if _is_file(text):
        return _read_list(Path(text), bucket)
    names = [parse_dataset(name).name for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"datasets is {text!r}; expected new, all, names with commas between, or a file of names")
    return names


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:
        # Many names are longer than a file's may be.
        return False


def _read_list(path: Path, bucket: str) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_LIST_BYTES + 1)
        if len(content) > _MAX_LIST_BYTES:
            raise InputError(f"{path} is larger than {_MAX_LIST_BYTES} bytes; expected names of datasets, one a line")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected names of datasets, one a line") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; expected names of datasets, one a line") from None
    if text.lstrip().startswith("{"):
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{path} is no JSON; expected a notification of S3, or names, one a line") from None
        finished, refused = read_event(event)
        if refused:
            raise refused[0]
        foreign = sorted({job.bucket for job in finished} - {bucket})
        if foreign:
            raise InputError(f"{path} tells of bucket {foreign[0]}; expected {bucket}")
        return [job.name for job in finished]
    return [parse_dataset(line).name for line in text.split("\n") if line.strip()]


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
    with (
        closing(open_store(source)) as one,
        closing(open_store(target, create=True)) as other,
        progress("copying", "records") as on_progress,
    ):
        return copy(one, other, on_progress)


# -- As MLflow runs -------------------------------------------------------------------------------------------------


def ingest_in_run(bucket: str, datasets: str, store: str, retry_quarantine: bool) -> str:
    """`ingest_jobs`, written down; a run in which something stays pending is marked FAILED."""
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
    """`copy_jobs`, written down."""
    import mlflow

    from calmlflow.registry.tracking import log_new_params, tracked_run

    with tracked_run("copy"):
        for uri in (source, target):
            refuse_password(uri)
        log_new_params({"source": source, "target": target})
        copied = copy_jobs(source, target)
        mlflow.log_metrics(copied.figures())
        return str(copied)
