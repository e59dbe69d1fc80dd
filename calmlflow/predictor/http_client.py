"""Send GET requests as MLflow's own client does, without importing it."""

# MLflow uses requests, whose import costs a fifth of a cold answer. Rules that are not MLflow's are those of requests.

import base64
import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from ipaddress import ip_address, ip_network
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from calmlflow import __version__, settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.settings import hide_password

T = TypeVar("T")

MAX_RESPONSE_BYTES = 4_194_304
MAX_REDIRECTS = 5
# A connection that is idle for longer may be cut by a firewall without a word.
IDLE_S = 4.0

TRUE = ("true", "1")
SERVER_CERTIFICATES = "MLFLOW_TRACKING_SERVER_CERT_PATH"
TLS_VARIABLES = ("MLFLOW_TRACKING_INSECURE_TLS", SERVER_CERTIFICATES, "MLFLOW_TRACKING_CLIENT_CERT_PATH")


class RegistryUnavailableError(CalmlflowError):
    """The registry does not answer, or its answer is unusable."""


class AccessDeniedError(CalmlflowError):
    """The registry refuses the credentials."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of ``work``, or raise a TimeoutError after ``seconds``; the work then ends unattended."""
    # Only a thread of its own bounds everything that may block, such as name lookup and headers that arrive slowly.
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer in {seconds:.3g} s") from error


def get(uri: str, path: str, timeout_s: float, limit: int = MAX_RESPONSE_BYTES) -> tuple[int, bytes]:
    """Status and body (at most ``limit`` bytes plus one) of one GET request that takes at most ``timeout_s``."""
    shown = hide_password(uri)
    address = _split(uri, f"the address {shown}")
    proxy = _proxy(address)
    send = _by_mlflow(reason) if (reason := _only_mlflow(proxy)) else _get
    asked = f"{shown} through the proxy {hide_password(proxy)}" if proxy else shown
    try:
        status, body, asked = within(timeout_s, lambda: send(uri, path, timeout_s, limit, asked))
    except CalmlflowError:
        raise
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:
        raise RegistryUnavailableError(_explain(error, asked, address, timeout_s)) from error
    if status == 403 and b"Invalid Host header" in body:
        raise AccessDeniedError(
            f"{asked} refuses the host name that it is asked by (status 403, Invalid Host header); expected one that "
            f"it was told of: `mlflow server --allowed-hosts {_host(address)}`, or MLFLOW_SERVER_ALLOWED_HOSTS there"
        )
    if status in (401, 403):
        user = "whom it knows" if status == 401 else "who may read it"
        raise AccessDeniedError(
            f"{asked} refused the request with status {status}; expected MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user {user}"
        )
    if status == 407:
        raise AccessDeniedError(f"{asked}: the proxy wants credentials (status 407); expected them in its address")
    return status, body


def _explain(error: Exception, asked: str, address: SplitResult, timeout_s: float) -> str:
    """The sentence that says why a request failed."""
    match error:
        case TimeoutError():
            return (
                f"{asked} gave no answer in time ({timeout_s:.3g} s); expected one: if the server is slow, raise "
                "CALMLFLOW_TIMEOUT"
            )
        case socket.gaierror():
            return (
                f"the name of the host of {asked} cannot be resolved; expected one that exists: set MLFLOW_TRACKING_URI"
            )
        case ssl.SSLCertVerificationError():
            return (
                f"{asked} has a certificate that is not trusted ({error.verify_message}); expected one for "
                "this host, signed by the system's authorities or those in MLFLOW_TRACKING_SERVER_CERT_PATH"
            )
        case ssl.SSLError():
            reason = error.reason or type(error).__name__
            return (
                f"TLS with {asked} failed ({reason}); expected an https server, and if it asks for a certificate "
                "MLFLOW_TRACKING_CLIENT_CERT_PATH"
            )
        case UnicodeError():
            return f"{asked} holds what no address may; expected http://HOST:PORT or https://HOST:PORT"
        case http.client.HTTPException() | ValueError():
            return (
                f"{asked} broke off, or its answer is no HTTP ({type(error).__name__}); expected an MLflow "
                f"server: does it speak {'http' if address.scheme == 'https' else 'https'}?"
            )
    tunnel = str(error).startswith("Tunnel connection failed")
    reason = str(error)[:100] if tunnel else getattr(error, "strerror", None) or type(error).__name__
    return (
        f"no MLflow server answers at {asked} ({reason}); expected one: set MLFLOW_TRACKING_URI, or start the embedded "
        "one with `calmlflow server --detach`"
    )


def _split(uri: str, what: str) -> SplitResult:
    """Parts of an address, or an error that calls it ``what``."""
    try:
        address = urlsplit(uri)
        known = bool(address.hostname) and not re.search(r"\s", uri) and address.port != 0
    except ValueError:
        known = False
    if known:
        return address
    raise RegistryUnavailableError(f"{what} cannot be read; expected http://HOST:PORT or https://HOST:PORT")


def _host(address: SplitResult) -> str:
    """Host and port, without user and password."""
    return address.netloc.rpartition("@")[2]


def _origin(address: SplitResult) -> tuple[str, int]:
    return address.scheme, address.port or (443 if address.scheme == "https" else 80)


# The last connection: process, server, proxy and TLS settings, and when it was used.
_idle: dict[tuple[Any, ...], tuple[http.client.HTTPConnection, float]] = {}


def _get(uri: str, path: str, timeout_s: float, limit: int, asked: str) -> tuple[int, bytes, str]:
    """Status, body, and who answered; follow redirects, but not to another host."""
    address = urlsplit(uri)
    headers = _headers(address)
    url = f"{address.scheme}://{_host(address)}{address.path.rstrip('/')}{path}"
    for _ in range(MAX_REDIRECTS):
        status, body, location = _exchange(url, headers, timeout_s, limit)
        if status not in (301, 302, 303, 307, 308) or not location:
            return status, body, asked
        # A query may hold a secret.
        shown = hide_password(urljoin(url, location).partition("?")[0]).removesuffix(path.partition("?")[0])
        new = _split(urljoin(url, location), f"{asked} redirects to {shown}, which")
        may_follow = os.environ.get("MLFLOW_ALLOW_HTTP_REDIRECTS", "true").lower() in TRUE
        if not may_follow or new.hostname != address.hostname or new.scheme not in ("http", "https"):
            raise RegistryUnavailableError(
                f"{asked} redirects to {shown}, and credentials are not sent to another host; expected an MLflow "
                "server: set MLFLOW_TRACKING_URI or MLFLOW_REGISTRY_URI to its new address"
            )
        change = _origin(urlsplit(url)), _origin(new)
        if change[0] != change[1]:
            asked = f"{asked}, redirected to {shown}"
            if change != (("http", 80), ("https", 443)):
                headers.pop("Authorization", None)
        url = f"{new.scheme}://{_host(new)}{new.path or '/'}{'?' * bool(new.query)}{new.query}"
    raise RegistryUnavailableError(f"{asked} redirects without end; expected an MLflow server")


def _exchange(url: str, headers: dict[str, str], timeout_s: float, limit: int) -> tuple[int, bytes, str]:
    """Status, body and ``Location`` of one request; the connection is kept for the next."""
    address = urlsplit(url)
    proxy = _proxy(address)
    target = url.removeprefix(f"{address.scheme}://{_host(address)}")
    if proxy and address.scheme == "http":
        target, headers = url, headers | _proxy_headers(proxy)
    key = (os.getpid(), address.scheme, _host(address), proxy, *map(os.environ.get, TLS_VARIABLES))
    connection, used_s = _idle.pop(key, (None, 0.0))
    if connection and 0 <= time.time() - used_s < IDLE_S:
        try:
            return _send(connection, target, headers, timeout_s, limit, key)
        except ConnectionError:
            # The server has closed it meanwhile.
            connection.close()
    return _send(_connect(address, proxy), target, headers, timeout_s, limit, key)


def _connect(address: SplitResult, proxy: str) -> http.client.HTTPConnection:
    place = urlsplit(proxy) if proxy else address
    host, port = place.hostname or "", place.port
    if address.scheme == "http":
        return http.client.HTTPConnection(host, port or 80)
    connection = http.client.HTTPSConnection(host, port or (80 if proxy else 443), context=_tls())
    if proxy:
        connection.set_tunnel(address.hostname or "", address.port or 443, _proxy_headers(proxy))
    return connection


def _send(
    connection: http.client.HTTPConnection,
    target: str,
    headers: dict[str, str],
    timeout_s: float,
    limit: int,
    key: tuple[Any, ...],
) -> tuple[int, bytes, str]:
    connection.timeout = timeout_s
    if connection.sock:
        connection.sock.settimeout(timeout_s)
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        body = response.read(limit + 1)
        if response.length and len(body) <= limit:
            # http.client reports a cut body only if it reads without a limit.
            raise http.client.IncompleteRead(body, response.length)
    except BaseException:
        connection.close()
        raise
    if response.isclosed():
        _idle[key] = connection, time.time()
    else:
        connection.close()
    return response.status, body, response.headers.get("Location", "")


# -- What the environment says of requests ----------------------------------------------------------------------------


def _tls() -> ssl.SSLContext:
    """TLS settings of MLflow's own client; an InputError names a variable that is wrong."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in TRUE
    if insecure and os.environ.get(SERVER_CERTIFICATES):
        raise InputError(f"MLFLOW_TRACKING_INSECURE_TLS and {SERVER_CERTIFICATES} are both set; expected one of them")
    tls, name = ssl.create_default_context(), ""
    try:
        for name in (SERVER_CERTIFICATES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            if (path := os.environ.get(name)) and not insecure:
                # These authorities take the place of the system's.
                file, folder = (None, path) if Path(path).is_dir() else (path, None)
                tls = ssl.create_default_context(cafile=file, capath=folder)
                break
        name = "MLFLOW_TRACKING_CLIENT_CERT_PATH"
        if path := os.environ.get(name):
            tls.load_cert_chain(path)
    except OSError as error:
        raise InputError(
            f"environment variable {name} names {path}, which cannot be used "
            f"({getattr(error, 'reason', None) or error.strerror}); expected a PEM file of certificates"
        ) from error
    if insecure:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return tls


def _headers(address: SplitResult) -> dict[str, str]:
    """The headers that MLflow's own client sends; credentials of ``.netrc`` and of the address come first, as there."""
    headers = {"User-Agent": f"calmlflow/{__version__}"}
    if workspace := settings.workspace():
        headers["X-MLFLOW-WORKSPACE"] = workspace
    credentials = _netrc(address.hostname or "") or _user(address)
    if not any(credentials):
        of_file = _credentials_file()
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        username, password = (os.environ.get(name) or of_file.get(name.lower(), "") for name in names)
        credentials = username, password
        if not all(credentials):
            name = "MLFLOW_TRACKING_TOKEN"
            if token := settings.check_header(name, os.environ.get(name, "")):
                headers["Authorization"] = f"Bearer {token}"
            return headers
    return headers | {"Authorization": _basic(*credentials)}


def _user(address: SplitResult) -> tuple[str, str]:
    """User and password in an address, which count together only."""
    if address.username is None or address.password is None:
        return "", ""
    return unquote(address.username), unquote(address.password)


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _credentials_file() -> dict[str, str]:
    """User and password in ``~/.mlflow/credentials``."""
    path = Path("~/.mlflow/credentials")
    try:
        text = path.expanduser().read_text()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return {}
    from configparser import ConfigParser, Error

    try:
        parsed = ConfigParser()
        parsed.read_string(text)
        return dict(parsed["mlflow"]) if "mlflow" in parsed else {}
    except Error as error:
        # Its text quotes the file.
        raise InputError(
            f"{path} does not parse ({type(error).__name__}); expected [mlflow], and below it mlflow_tracking_username "
            "and mlflow_tracking_password (a percent sign is written twice)"
        ) from None


def _netrc(host: str) -> tuple[str, str] | None:
    """User and password for a host in the file that ``NETRC`` names, or in ``~/.netrc``; None if it cannot be read."""
    named = os.environ.get("NETRC")
    try:
        places = [Path(place).expanduser() for place in ([named] if named is not None else ["~/.netrc", "~/_netrc"])]
        path = next((place for place in places if place.is_file()), None)
        login, account, password = (netrc(path).authenticators(host) if path else None) or ("", "", "")
    except (OSError, RuntimeError, ValueError, NetrcParseError):
        return None
    return (login or account or "", password or "") if login or account or password else None


def _proxy(address: SplitResult) -> str:
    """Address of the proxy that the environment names for a server; empty if none."""
    proxies = getproxies()
    found = proxies.get(address.scheme) or proxies.get("all", "")
    if not found or proxy_bypass(_host(address)):
        return ""
    for name in proxies.get("no", "").split(","):
        # Others are names, which have been compared.
        with contextlib.suppress(ValueError):
            if "/" in name and ip_address(address.hostname or "") in ip_network(name.strip(), strict=False):
                return ""
    found = found if "://" in found else f"http://{found}"
    _split(found, f"the proxy {hide_password(found)}")
    return found


def _proxy_headers(proxy: str) -> dict[str, str]:
    user = _user(urlsplit(proxy))
    return {"Proxy-Authorization": _basic(*user)} if any(user) else {}


# -- Requests that only MLflow can send -------------------------------------------------------------------------------


def _only_mlflow(proxy: str) -> str:
    """The variable or the proxy for which MLflow's own client must ask; empty if none."""
    if os.environ.get("MLFLOW_TRACKING_AUTH"):
        return "MLFLOW_TRACKING_AUTH"
    if os.environ.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in TRUE:
        return "MLFLOW_TRACKING_AWS_SIGV4"
    return f"the proxy {hide_password(proxy)}" if proxy and not proxy.startswith("http://") else ""


def _by_mlflow(reason: str) -> Callable[[str, str, float, int, str], tuple[int, bytes, str]]:
    """As `_get`, with MLflow's own client, which is imported here: that takes longer than a request may."""
    with contextlib.suppress(ModuleNotFoundError):
        import mlflow.tracking.request_header.registry
        import mlflow.utils.rest_utils  # noqa: F401

    def send(uri: str, path: str, timeout_s: float, limit: int, asked: str) -> tuple[int, bytes, str]:
        options = {"timeout": timeout_s, "max_retries": 0, "raise_on_status": False, "stream": True}
        try:
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            with http_request(get_default_host_creds(uri), path, "GET", **options) as response:
                return response.status_code, response.raw.read(limit + 1, decode_content=True), asked
        except ModuleNotFoundError as error:
            raise RegistryUnavailableError(
                f"{reason} needs the package {error.name}; expected it to be installed here"
            ) from error
        except Exception as error:
            # MLflow wraps what requests raises.
            words = hide_password(str(error.__context__ or error))[:200]
            raise RegistryUnavailableError(
                f"MLflow, which {reason} needs, cannot ask {asked} ({words}); expected an MLflow server"
            ) from error

    return send
