"""One plain HTTP request to the registry, and everything that can be wrong with its answer."""

import base64
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError
from calmlflow.predictor.registry_client import (
    AccessDeniedError,
    NoEndpointError,
    RegistryUnavailableError,
    check_reachable,
    get_json,
)
from calmlflow.settings import hide_password
from tests.samples.predictor_samples import http_registry

MISSING = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def anonymous(monkeypatch):
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server():
    with http_registry() as found:
        yield found


def ask(server, status: int, body: bytes):
    server.answers["/path"] = status, body
    return get_json(server.uri, "/path", ("a",))


def test_an_answer_is_read(server):
    assert ask(server, 200, b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(("status", "body"), [(404, MISSING), (400, b'{"error_code": "INVALID_PARAMETER_VALUE"}')])
def test_what_the_registry_does_not_have_is_none(server, status, body):
    assert ask(server, status, body) is None


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"<html>"), (405, b""), (501, b"nothing"), (404, b'{"message": "no route"}'), (404, b"{}")],
)
def test_what_has_no_such_endpoint_is_told_from_what_holds_nothing(server, status, body):
    with pytest.raises(NoEndpointError, match=f"status {status}"):
        ask(server, status, body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"), (200, b""), (200, b"[]"), (200, b'{"b": 1}'),
        (200, b"\xff"), (200, b"[" * 100_000), (500, b"oops"), (500, b"{}"),
        (400, b'{"error_code": "BAD_REQUEST"}'), (302, b"{}"), (429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED"}'),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_told_with_the_server(server, status, body):
    with pytest.raises(RegistryUnavailableError, match=f"status {status}") as caught:
        ask(server, status, body)
    assert server.uri in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_an_error_of_its_own(server, status):
    with pytest.raises(AccessDeniedError, match=f"status {status}.*MLFLOW_TRACKING_USERNAME"):
        ask(server, status, MISSING)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:notaport", "http://127.0.0.1:99999", "http://[::1", "http://", "https://"]
)
def test_an_address_that_is_none_is_told(uri):
    with pytest.raises(RegistryUnavailableError, match="no MLflow server answers at"):
        get_json(uri, "/path", ())


def test_nobody_listens(ports):
    with pytest.raises(RegistryUnavailableError, match=rf"{ports[0]} \(ConnectionRefusedError\).*MLFLOW_TRACKING_URI"):
        get_json(f"http://127.0.0.1:{ports[0]}", "/path", ())


def test_a_server_that_takes_its_time_is_told(server, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    server.answers["/slow"] = None
    with pytest.raises(RegistryUnavailableError, match="no answer in time"):
        get_json(server.uri, "/slow", ())


def test_https_is_not_answered_by_plain_http(server):
    with pytest.raises(RegistryUnavailableError, match="SSLError"):
        get_json(server.uri.replace("http:", "https:"), "/path", ())


def test_a_path_before_the_api_is_kept(server):
    server.answers["/behind/proxy/path"] = 200, b'{"a": 1}'
    assert get_json(f"{server.uri}/behind/proxy/", "/path", ("a",)) == {"a": 1}


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_credentials_of_the_uri_are_sent_as_they_are_meant(server, username, password):
    from urllib.parse import quote

    server.authorizations.clear()
    server.answers["/path"] = 500, b"oops"
    uri = server.uri.replace("//", f"//{quote(username, safe='')}:{quote(password, safe='')}@")
    with pytest.raises(RegistryUnavailableError) as caught:
        get_json(uri, "/path", ())
    assert server.passwords() == {f"{username}:{password}"}
    assert str(caught.value).startswith(f"{hide_password(uri)} answered with status 500")


SECRET = "http://us%40er:p%2Fss%3Aw0rd@"


@pytest.mark.parametrize("answer", [(500, b"oops"), (401, b""), (200, b"<html>"), (400, b'{"error_code": "X"}'), None])
def test_no_error_tells_the_password(server, monkeypatch, answer):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    server.answers["/path"] = answer
    server.authorizations.clear()
    with pytest.raises(CalmlflowError) as caught:
        get_json(server.uri.replace("http://", SECRET), "/path", ())
    assert server.passwords() == {"us@er:p/ss:w0rd"}
    assert server.uri.removeprefix("http://") in str(caught.value)
    for part in ("us%40er", "us@er", "w0rd"):
        assert part not in str(caught.value)


@pytest.mark.parametrize("authority", ["127.0.0.1:notaport", "[::1", "127.0.0.1:9"])
def test_no_error_on_an_address_tells_the_password(authority):
    with pytest.raises(RegistryUnavailableError) as caught:
        get_json(SECRET + authority, "/path", ())
    assert "w0rd" not in str(caught.value)


def test_the_environment_comes_before_the_uri(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "operator")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    server.authorizations.clear()
    server.answers["/path"] = 200, b"{}"
    get_json(server.uri.replace("//", "//other:one@"), "/path", ())
    assert server.authorizations == ["Basic " + base64.b64encode(b"operator:secret").decode()]


def test_a_token_is_sent_where_there_is_no_password(server, monkeypatch):
    server.answers["/path"] = 200, b"{}"
    server.authorizations.clear()
    get_json(server.uri, "/path", ("a",))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    get_json(server.uri, "/path", ("a",))
    assert server.authorizations == ["", "Bearer token"]


def test_whether_a_server_answers(server, ports):
    server.answers["/health"] = 200, b"OK"
    check_reachable(server.uri)
    check_reachable("sqlite:///nothing.db")
    with pytest.raises(RegistryUnavailableError, match=str(ports[0])):
        check_reachable(f"http://127.0.0.1:{ports[0]}")


def test_no_thread_is_told_as_no_answer(server, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(RegistryUnavailableError, match="RuntimeError"):
        get_json(server.uri, "/path", ())


def test_a_request_that_was_given_up_leaves_no_thread(server, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    server.answers["/slow"] = None
    before = threading.active_count()
    for _ in range(5):
        with pytest.raises(RegistryUnavailableError):
            get_json(server.uri, "/slow", ())
    deadline = time.monotonic() + 20
    # The server's own threads go on until it has answered.
    while [thread.name for thread in threading.enumerate() if thread.daemon and "run" in thread.name]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert threading.active_count() <= before + 5
