"""Serve the metrics of a running predictor over HTTP on loopback, for Prometheus."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from calmlflow.errors import CalmlflowError
from calmlflow.settings import HOST


def serve_page(port: int, text: Callable[[], str]) -> ThreadingHTTPServer:
    """Serve a text that is made anew for each request, see `Predictor.serve_metrics`.

    A CalmlflowError where the port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        # Seconds for a client that says nothing.
        timeout = 10

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            content = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            """Nothing is logged of a page that is asked for every few seconds."""

    try:
        server = ThreadingHTTPServer((HOST, port), Page)
    except (OSError, OverflowError) as error:
        raise CalmlflowError(f"metrics cannot be served on port {port} ({error}); expected a free port") from error
    threading.Thread(target=server.serve_forever, name="calmlflow-metrics", daemon=True).start()
    return server
