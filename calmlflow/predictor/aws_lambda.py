"""Handle calcloud's event and S3's notification of new control files on AWS Lambda."""

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
        ``{"Bucket", "Key", "Ipppssoot"}``, see `calmlflow.predictor.events.read_job`; or S3's notification of new
        objects under ``control/``, sent by S3 or by EventBridge.
    context : object
        Lambda's; ignored.

    Returns
    -------
    dict
        For one job the answer of `Predictor.predict`, or ``errorType`` and ``errorMessage`` if the event breaks a
        rule. For a notification ``{"answers": [...]}``, one for each record, in order: ``dataset`` with either of
        these.

    Raises
    ------
    CalmlflowError
        S3 or the registry is out of reach: Lambda counts the call as failed and tries again. For a notification only if
        no record was answered, so that a second try loses nothing; otherwise the error stands in the record's place,
        and in the log.
    """
    del context
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        use_json_logs()
    try:
        if is_notification(event):
            return {"answers": _answer_records(read_notification(event))}
        job = read_job(event)
        return _guarded(lambda: _answer(job))
    except InputError as error:
        # The answer to an event of S3 is read by nobody.
        log.warning("an event was refused: %s", error)
        return _error(error)


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
            answers.append({"dataset": name, **_error(error)})
            if isinstance(error, InputError):
                log.warning("a record of a notification was refused: %s", error)
            else:
                faults.append(error)
    if faults and all("errorType" in answer for answer in answers):
        raise faults[0]
    for fault in faults:
        log.error("a record of a notification was not answered: %s", fault)
    return answers


def _answer(job: ControlObject) -> dict[str, Any]:
    name = job.dataset.name
    if job.dataset.is_hap:
        # Answered even while registry and S3 are out of reach.
        return answer_mosaic(job.dataset, _emitter(settings.emit_uri()))
    return _predictor().predict(name, read_control_object(name, job.bucket, job.key))


def _error(error: CalmlflowError) -> dict[str, Any]:
    kind = "InputError" if isinstance(error, InputError) else type(error).__name__
    return {"errorType": kind, "errorMessage": str(error)}


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let documented errors pass; of any other, report type and place, because its text may quote data."""
    try:
        return work()
    except CalmlflowError:
        raise
    except Exception as error:
        where = place_of(error)
        log.error("internal error: %s", where)
        raise CalmlflowError(f"internal error ({where}); expected an answer: this is a bug of calmlflow") from error


# -- Kept by a Lambda instance between calls --------------------------------------------------------------------------


def _predictor() -> Predictor:
    """The process's predictor; a wrong setting is not the event's fault."""
    with _making:
        try:
            return _kept_predictor(settings.stage(), settings.policy_fallback())
        except InputError as error:
            raise CalmlflowError(str(error)) from error


@functools.lru_cache(maxsize=1)
def _kept_predictor(stage: str, policy_fallback: bool) -> Predictor:
    return Predictor(stage, policy_fallback=policy_fallback, emit=_emitter(settings.emit_uri()))


@functools.lru_cache(maxsize=1)
def _emitter(uri: str) -> Emitter | None:
    try:
        return open_emitter(uri) if uri else None
    except CalmlflowError as error:
        # A wrong setting costs the record, not the answer.
        log.error("predictions are not kept: %s", error)
        return None
