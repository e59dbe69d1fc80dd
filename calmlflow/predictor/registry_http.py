"""Ask an MLflow server by plain HTTP: small, quick, and without importing MLflow."""

import base64
import http.client
import json
import os
import re
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError

MAX_RESPONSE_BYTES = 4_194_304
PATIENCE_S = 15.0
"""For work that has no other way than the server, which may be busy."""


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
    if status in (401, 403):
        raise AccessDeniedError(
            f"{shown} refused the request with status {status}; expected MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) of a user who may read the registry"
        )
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


def _request(uri: str, path: str, timeout: float) -> tuple[int, bytes]:
    """Status and body of one GET request."""
    shown = public_uri(uri)
    try:
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
            body = response.read(MAX_RESPONSE_BYTES)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise RegistryUnavailableError(
            f"no MLflow server answers at {shown} ({reason}); expected one: set MLFLOW_TRACKING_URI, or start the "
            "embedded one with `calmlflow server --detach`"
        ) from None
    return response.status, body


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
