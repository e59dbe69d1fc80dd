"""AWS Lambda handler that ingests finished and failed jobs into the store that ``CALMLFLOW_JOBS`` names."""

import functools
import logging
from typing import Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.events import FinishedJob, is_batch_event, read_event, read_failure
from calmlflow.jobs.ingest import Ingested, ingest, ingest_failure
from calmlflow.jobs.stores.base import Store
from calmlflow.jobs.stores.open import open_store

log = logging.getLogger(__name__)
# Lambda's own level is WARNING.
log.setLevel(logging.INFO)


def handler(event: Any, context: object = None) -> dict[str, Any]:
    """Ingest the finished jobs of an event, or keep the job that Batch says has failed.

    Parameters
    ----------
    event : dict
        See `calmlflow.jobs.events.read_event` and `calmlflow.jobs.events.read_failure`.
    context : object
        Not used.

    Returns
    -------
    dict
        Number of ``datasets`` that were read, and of those ``stored``, ``updated``, ``unchanged``, ``older`` and
        ``quarantined``; ``reasons`` (kind of quarantine entry -> number), ``killed`` (kind of kill -> number), and
        ``refused``: faults of the event or of single records of it, which are not tried again.

    Raises
    ------
    CalmlflowError
        A job could not be read or stored; others of the event are stored. Lambda tries again, which is safe.
    """
    del context
    done, failed = Ingested(), None
    jobs: list[FinishedJob] = []
    refused: list[InputError] = []
    try:
        if is_batch_event(event):
            failed = read_failure(event)
        else:
            jobs, refused = read_event(event)
    except InputError as error:
        refused = [error]
    for refusal in refused:
        log.warning("refused: %s", refusal)
    if failed:
        done = ingest_failure(_store(settings.jobs_uri()), failed)
        log.info("%s: %s", failed.name, done)
    failures: list[str] = []
    for bucket in sorted({job.bucket for job in jobs}):
        # A bucket that fails keeps no job of another one from being stored.
        try:
            found = ingest(_store(settings.jobs_uri()), bucket, [job.name for job in jobs if job.bucket == bucket])
        except CalmlflowError as error:
            failures.append(str(error))
            continue
        log.info("%s: %s", bucket, found)
        done += found
    failures += done.pending.values()
    if failures:
        raise CalmlflowError(
            f"not all of {len(jobs)} finished jobs were read: {failures[0]}; this call is safe to repeat"
        )
    return {
        "datasets": done.total,
        **vars(done.counts),
        "reasons": done.reasons,
        "killed": done.killed,
        "refused": [str(refusal) for refusal in refused],
    }


@functools.lru_cache(maxsize=1)
def _store(uri: str) -> Store:
    """One store for all calls of an instance: opening it may take longer than a job."""
    return open_store(uri, create=True)
