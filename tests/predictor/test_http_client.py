"""Requests as MLflow's own client sends them, redirects, proxies and TLS, and what each fault is called."""

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor import http_client
from calmlflow.predictor.http_client import AccessDeniedError, RegistryUnavailableError, get, within
from tests.samples.http_server import serving

PATH = "/api/2.0/mlflow/registered-models/alias?name=a&alias=b"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
MLFLOW = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "INSECURE_TLS", "SERVER_CERT_PATH", "CLIENT_CERT_PATH")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An environment that says nothing, with an empty home."""
    others = "NETRC", "MLFLOW_WORKSPACE", "MLFLOW_ALLOW_HTTP_REDIRECTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"
    lower = map(str.lower, PROXIES)
    for name in (*PROXIES, *lower, *others, *(f"MLFLOW_TRACKING_{name}" for name in MLFLOW)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@dataclass
class Server:
    """What a server answers everywhere, and what it was asked; it keeps connections."""

    uri: str = ""
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    callers: set = field(default_factory=set)
    hang_up: bool = False
    late: threading.Event | None = None


@pytest.fixture
def stub() -> Iterator[Server]:
    found = Server()
    with serving(handler_of(found)) as found.uri:
        yield found
        if found.late:
            found.late.set()


def handler_of(stub: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_GET(self) -> None:
            names = ("Host", "Authorization", "Proxy-Authorization", "X-MLFLOW-WORKSPACE")
            stub.asked.append({"target": self.path} | {name: self.headers[name] for name in names})
            stub.callers.add(self.client_address)
            if stub.late:
                stub.late.wait(5)
            self.send_response(stub.status)
            for name, value in {"Content-Length": str(len(stub.body)), **stub.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(stub.body)
            self.close_connection = stub.hang_up

        def log_message(self, *words: object) -> None:
            pass

    return Handler


# -- The same requests as MLflow's ---------------------------------------------------------------------------------


def ask_mlflow(uri: str) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    http_request(get_default_host_creds(uri), PATH, "GET", max_retries=0)


USER = {"MLFLOW_TRACKING_USERNAME": "operator", "MLFLOW_TRACKING_PASSWORD": "p:ä%"}
TOKEN = {"MLFLOW_TRACKING_TOKEN": "a.token"}
FILE = {"~/.mlflow/credentials": "[mlflow]\nmlflow_tracking_username = reader\nMLFLOW_TRACKING_PASSWORD = of=file\n"}
OTHER = {"~/.mlflow/credentials": "[default]\nmlflow_tracking_username = reader\nmlflow_tracking_password = p\n"}
NETRC = {"~/.netrc": "machine 127.0.0.1 login net password rc\n"}


@pytest.mark.parametrize(
    ("around", "user"),
    [
        ({}, ""), (USER, ""), (TOKEN, ""), (USER | TOKEN, ""), (USER | FILE, ""), (FILE | TOKEN, ""), (OTHER, ""),
        (FILE | {"MLFLOW_TRACKING_USERNAME": "operator"}, ""), (TOKEN | {"MLFLOW_TRACKING_USERNAME": "operator"}, ""),
        (USER, "other:a%40b@"), (TOKEN, "other@"), (NETRC | USER, "other:one@"), (NETRC | TOKEN, ""),
        ({"~/.netrc": "machine elsewhere login net password rc\n"} | USER, ""),
        ({"~/.netrc": "default login net password rc\n"} | USER, ""),
        ({"~/.netrc": "machine\n"} | USER, ""), ({"~/_netrc": NETRC["~/.netrc"]}, ""),
        (NETRC | {"NETRC": "~/named", "~/named": "machine 127.0.0.1 account a password rc\n"}, ""),
        (NETRC | {"NETRC": "~/missing"}, ""),
        ({"MLFLOW_WORKSPACE": " hst-cal\n"}, ""), ({"MLFLOW_WORKSPACE": " "} | USER, ""),
        ({"HTTP_PROXY": "{stub}"}, ""), ({"http_proxy": "127.0.0.1:{port}"} | USER, ""),
        ({"ALL_PROXY": "http://u%40x:p@127.0.0.1:{port}"} | USER, ""),
        ({"HTTPS_PROXY": "http://127.0.0.1:1"}, ""),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, ""),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "a.org, b.org/c,127.0.0.0/8"}, ""),
        ({"HTTP_PROXY": "http://127.0.0.1:1", "no_proxy": "*"}, ""),
    ],
)  # fmt: skip
def test_a_request_is_that_of_mlflow(stub, home, monkeypatch, around, user):
    for name, value in around.items():
        if name.startswith("~/"):
            file = home / name[2:]
            file.parent.mkdir(exist_ok=True)
            file.write_text(value)
        else:
            monkeypatch.setenv(name, value.format(stub=stub.uri, port=stub.uri.rpartition(":")[2]))
    uri = stub.uri.replace("//", f"//{user}")
    ask_mlflow(uri)
    get(uri, PATH, 5)
    by_mlflow, by_us = stub.asked
    assert by_us == by_mlflow


def test_connections_are_kept_and_made_anew(stub):
    for _ in range(3):
        get(stub.uri, PATH, 5)
    assert len(stub.callers) == 1
    stub.hang_up = True
    get(stub.uri, PATH, 5)
    # The connection is gone, unless the client has seen that.
    assert get(stub.uri, PATH, 5) == (200, b"{}")
    assert len(stub.asked) == 5


def test_a_plugin_of_mlflows_signs(stub, monkeypatch):
    from mlflow.tracking.request_auth import registry

    class Signing:
        def get_name(self):
            return "signing"

        def get_auth(self):
            return lambda request: request.headers.update({"Authorization": "signed"}) or request

    plugins = registry._request_auth_provider_registry
    monkeypatch.setattr(plugins, "_registry", [*plugins._registry, Signing()])
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "signing")
    stub.body = b"0123456789"
    assert get(stub.uri, PATH, 20, 3) == (200, b"0123")
    assert stub.asked[0]["Authorization"] == "signed"


# -- Redirects -----------------------------------------------------------------------------------------------------


@pytest.fixture
def balancer(stub) -> Iterator[Server]:
    """A server that sends everybody to ``stub``."""
    found = Server(status=308, headers={"Location": stub.uri + PATH})
    with serving(handler_of(found)) as found.uri:
        yield found


def test_a_redirect_is_followed_on_one_host_without_credentials(stub, balancer, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "hst-cal")
    assert get(balancer.uri, PATH, 5) == (200, b"{}")
    assert [asked["Authorization"] for asked in balancer.asked + stub.asked] == ["Bearer secret", None]
    assert (stub.asked[0]["target"], stub.asked[0]["X-MLFLOW-WORKSPACE"]) == (PATH, "hst-cal")
    stub.status = 401
    with pytest.raises(AccessDeniedError, match=f"^{balancer.uri}, redirected to {stub.uri} refused"):
        get(balancer.uri, PATH, 5)


def test_credentials_stay_where_only_the_path_changes(balancer, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    balancer.headers = {"Location": "/other?a=b"}
    with pytest.raises(RegistryUnavailableError, match="redirects without end"):
        get(balancer.uri, PATH, 5)
    assert [asked["target"] for asked in balancer.asked] == [PATH, *["/other?a=b"] * 4]
    assert {asked["Authorization"] for asked in balancer.asked} == {"Bearer secret"}


@pytest.mark.parametrize("location", ["http://localhost:{port}" + PATH, "ftp://127.0.0.1", "http://h:x/"])
def test_a_redirect_elsewhere_is_told_with_the_new_address(stub, balancer, location):
    balancer.headers = {"Location": location.format(port=stub.uri.rpartition(":")[2])}
    with pytest.raises(RegistryUnavailableError, match=f"^{balancer.uri} redirects to ") as caught:
        get(balancer.uri, PATH, 5)
    shown = balancer.headers["Location"].partition("?")[0].removesuffix(PATH.partition("?")[0])
    assert f"redirects to {shown}, " in str(caught.value)
    assert not stub.asked


def test_redirects_may_be_forbidden(stub, balancer, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_HTTP_REDIRECTS", "false")
    with pytest.raises(RegistryUnavailableError, match=f"redirects to {stub.uri}, "):
        get(balancer.uri, PATH, 5)


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for 127.0.0.1 with its key, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number()).add_extension(host, False)
    made = made.add_extension(x509.BasicConstraints(True, None), True)
    day = datetime.timedelta(days=1)
    signed = made.not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    own = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + own)
    return path


@pytest.fixture
def secure(certificate) -> Iterator[Server]:
    """A server that wants a certificate of its clients."""
    found = Server()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    tls.load_cert_chain(certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(handler_of(found), tls) as found.uri:
        yield found


def test_tls_is_set_as_for_mlflow(secure, certificate, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(certificate))
    with pytest.raises(RegistryUnavailableError, match=r"certificate that is not trusted .*SERVER_CERT_PATH"):
        get(secure.uri, PATH, 5)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert get(secure.uri, PATH, 5) == (200, b"{}")
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        with pytest.raises(InputError, match="INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set"):
            get(secure.uri, PATH, 5)
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, str(certificate))
            assert get(secure.uri, PATH, 5) == (200, b"{}")
            with pytest.raises(RegistryUnavailableError, match=r"not trusted \(Hostname mismatch"):
                get(secure.uri.replace("127.0.0.1", "localhost"), PATH, 5)
            patch.delenv("MLFLOW_TRACKING_CLIENT_CERT_PATH")
            with pytest.raises(RegistryUnavailableError, match=r"TLS with .*MLFLOW_TRACKING_CLIENT_CERT_PATH"):
                get(secure.uri, PATH, 5)


@pytest.mark.parametrize("name", ["SERVER_CERT_PATH", "CLIENT_CERT_PATH"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_wrong_certificate_is_told_by_its_variable(home, monkeypatch, name, content):
    path = home / "certificate.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", str(path))
    with pytest.raises(InputError, match=rf"^environment variable MLFLOW_TRACKING_{name} names {path}, which cannot"):
        get("https://127.0.0.1:1", PATH, 5)


# -- Words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        *((uri, "cannot be read") for uri in ("http://a:port", "http://a:99999", "http://[::1", "http:", "http://a b")),
        ("http://127.0.0.1:{free}", r"no MLflow server answers at .*Connection refused.*MLFLOW_TRACKING_URI"),
        ("http://no-such-host.invalid", "the name of the host of .* cannot be resolved"),
        ("http://a..b", "holds what no address may"),
        ("https://127.0.0.1:{port}", "TLS with .* failed .*expected an https server"),
    ],
)  # fmt: skip
def test_an_address_without_a_server_is_told(stub, ports, uri, words):
    uri = uri.format(free=ports[0], port=stub.uri.rpartition(":")[2])
    with pytest.raises(RegistryUnavailableError, match=words) as caught:
        get(uri, PATH, 5)
    assert uri in str(caught.value)


def test_a_slow_server_is_told(stub):
    stub.late = threading.Event()
    with pytest.raises(RegistryUnavailableError, match=r"gave no answer in time \(0\.1 s\).*CALMLFLOW_TIMEOUT"):
        get(stub.uri, PATH, 0.1)


def test_an_answer_that_is_cut_is_told(stub):
    stub.headers, stub.hang_up = {"Content-Length": "9"}, True
    with pytest.raises(RegistryUnavailableError, match=r"broke off.*IncompleteRead"):
        get(stub.uri, PATH, 5)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_WORKSPACE"])
@pytest.mark.parametrize(("value", "words"), [("sec\nret", "a line break"), ("sécret", "a character that no header")])
def test_what_no_header_may_hold_is_told_by_its_variable(stub, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^environment variable {name} holds {words}") as caught:
        get(stub.uri, PATH, 5)
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize("text", ["mlflow_tracking_username = a\n", "[mlflow]\nmlflow_tracking_password = s%cret\n"])
def test_credentials_that_do_not_parse_are_told_by_their_file(stub, home, text):
    (home / ".mlflow").mkdir()
    (home / ".mlflow/credentials").write_text(text)
    with pytest.raises(InputError, match=r"~/\.mlflow/credentials does not parse") as caught:
        get(stub.uri, PATH, 5)
    assert "cret" not in str(caught.value)


def test_the_host_check_of_mlflow_is_told(server, monkeypatch):
    # As a proxy, MLflow's server is asked by a name that it was not told of.
    monkeypatch.setenv("HTTP_PROXY", server.tracking_uri)
    with pytest.raises(AccessDeniedError, match=r"mlflow server --allowed-hosts mlflow\.example\.org:8080") as caught:
        get("http://mlflow.example.org:8080", PATH, 5)
    assert "PASSWORD" not in str(caught.value)


@pytest.mark.parametrize(
    ("around", "uri", "words"),
    [
        ({"HTTP_PROXY": "http://u:secret@127.0.0.1:{free}"}, "http://a", "at http://a through the proxy http://.*refused"),
        ({"HTTPS_PROXY": "{stub}"}, "https://a", r"through the proxy .*Tunnel connection failed: 501"),
        ({"HTTP_PROXY": "http://["}, "http://a", "the proxy .* cannot be read"),
        ({"ALL_PROXY": "socks5://u:secret@127.0.0.1:{free}"}, "http://a", "MLflow, which the proxy socks5://.* needs"),
        ({"MLFLOW_TRACKING_AWS_SIGV4": "true"}, "http://a", "SIGV4 needs the package requests_auth_aws_sigv4"),
    ],
)  # fmt: skip
def test_proxies_and_signatures_that_fail_are_told(stub, ports, monkeypatch, around, uri, words):
    for name, value in around.items():
        monkeypatch.setenv(name, value.format(free=ports[0], stub=stub.uri))
    with pytest.raises(CalmlflowError, match=words) as caught:
        get(uri, PATH, 20)
    assert "secret" not in str(caught.value)


def test_a_proxy_that_wants_a_password_is_told(stub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", stub.uri)
    stub.status = 407
    with pytest.raises(AccessDeniedError, match=f"through the proxy {stub.uri}: .*status 407"):
        get("http://a", PATH, 5)


def test_a_package_without_mlflow_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow.utils.rest_utils", None)
    with pytest.raises(RegistryUnavailableError, match="MLFLOW_TRACKING_AUTH needs the package mlflow"):
        http_client._by_mlflow("MLFLOW_TRACKING_AUTH")("http://a", PATH, 1, 1, "http://a")


def test_work_that_takes_too_long_is_told():
    with pytest.raises(TimeoutError, match=r"^no answer in 0\.01 s$"):
        within(0.01, threading.Event().wait)
