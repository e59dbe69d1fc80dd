"""Ask an MLflow server by plain HTTP: small, quick, and without importing MLflow."""

import base64
import http.client
import json
import os
import re
import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError

T = TypeVar("T")

MAX_RESPONSE_BYTES = 4_194_304
PATIENCE_S = 15.0
"""For work that has no other way than the server, which may be busy."""

DOWNLOAD_PATIENCE = 10
"""How many times `calmlflow.settings.timeout_s` a file may take that keeps coming."""


class RegistryUnavailableError(CalmlflowError):
    """The registry could not be asked, or what it said cannot be used."""


class AccessDeniedError(CalmlflowError):
    """The registry answered, and wants other credentials: no reason to go on with an old version in silence."""


def check_reachable(uri: str) -> None:
    """Raise a RegistryUnavailableError where ``uri`` is that of an HTTP server, and none answers."""
    if uri.startswith(("http://", "https://")):
        _request(uri, "/health", PATIENCE_S)


def get_json(registry_uri: str, path: str) -> dict[str, Any] | None:
    """One GET request; None where the registry has no such model, stage, alias or endpoint."""
    shown = public_uri(registry_uri)
    status, body = _request(registry_uri, path, settings.timeout_s())
    # A server that has no such endpoint any more, as MLflow announces for stages.
    if status in (404, 405, 501) and b"RESOURCE_DOES_NOT_EXIST" not in body:
        return None
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RegistryUnavailableError(f"{shown} answered with status {status} and no JSON; expected an MLflow server")
    if status == 200:
        return answer
    # MLflow says RESOURCE_DOES_NOT_EXIST for an unknown model, and INVALID_PARAMETER_VALUE for an unknown alias.
    if answer.get("error_code") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return None
    raise RegistryUnavailableError(f"{shown} answered with status {status} ({answer.get('error_code')}); expected 200")


def get_bytes(registry_uri: str, path: str, limit: int) -> bytes | None:
    """A file by one GET request; None where the server has it not, or cannot reach it itself.

    Raises
    ------
    RegistryUnavailableError
        No answer in time, or more than ``limit`` bytes.
    """
    status, body = _request(registry_uri, path, settings.timeout_s(), limit, DOWNLOAD_PATIENCE)
    if status != 200:
        return None
    if len(body) > limit:
        raise RegistryUnavailableError(
            f"{public_uri(registry_uri)} answered with more than {limit:,} bytes; expected a file of a bundle"
        )
    return body


def within(seconds: float, work: Callable[[], T]) -> T:
    """What some work gives, or a TimeoutError if it takes longer; then it goes on unheeded until it ends by itself.

    A thread of its own is the one way to bound all that may wait: names being looked up, headers that trickle in.
    """
    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError
    found, error = ended[0]
    if error is not None:
        raise error
    return found  # type: ignore[return-value]


def _request(
    uri: str, path: str, timeout_s: float, limit: int = MAX_RESPONSE_BYTES, patience: float = 1
) -> tuple[int, bytes]:
    """Status and body (of at most ``limit`` bytes and one) of one GET request."""
    shown = public_uri(uri)
    try:
        status, body = within(timeout_s * patience, lambda: _get(uri, path, timeout_s, limit))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise RegistryUnavailableError(
            f"no MLflow server answers at {shown} ({reason}); expected one: set MLFLOW_TRACKING_URI, or start the "
            "embedded one with `calmlflow server --detach`"
        ) from None
    if status in (401, 403):
        raise AccessDeniedError(
            f"{shown} refused the request with status {status}; expected MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) of a user who may read the registry"
        )
    return status, body


def _get(uri: str, path: str, timeout: float, limit: int) -> tuple[int, bytes]:
    """The request itself; each wait for the other side takes at most ``timeout`` seconds."""
    address = urlsplit(uri)
    if address.scheme == "https":
        tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        connection = http.client.HTTPSConnection(address.hostname or "", address.port, timeout=timeout, context=tls)
    else:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)  # type: ignore[assignment]
    try:
        connection.request(
            "GET", address.path.rstrip("/") + path, headers=_authorization(address.username, address.password)
        )
        response = connection.getresponse()
        body = response.read(limit + 1)
        if response.length and len(body) <= limit:
            # http.client tells of a cut only where it reads without a limit.
            raise http.client.IncompleteRead(body, response.length)
        return response.status, body
    finally:
        connection.close()


def _authorization(username: str | None, password: str | None) -> dict[str, str]:
    """The header that MLflow's own client would send."""
    username = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(password or "")
    if username and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def public_uri(uri: str) -> str:
    """A URI without user and password, for logs and errors."""
    # Not urlsplit, which refuses some addresses that an error is about to speak of.
    return re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", uri)
