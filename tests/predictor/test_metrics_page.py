"""The page that Prometheus asks a running predictor for."""

import urllib.error
import urllib.request

import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.predictor.metrics_page import serve_page


def test_the_page_is_made_anew_for_each_request_and_a_taken_port_is_told():
    texts = iter(["a 1\n", "a 2\n"])
    server = serve_page(0, lambda: next(texts))
    try:
        for expected in ("a 1\n", "a 2\n"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics?x=1", timeout=20) as page:
                assert page.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert page.read().decode() == expected
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=20)
        with pytest.raises(CalmlflowError, match=rf"port {server.server_port} .*; expected a free port"):
            serve_page(server.server_port, str)
    finally:
        server.shutdown()
        server.server_close()
