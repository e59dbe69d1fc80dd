"""Tell a deployment that a version was promoted or rolled back: one signed POST of JSON."""

import base64
import hashlib
import hmac
import http.client
import json
import queue
import re
import ssl
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from calmlflow import settings
from calmlflow.errors import InputError

ATTEMPTS = 3
PAUSE_S = 0.5
TIMEOUT_S = 5.0
MAX_AGE_S = 300.0
"""How old a message may be when it is received."""

DELIVERY_ID, TIMESTAMP, SIGNATURE = "X-Calmlflow-Delivery-Id", "X-Calmlflow-Timestamp", "X-Calmlflow-Signature"


def check_notify(url: str) -> None:
    """See that a URL can be told, before anything is done that it is to be told of.

    Raises
    ------
    InputError
        It is no http or https URL, or there is no secret to sign with. The URL is not repeated: it may hold a token.
    """
    try:
        address = urlsplit(url)
        # To read a port checks it.
        known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        known = False
    if not known or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError("the URL to notify cannot be told; expected http://HOST/PATH or https://HOST/PATH, in ASCII")
    if not settings.notify_secret():
        raise InputError("CALMLFLOW_NOTIFY_SECRET is not set; expected the secret that messages are signed with")


def notify(url: str, event: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> str | None:
    """Tell a URL, three times at most; nothing that goes wrong on the way is raised.

    The body is JSON in UTF-8, signed as MLflow signs its own webhooks: the header ``X-Calmlflow-Signature`` is ``v1,``
    and the base64 of HMAC-SHA256 over ``{delivery id}.{timestamp}.{body}``; see `check_signature`. Attempts share their
    delivery id. Any status 2xx is success, redirects are not followed, 429 and 5xx are tried again.

    Parameters
    ----------
    url : str
        See `check_notify`.
    event : mapping
        What happened, ready for JSON.
    timeout_s : float
        For each attempt as a whole, default 5.

    Returns
    -------
    str or None
        Why it could not be told, with nothing of the URL but scheme, host and port; None if it was.
    """
    # What a shell passed on that is no text must not keep the rest from being told.
    body = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
    delivery_id, problem = str(uuid.uuid4()), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            DELIVERY_ID: delivery_id,
            TIMESTAMP: timestamp,
            SIGNATURE: _sign(settings.notify_secret(), delivery_id, timestamp, body),
        }
        answer = _post_in_time(url, body, headers, timeout_s)
        if isinstance(answer, int) and 200 <= answer < 300:
            return None
        problem = f"status {answer}" if isinstance(answer, int) else answer
        if isinstance(answer, int) and answer != 429 and answer < 500:
            break
    return f"{_origin(url)} could not be told ({problem}); expected a status of 2xx: the stages stand as they are"


def check_signature(secret: str, headers: Mapping[str, str], body: bytes, max_age_s: float = MAX_AGE_S) -> bool:
    """Whether a message comes from somebody who knows the secret, unchanged, and is fresh; for who receives it.

    Parameters
    ----------
    secret : str
        What ``CALMLFLOW_NOTIFY_SECRET`` is on the other side; without one, no message is good.
    headers : mapping of str to str
        Of the request; the case of names does not matter.
    body : bytes
        As received.
    max_age_s : float
        Seconds between the message's timestamp and this machine's clock, default 300. A message may arrive twice
        within them: tell repetitions by ``X-Calmlflow-Delivery-Id``, which the signature covers.

    Examples
    --------
    >>> if not check_signature(os.environ["SECRET"], request.headers, request.get_data()):
    ...     abort(401)
    """
    given = {name.lower(): value for name, value in headers.items()}
    delivery_id, timestamp, signature = (given.get(name.lower(), "") for name in (DELIVERY_ID, TIMESTAMP, SIGNATURE))
    is_number = timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 20
    if not secret or not is_number or abs(time.time() - int(timestamp)) > max_age_s:
        return False
    expected = _sign(secret, delivery_id, timestamp, body)
    # In constant time.
    return hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))


def _sign(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{delivery_id}.{timestamp}.".encode(errors="replace") + body
    digest = hmac.digest(secret.encode(errors="surrogateescape"), signed, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def _post_in_time(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> int | str:
    """Status of the answer, or why there is none."""
    answers: queue.SimpleQueue[int | str] = queue.SimpleQueue()

    def post() -> None:
        try:
            answers.put(_post(url, body, headers, timeout_s))
        except TimeoutError:
            answers.put("no answer in time")
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(type(error).__name__)

    # A socket's own timeout starts anew with every byte, and knows nothing of how long a name server takes.
    threading.Thread(target=post, daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return "no answer in time"


def _post(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> int:
    address = urlsplit(url)
    host = address.hostname or ""
    if address.scheme == "https":
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, address.port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=timeout_s)
    if address.username is not None:
        user = f"{unquote(address.username)}:{unquote(address.password or '')}"
        headers = {**headers, "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    try:
        connection.request("POST", target, body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _origin(url: str) -> str:
    """Scheme, host and port: user, path and query may be secrets."""
    found = re.match("(https?://)(?:[^/?#]*@)?([^/?#]+)", url)
    return found[1] + found[2] if found else "the URL to notify"
