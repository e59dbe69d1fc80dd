"""The file of deploy/ for nginx passes its own check, and requests on to the server."""

import shutil
import socket
import ssl
import subprocess

import pytest

from calmlflow.server.processes import wait_until
from tests.conftest import free_ports
from tests.samples.commands import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("nginx") or not shutil.which("openssl"), reason="nginx or openssl")


def test_nginx_speaks_tls_before_the_server(server, tmp_path):
    (tls, plain) = free_ports(2)
    certificate = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=mlflow.example.org"]
    names = ["-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem"]
    subprocess.run(["openssl", "req", *certificate, *names], check=True, capture_output=True)
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{tls}"), ("listen 80", f"listen 127.0.0.1:{plain}"),
        ("/etc/ssl/mlflow", str(tmp_path)), ("/var/log/nginx", str(tmp_path)),
        ("127.0.0.1:5000", f"127.0.0.1:{server.port}"),
        # The server of this test has no --allowed-hosts.
        ("Host $host;", "Host localhost:1;"),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    command = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")]
    command += ["-g", f"daemon off; pid {tmp_path}/nginx.pid;"]
    assert "test is successful" in subprocess.run([*command, "-t"], capture_output=True, text=True).stderr
    process = subprocess.Popen(command)
    try:
        assert wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", tls)) == 0, 20)
        trusted = ssl.create_default_context(cafile=tmp_path / "fullchain.pem")
        with (
            socket.create_connection(("127.0.0.1", tls), timeout=30) as raw,
            trusted.wrap_socket(raw, server_hostname="mlflow.example.org") as wrapped,
        ):
            path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
            wrapped.sendall(f"GET {path} HTTP/1.0\r\nHost: mlflow.example.org\r\n\r\n".encode())
            assert wrapped.recv(1000).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", plain), timeout=30) as raw:
            raw.sendall(b"GET /x HTTP/1.0\r\nHost: mlflow.example.org\r\n\r\n")
            assert b"Location: https://mlflow.example.org/x" in raw.recv(1000)
    finally:
        process.terminate()
        process.wait(20)
