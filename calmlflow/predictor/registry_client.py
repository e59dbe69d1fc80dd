"""Ask an MLflow server by plain HTTP: small, quick, and without importing MLflow."""

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Container
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.settings import hide_password

T = TypeVar("T")

MAX_RESPONSE_BYTES = 4_194_304
PATIENCE_S = 15.0
"""For work that has no other way than the server, which may be busy."""


class RegistryUnavailableError(CalmlflowError):
    """The registry could not be asked, or what it said cannot be used."""


class NoEndpointError(RegistryUnavailableError):
    """What answered has no such endpoint: another MLflow, or no MLflow at all."""


class AccessDeniedError(CalmlflowError):
    """The registry answered, and wants other credentials."""


def is_http(uri: str) -> bool:
    """Whether a registry is an HTTP server, and not a database or a folder."""
    return uri.lower().startswith(("http://", "https://"))


def check_reachable(uri: str) -> None:
    """Raise a RegistryUnavailableError where ``uri`` is that of an HTTP server, and none answers."""
    if is_http(uri):
        _request(uri, "/health", PATIENCE_S)


def get_json(registry_uri: str, path: str, keys: Container[str]) -> dict[str, Any] | None:
    """One GET request; None where MLflow says that there is no such model, stage or alias.

    Parameters
    ----------
    registry_uri, path : str
    keys : container of str
        What the answer may hold: JSON of somebody else's is no answer of a registry.

    Raises
    ------
    NoEndpointError, AccessDeniedError, RegistryUnavailableError
    """
    shown = hide_password(registry_uri)
    status, body = _request(registry_uri, path, settings.timeout_s())
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    code = answer.get("error_code") if isinstance(answer, dict) else None
    # MLflow says RESOURCE_DOES_NOT_EXIST for an unknown model, and INVALID_PARAMETER_VALUE for an unknown alias.
    if status != 200 and code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return None
    if status in (404, 405, 501):
        raise NoEndpointError(f"{shown} answered with status {status}; expected an MLflow server's registry there")
    if not isinstance(answer, dict):
        raise RegistryUnavailableError(f"{shown} answered with status {status} and no JSON; expected an MLflow server")
    if status != 200:
        raise RegistryUnavailableError(f"{shown} answered with status {status} ({str(code)[:60]}); expected 200")
    if any(key not in keys for key in answer):
        raise RegistryUnavailableError(f"{shown} answered with status 200 and other JSON; expected an MLflow server")
    return answer


def get_bytes(registry_uri: str, path: str, limit: int, deadline: float) -> bytes | None:
    """A file by one GET request; None where the server has it not, or cannot reach it itself.

    Parameters
    ----------
    registry_uri, path : str
    limit : int
        Bytes at most.
    deadline : float
        Of `time.monotonic`. A file that keeps coming may take longer than `calmlflow.settings.timeout_s`.

    Raises
    ------
    RegistryUnavailableError
        No answer in time, or more than ``limit`` bytes.
    """
    patience_s = max(deadline - time.monotonic(), 0.0)
    status, body = _request(registry_uri, path, settings.timeout_s(), limit, patience_s)
    if status != 200:
        return None
    if len(body) > limit:
        raise RegistryUnavailableError(
            f"{hide_password(registry_uri)} answered with more than {limit:,} bytes; expected a file of a bundle"
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
    uri: str, path: str, timeout_s: float, limit: int = MAX_RESPONSE_BYTES, patience_s: float | None = None
) -> tuple[int, bytes]:
    """Status and body (of at most ``limit`` bytes and one) of one GET request.

    Each wait takes at most ``timeout_s``, and all of it ``patience_s``, by default as long.
    """
    shown = hide_password(uri)
    opened: list[socket.socket] = []
    try:
        patience_s = timeout_s if patience_s is None else patience_s
        status, body = within(patience_s, lambda: _get(uri, path, timeout_s, limit, opened))
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:
        for connected in opened:
            # A server that never comes to an end would keep thread and connection for ever.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
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


def _get(uri: str, path: str, timeout: float, limit: int, opened: list[socket.socket]) -> tuple[int, bytes]:
    """The request itself; each wait for the other side takes at most ``timeout`` seconds."""
    address = urlsplit(uri)
    host = address.hostname or ""
    if address.scheme == "https":
        connection: http.client.HTTPConnection
        connection = http.client.HTTPSConnection(host, address.port, timeout=timeout, context=_tls())
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=timeout)
    try:
        connection.connect()
        opened.append(connection.sock)
        headers = _authorization(address.username, address.password)
        connection.request("GET", address.path.rstrip("/") + path, headers=headers)
        response = connection.getresponse()
        body = response.read(limit + 1)
        if response.length and len(body) <= limit:
            # http.client tells of a cut only where it reads without a limit.
            raise http.client.IncompleteRead(body, response.length)
        return response.status, body
    finally:
        connection.close()


def _tls() -> ssl.SSLContext:
    """As MLflow's own client would have it."""
    tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        tls.load_cert_chain(certificate)
    return tls


def _authorization(username: str | None, password: str | None) -> dict[str, str]:
    """The header that MLflow's own client would send."""
    username = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(password or "")
    if username and password:
        return {"Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}
