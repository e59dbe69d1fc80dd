"""AWS Lambda handler that ingests finished and failed jobs into the store that ``CALMLFLOW_JOBS`` names."""

import functools
import logging
from typing import Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.events import is_batch_event, read_event, read_failure
from calmlflow.jobs.ingest import Ingested, ingest, ingest_failure
from calmlflow.jobs.stores.base import Store
from calmlflow.jobs.stores.open import open_store
from calmlflow.storage.s3_events import EventError, handle_messages

log = logging.getLogger(__name__)
# Lambda's own level is WARNING.
log.setLevel(logging.INFO)


def handler(event: Any, context: object = None) -> dict[str, Any]:
    """Ingest the finished jobs of an event, or keep the job that Batch says has failed.

    Parameters
    ----------
    event : dict
        See `calmlflow.jobs.events.read_event` and `calmlflow.jobs.events.read_failure`; also messages of SQS or
        SNS that hold such events.
    context : object
        Not used.

    Returns
    -------
    dict
        Number of ``datasets`` that were read, and of those ``stored``, ``updated``, ``unchanged``, ``older`` and
        ``quarantined``; ``reasons`` (kind of quarantine entry -> number), ``killed`` (kind of kill -> number), and
        ``refused``: faults of the event or of single records of it, which are not tried again. For SQS also
        ``batchItemFailures``, see `calmlflow.storage.s3_events.handle_messages`.

    Raises
    ------
    EventError
        The event is none of these.
    CalmlflowError
        A job could not be read or stored; others of the event are stored. Lambda tries again, which is safe.
    """
    del context
    handled, failed = handle_messages(event, _handle)
    done = sum((found for found, _ in handled), Ingested())
    return {
        "datasets": done.total,
        **done.counts.outcomes(),
        "reasons": done.reasons,
        "killed": done.killed,
        "refused": [str(refusal) for _, refused in handled for refusal in refused],
        **failed,
    }


def _handle(event: Any) -> tuple[Ingested, list[InputError]]:
    """Store the jobs of one event; also give what is refused of it."""
    try:
        if is_batch_event(event):
            failure = read_failure(event)
            done = ingest_failure(_store(settings.jobs_uri()), failure)
            log.info("%s: %s", failure.name, done)
            return done, []
        jobs, refused = read_event(event)
    except EventError:
        raise
    except InputError as error:
        log.warning("refused: %s", error)
        return Ingested(), [error]
    for refusal in refused:
        log.warning("refused: %s", refusal)
    done = Ingested()
    failures = [str(refusal) for refusal in refused if isinstance(refusal, EventError)]
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
    return done, refused


@functools.lru_cache(maxsize=1)
def _store(uri: str) -> Store:
    """One store for all calls of an instance: opening it may take longer than a job."""
    return open_store(uri, create=True)
