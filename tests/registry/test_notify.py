"""A promotion is told to a URL: signed, tried again, and without a secret where it fails."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

import calmlflow
from calmlflow import settings
from calmlflow.errors import InputError
from calmlflow.registry import notify as notification
from calmlflow.registry.notify import check_notify, check_signature, notify
from tests.conftest import free_ports

SECRET = "grüße-of-a-test"
EVENT = {"version": 3, "model": "calcloud-predictor", "reason": "Größe", "previous_version": None, "forced": False}


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it is given, the last one for good, and keeps what it was told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = [200]
        self.told: list[tuple[str, dict[str, str], bytes]] = []
        self.released = threading.Event()
        self.drips = False

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.path, dict(self.headers), body))
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        if status == 0:
            # An answer, but byte by byte: the socket is never silent for long.
            with suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\n\r\n" if self.server.drips else b"":
                    self.wfile.write(bytes([byte]))
                    self.server.released.wait(0.1)
                self.server.released.wait(60)
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", f"{self.server.origin}/elsewhere")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("CALMLFLOW_NOTIFY_SECRET", SECRET)
    monkeypatch.setattr(notification, "PAUSE_S", 0.001)


def signature(secret: str, delivery_id: str, timestamp: str, body: bytes) -> str:
    """As the README of a receiver in another language would put it."""
    digest = hmac.new(secret.encode(), b".".join([delivery_id.encode(), timestamp.encode(), body]), hashlib.sha256)
    return "v1," + base64.b64encode(digest.digest()).decode()


def signed(body: bytes, timestamp: object = None, delivery_id: str = "an-id", secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(time.time()) if timestamp is None else timestamp)
    return {
        "X-Calmlflow-Delivery-Id": delivery_id,
        "X-Calmlflow-Timestamp": stamp,
        "X-Calmlflow-Signature": signature(secret, delivery_id, stamp, body),
    }


# -- Telling ----------------------------------------------------------------------------------------------------------


def test_an_event_is_delivered_and_can_be_verified(receiver):
    before = int(time.time())
    assert notify(f"{receiver.origin}/hooks/a?b=c", EVENT) is None
    ((path, headers, body),) = receiver.told
    assert path == "/hooks/a?b=c"
    assert json.loads(body) == EVENT
    # Compact, sorted, and UTF-8 as it is.
    assert body.startswith(b'{"forced":false,"model":"calcloud-predictor",')
    assert "Größe".encode() in body
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    delivery_id, timestamp = headers["X-Calmlflow-Delivery-Id"], headers["X-Calmlflow-Timestamp"]
    assert len(delivery_id) >= 32
    assert before <= int(timestamp) <= time.time()
    assert headers["X-Calmlflow-Signature"] == signature(SECRET, delivery_id, timestamp, body)
    assert check_signature(SECRET, headers, body)
    assert not check_signature("another", headers, body)
    notify(receiver.origin, EVENT)
    assert receiver.told[1][0] == "/"
    assert receiver.told[1][1]["X-Calmlflow-Delivery-Id"] != delivery_id


def test_mlflow_signs_the_same_way(receiver):
    from mlflow.webhooks.delivery import _generate_hmac_signature

    notify(receiver.origin, EVENT)
    ((_, headers, body),) = receiver.told
    parts = headers["X-Calmlflow-Delivery-Id"], headers["X-Calmlflow-Timestamp"], body.decode()
    assert headers["X-Calmlflow-Signature"] == _generate_hmac_signature(SECRET, *parts)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_status_of_2xx_is_success(receiver, status):
    receiver.statuses = [status]
    assert notify(receiver.origin, EVENT) is None
    assert len(receiver.told) == 1


@pytest.mark.parametrize("statuses", [[503, 200], [429, 500, 204]])
def test_a_busy_receiver_is_told_again_under_the_same_id(receiver, statuses):
    receiver.statuses = list(statuses)
    assert notify(receiver.origin, EVENT) is None
    assert len(receiver.told) == len(statuses)
    assert len({headers["X-Calmlflow-Delivery-Id"] for _, headers, _ in receiver.told}) == 1
    assert all(check_signature(SECRET, headers, body) for _, headers, body in receiver.told)


def test_after_three_times_it_is_given_up(receiver):
    receiver.statuses = [503]
    assert "(status 503)" in notify(receiver.origin, EVENT)
    assert len(receiver.told) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 302, 307, 308])
def test_what_is_refused_is_told_once_and_redirects_are_not_followed(receiver, status):
    receiver.statuses = [status, 200]
    assert notify(f"{receiver.origin}/first", EVENT) == (
        f"{receiver.origin} could not be told (status {status}); expected a status of 2xx: the stages stand as they are"
    )
    assert [path for path, _, _ in receiver.told] == ["/first"]


def test_nobody_there(receiver):
    (port,) = free_ports(1)
    assert "(ConnectionRefusedError)" in notify(f"http://127.0.0.1:{port}", EVENT)


@pytest.mark.parametrize("drips", [False, True])
def test_a_receiver_that_does_not_answer_in_time_is_given_up(receiver, drips):
    receiver.statuses, receiver.drips = [0], drips
    assert "(no answer in time)" in notify(receiver.origin, EVENT, timeout_s=0.3)
    assert len(receiver.told) == 3


def test_a_receiver_that_was_slow_once_is_told(receiver):
    receiver.statuses = [0, 200]
    assert notify(receiver.origin, EVENT, timeout_s=1) is None


def test_what_answers_no_http_is_one_sentence(receiver):
    # A TLS greeting to a server that speaks plain HTTP.
    problem = notify(receiver.origin.replace("http", "https"), EVENT)
    assert problem.startswith(receiver.origin.replace("http", "https"))
    assert "Error)" in problem


@pytest.mark.parametrize("url", ["http://[::1", "http://host:70000", "mailto:a@b", "http://h/\n", "http://a..b/"])
def test_nothing_is_raised_whatever_the_url(url):
    assert "could not be told" in notify(url, EVENT)


def test_a_reason_that_is_no_text_is_told_all_the_same(receiver):
    assert notify(receiver.origin, {"reason": "\udcff"}) is None
    assert json.loads(receiver.told[0][2]) == {"reason": "?"}


def test_user_and_password_go_to_the_receiver(receiver):
    assert notify(receiver.origin.replace("//", "//us%40er:pass%3Aword@"), EVENT) is None
    assert receiver.told[0][1]["Authorization"] == "Basic " + base64.b64encode(b"us@er:pass:word").decode()


@pytest.mark.parametrize("status", [404, 503, 0])
def test_no_secret_is_told_where_it_fails(receiver, status, caplog, capsys):
    receiver.statuses = [status]
    url = receiver.origin.replace("//", "//user:password@") + "/T0KEN/path?query=value#fragment"
    problem = notify(url, EVENT, timeout_s=0.2)
    assert problem.startswith(f"{receiver.origin} could not be told")
    shown = problem + caplog.text + "".join(capsys.readouterr())
    for hidden in ("user", "password", "T0KEN", "path", "query", "value", "fragment", SECRET):
        assert hidden not in shown


# -- Before anything is done ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8080", "https://hooks.example.org/a/b?c=d", "http://[::1]:9/x", "https://user:word@host/"],
)
def test_a_url_that_can_be_told_passes(url):
    check_notify(url)


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "hooks.example.org/T0KEN", "ftp://host/T0KEN", "http:///T0KEN", "http://", "http://:80/T0KEN",
        "http://host:port/T0KEN", "http://host:70000/T0KEN", "http://host:0/T0KEN", "http://[::1/T0KEN",
        "file:///T0KEN", "http://host/T0 KEN", "http://host/T0KEN\r\nX: y", "http://host/T0KENü",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_told_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match=r"^the URL to notify cannot be told; expected http://HOST/PATH") as caught:
        check_notify(url)
    assert "T0" not in str(caught.value)


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_secret_nothing_can_be_told(monkeypatch, value):
    monkeypatch.delenv("CALMLFLOW_NOTIFY_SECRET")
    if value is not None:
        monkeypatch.setenv("CALMLFLOW_NOTIFY_SECRET", value)
    with pytest.raises(InputError, match=r"^CALMLFLOW_NOTIFY_SECRET is not set; expected"):
        check_notify("http://host/")


def test_the_default_url_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("CALMLFLOW_NOTIFY_URL", raising=False)
    assert settings.notify_url() == ""
    monkeypatch.setenv("CALMLFLOW_NOTIFY_URL", "http://host/")
    assert settings.notify_url() == "http://host/"


# -- Receiving --------------------------------------------------------------------------------------------------------


def test_the_check_is_exported():
    assert calmlflow.check_signature is check_signature


def test_a_message_that_is_as_it_was_sent_is_good():
    headers = signed(b"{}")
    assert check_signature(SECRET, headers, b"{}")
    assert check_signature(SECRET, {name.upper(): value for name, value in headers.items()}, b"{}")
    assert check_signature(SECRET, {**headers, "Host": "x"}, b"{}")


@given(
    body=st.binary(max_size=60),
    delivery_id=st.text("0123456789abcdef-", min_size=1, max_size=40),
    age=st.integers(-250, 250),
)
def test_every_message_is_good_until_one_part_changes(body, delivery_id, age):
    headers = signed(body, int(time.time()) - age, delivery_id)
    assert check_signature(SECRET, headers, body)
    assert not check_signature(SECRET, headers, body + b" ")
    assert not check_signature(SECRET + "x", headers, body)
    for name, value in headers.items():
        # Another timestamp that is as fresh, another id, another signature.
        other = str(int(value) + 1) if name.endswith("Timestamp") else value[:-1] + ("A" if value[-1] != "A" else "B")
        assert not check_signature(SECRET, {**headers, name: other}, body)
        assert not check_signature(SECRET, {key: kept for key, kept in headers.items() if key != name}, body)


@pytest.mark.parametrize("offset", [-302, 302])
def test_an_old_message_is_not_good_nor_one_from_the_future(offset):
    headers = signed(b"{}", int(time.time()) + offset)
    assert not check_signature(SECRET, headers, b"{}")
    assert check_signature(SECRET, headers, b"{}", max_age_s=400)


@pytest.mark.parametrize("timestamp", ["", "x", "-1", "1e9", "٣", "9" * 5000, "nan"])
def test_a_timestamp_that_is_none_is_not_good(timestamp):
    assert not check_signature(SECRET, signed(b"{}", timestamp), b"{}", max_age_s=float("inf"))


def test_without_a_secret_no_message_is_good():
    assert not check_signature("", signed(b"{}", secret=""), b"{}")


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=30)))
def test_headers_of_any_kind_raise_nothing(headers):
    assert not check_signature(SECRET, headers, b"{}")
    changed = {**signed(b"{}"), "X-Calmlflow-Signature": "v1,\udcff"}
    assert not check_signature(SECRET, changed, b"{}")
