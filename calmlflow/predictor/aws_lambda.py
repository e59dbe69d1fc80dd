"""AWS Lambda handler: calcloud's event, or S3's notification of new control files."""

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.control import ControlObject, read_control_object
from calmlflow.predictor.emit import Emitter, open_emitter
from calmlflow.predictor.events import read_job, read_notification
from calmlflow.predictor.logs import place_of, use_json_logs
from calmlflow.predictor.predictor import Predictor, answer_mosaic
from calmlflow.storage.s3_events import is_notification

log = logging.getLogger(__name__)

_making = threading.Lock()


def handler(event: Any, context: object = None) -> dict[str, Any]:
    """Answer the job of an event, or those of a notification.

    Parameters
    ----------
    event : dict
        ``{"Bucket", "Key", "Ipppssoot"}``; ``Dataset`` is accepted for ``Ipppssoot``, and without ``Key`` (or with
        calcloud's ``control``) the control file's own key is used. Or S3's notification of new objects under
        ``control/``, sent by S3 or by EventBridge. What answers is set by ``CALMLFLOW_STAGE``, ``CALMLFLOW_BUNDLE``,
        ``CALMLFLOW_POLICY_FALLBACK`` and ``CALMLFLOW_EMIT``, see `calmlflow.settings`.
    context : object
        Lambda's; not used.

    Returns
    -------
    dict
        For one job the answer of `Predictor.predict`, or ``errorType`` and ``errorMessage`` for an event that cannot
        be answered. For a notification ``{"answers": [...]}``, one for each record, in order: ``dataset`` with either
        of these.

    Raises
    ------
    CalmlflowError
        The fault is not the event's (S3 or the registry is out of reach): Lambda counts the call as failed and tries
        again. Of a notification only where no record was answered, so that a second try loses nothing; else the fault
        stands in the record's place, and in the log.
    """
    del context
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        use_json_logs()
    return _guarded(lambda: _answer_event(event))


def _answer_event(event: Any) -> dict[str, Any]:
    try:
        if is_notification(event):
            return {"answers": _answer_records(read_notification(event))}
        return _answer(read_job(event))
    except InputError as error:
        # Of an event of S3's nobody reads the answer.
        log.warning("an event was refused: %s", error)
        return _told(error)


def _answer_records(jobs: list[ControlObject | InputError]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    faults: list[CalmlflowError] = []
    for job in jobs:
        name = None if isinstance(job, InputError) else job.dataset.name
        try:
            if isinstance(job, InputError):
                raise job
            answers.append({"dataset": name, **_guarded(functools.partial(_answer, job))})
        except CalmlflowError as error:
            answers.append({"dataset": name, **_told(error)})
            if isinstance(error, InputError):
                log.warning("a record of a notification was refused: %s", error)
            else:
                faults.append(error)
    if faults and all("errorType" in answer for answer in answers):
        raise faults[0] from None
    for fault in faults:
        log.error("a record of a notification was not answered: %s", fault)
    return answers


def _answer(job: ControlObject) -> dict[str, Any]:
    name = job.dataset.name
    if job.dataset.is_hap:
        # Needs neither registry nor S3, so it is answered while they are out of reach.
        return answer_mosaic(job.dataset, _emitter(settings.emit_uri()))
    return _predictor().predict(name, read_control_object(name, job.bucket, job.key))


def _told(error: CalmlflowError) -> dict[str, Any]:
    # Of an input error's kinds a caller need not know.
    kind = "InputError" if isinstance(error, InputError) else type(error).__name__
    return {"errorType": kind, "errorMessage": str(error)}


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let documented errors pass; any other is logged with its place, and raised without the data in its text."""
    try:
        return work()
    except CalmlflowError as error:
        raise error from None
    except Exception as error:
        where = place_of(error)
        log.error("internal error: %s", where)
        raise CalmlflowError(f"internal error ({where}); expected an answer: this is a bug of calmlflow") from None


# -- What one Lambda instance keeps between its calls ---------------------------------------------------------------


def _predictor() -> Predictor:
    """The process's predictor; what it cannot be made of is not the event's fault."""
    with _making:
        try:
            return _kept_predictor(settings.stage(), settings.policy_fallback())
        except InputError as error:
            raise CalmlflowError(str(error)) from None


@functools.lru_cache(maxsize=1)
def _kept_predictor(stage: str, policy_fallback: bool) -> Predictor:
    return Predictor(stage, policy_fallback=policy_fallback, emit=_emitter(settings.emit_uri()))


@functools.lru_cache(maxsize=1)
def _emitter(uri: str) -> Emitter | None:
    if not uri:
        return None
    try:
        return open_emitter(uri)
    except CalmlflowError as error:
        # Answers come first.
        log.error("predictions are not kept: %s", error)
        return None
