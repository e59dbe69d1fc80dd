"""A deployment that follows the alias `production` by MLflow's own webhooks: a signed call on each move."""

import base64
import hashlib
import hmac
import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from calmlflow.registry.promote import promote, roll_back
from calmlflow.registry.versions import read_state

SECRET = "shared-with-the-deployment"


@pytest.fixture
def calls() -> Iterator[tuple[str, queue.Queue]]:
    """A receiver on this machine: its address, and the headers and bodies that it gets."""
    received: queue.Queue = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/production", received
        server.shutdown()


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    told = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.{body.decode()}"
    digest = hmac.new(SECRET.encode(), told.encode(), hashlib.sha256).digest()
    return headers["X-MLflow-Signature"] == "v1," + base64.b64encode(digest).decode()


def test_a_promotion_and_a_rollback_call_with_a_signature(client, four, calls):
    url, received = calls
    webhook = client.create_webhook("deployment", url, ["model_version_alias.created"], secret=SECRET)
    try:
        # The server looks for new webhooks each second.
        time.sleep(1.1)
        promote(read_state(four), 1, "Production")
        promote(read_state(four), 2, "Production")
        roll_back(four, None, "a test")
        followed = []
        while len(followed) < 3:
            headers, body = received.get(timeout=90)
            assert is_signed(headers, body)
            moved = json.loads(body)["data"]
            if (moved["name"], moved["alias"]) == (four, "production"):
                followed.append(moved["version"])
        assert sorted(followed) == ["1", "1", "2"]
    finally:
        client.delete_webhook(webhook.webhook_id)
