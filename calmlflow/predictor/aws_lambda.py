"""AWS Lambda handler with calcloud's event."""

import functools
import time
from typing import Any

from calmlflow import settings
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import InputError
from calmlflow.predictor.control import read_control_object
from calmlflow.predictor.predictor import Predictor, mosaic_policy

REFRESH_S = 300
"""Seconds after which a warm instance looks for a new version in its stage."""


def handler(event: dict[str, Any], context: object = None) -> dict[str, Any]:
    """Answer the job of an event.

    Parameters
    ----------
    event : dict
        ``{"Bucket", "Key", "Ipppssoot"}``; ``Dataset`` is accepted for ``Ipppssoot``, and without ``Key`` (or with
        calcloud's ``control``) the control file's own key is used. The stage is ``CALMLFLOW_STAGE``, default
        Production.
    context : object
        Lambda's; not used.

    Returns
    -------
    dict
        The answer of `Predictor.predict`, or ``errorType`` and ``errorMessage`` for an event that cannot be answered.

    Raises
    ------
    CalmlflowError
        The fault is not the event's (S3 or the registry is out of reach): Lambda counts the call as failed and tries
        again.
    """
    del context
    try:
        dataset, bucket, key = _read_event(event)
        if parse_dataset(dataset).is_hap:
            return mosaic_policy()
        predictor = _predictor(settings.stage(), int(time.monotonic() // REFRESH_S))
        return predictor.predict(dataset, read_control_object(dataset, bucket, key))
    except InputError as error:
        return {"errorType": type(error).__name__, "errorMessage": str(error)}


def _read_event(event: object) -> tuple[str, str, str | None]:
    expected = 'expected {"Bucket": ..., "Key": ..., "Ipppssoot": ...}'
    if not isinstance(event, dict):
        raise InputError(f"the event is a {type(event).__name__}; {expected}")
    dataset = event.get("Ipppssoot") or event.get("Dataset")
    bucket, key = event.get("Bucket"), event.get("Key")
    for name, value in (("Ipppssoot", dataset), ("Bucket", bucket)):
        if not isinstance(value, str) or not value:
            raise InputError(f"the event has no {name}; {expected}")
    if key is not None and not isinstance(key, str):
        raise InputError(f"the event's Key is {key!r}; {expected}")
    return str(dataset), str(bucket), None if key in (None, "", "control") else key


@functools.lru_cache(maxsize=1)
def _predictor(stage: str, period: int) -> Predictor:
    """A Predictor kept warm between calls of one Lambda instance; a new period asks the registry again."""
    del period
    return Predictor(stage)
