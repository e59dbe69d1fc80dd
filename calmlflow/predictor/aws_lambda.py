"""Handle calcloud's event and S3's notification of new control files, also through SQS or SNS, on AWS Lambda."""

import functools
import logging
import math
import os
from typing import Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.control import ControlObject, read_control_object
from calmlflow.predictor.emit import Emitter, open_emitter
from calmlflow.predictor.events import read_job, read_message
from calmlflow.predictor.logs import place_of, use_json_logs
from calmlflow.predictor.predictor import Predictor, answer_mosaic
from calmlflow.storage.s3_events import EventError, handle_messages, is_notification

log = logging.getLogger(__name__)


def handler(event: Any, context: object = None) -> dict[str, Any]:
    """Answer the job of an event ``{"Bucket", "Key", "Ipppssoot"}``, or those of a notification of S3 or EventBridge,
    which may come inside messages of SQS or SNS.

    Gives for one job the answer of `Predictor.predict`, or ``errorType`` and ``errorMessage`` if the event breaks a
    rule; for a notification ``{"answers": [...]}``, for each record in order ``dataset`` with either of these,
    and for SQS ``batchItemFailures``, see `calmlflow.storage.s3_events.handle_messages`.
    Raises an EventError if the event is none of these, and a CalmlflowError, so that Lambda tries again, if S3 or the
    registry is out of reach. For a notification this holds only if no record was answered; otherwise the error stands
    in the record's place, and in the log.
    """
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        use_json_logs(emf_stage=settings.stage())
    _look_for_version(context)
    if is_notification(event):
        answers, failed = handle_messages(event, lambda inner: _answer_records(read_message(inner)))
        return {"answers": [answer for one in answers for answer in one], **failed}
    try:
        return _answer(read_job(event))
    except EventError:
        raise
    except InputError as error:
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
            answers.append({"dataset": name, **_answer(job)})
        except CalmlflowError as error:
            answers.append({"dataset": name, **_error(error)})
            if isinstance(error, InputError) and not isinstance(error, EventError):
                log.warning("a record of a notification was refused: %s", error)
            else:
                faults.append(error)
    lost = [fault for fault in faults if isinstance(fault, EventError)]
    if lost or (faults and all("errorType" in answer for answer in answers)):
        raise (lost or faults)[0]
    for fault in faults:
        log.error("a record of a notification was not answered: %s", fault)
    return answers


def _error(error: CalmlflowError) -> dict[str, Any]:
    kind = "InputError" if isinstance(error, InputError) else type(error).__name__
    return {"errorType": kind, "errorMessage": str(error)}


def _answer(job: ControlObject) -> dict[str, Any]:
    name = job.dataset.name
    try:
        if job.dataset.is_hap:
            # Answered even while registry and S3 are out of reach.
            return answer_mosaic(job.dataset, _emitter())
        return _predictor().predict(name, read_control_object(name, job.bucket, job.key))
    except CalmlflowError:
        raise
    except Exception as error:
        # A bug; its text may quote data.
        where = place_of(error)
        log.error("internal error: %s", where)
        raise CalmlflowError(f"internal error ({where}); expected an answer: this is a bug of calmlflow") from error


def _look_for_version(context: object) -> None:
    """Follow the registry within the call, as Lambda stops every thread with the answer; in half its time at most."""
    if _predictor.cache_info().currsize:
        left_ms = getattr(context, "get_remaining_time_in_millis", lambda: math.inf)()
        _predictor().look(min(settings.timeout_s(), left_ms / 2000))


@functools.cache
def _predictor() -> Predictor:
    """The predictor of a Lambda instance; a wrong setting is not the event's fault."""
    try:
        fallback, shadow = settings.policy_fallback(), settings.shadow_stage()
        return Predictor(settings.stage(), policy_fallback=fallback, emit=_emitter(), shadow=shadow)
    except InputError as error:
        raise CalmlflowError(str(error)) from error


@functools.cache
def _emitter() -> Emitter | None:
    uri = settings.emit_uri()
    try:
        return open_emitter(uri) if uri else None
    except CalmlflowError as error:
        # A wrong setting costs the record, not the answer.
        log.error("predictions are not kept: %s", error)
        return None
