"""Finished jobs in a bucket as the pipeline leaves them, and an S3 server that fails now and then."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.samples.http_server import serving

CONTROL = {"n_files": "17", "total_mb": "9.6", "DETECTOR": "SBC", "DRIZCORR": "PERFORM", "SUBARRAY": "False"}


def metrics(elapsed: str = "0:30.12", resident_kb: object = 400_000, status: object = 0) -> str:
    """What GNU time --verbose writes of a step."""
    return f"""\tCommand being timed: "runcal j8c601020"
\tUser time (seconds): 20.10
\tSystem time (seconds): 1.20
\tPercent of CPU this job got: 71%
\tElapsed (wall clock) time (h:mm:ss or m:ss): {elapsed}
\tAverage shared text size (kbytes): 0
\tMaximum resident set size (kbytes): {resident_kb}
\tMajor (requiring I/O) page faults: 3
\tPage size (bytes): 4096
\tExit status: {status}
"""


def control(**keys: str) -> str:
    return "".join(f"{key}={value}\n" for key, value in {**CONTROL, **keys}.items())


def put(s3, bucket: str, key: str, content: str | bytes) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=content.encode() if isinstance(content, str) else content)


def put_job(s3, bucket: str, name: str, **files: str | bytes | None) -> None:
    """The three files of a job; ``process``, ``preview`` and ``control`` replace one, None leaves it out."""
    content = {"process": metrics(), "preview": metrics("0:05.00", 100_000), "control": control(), **files}
    for part, text in content.items():
        if text is not None:
            folder = f"control/{name}/{name}_MemModelFeatures.txt"
            put(s3, bucket, folder if part == "control" else f"outputs/{name}/{part}_metrics.txt", text)


def name_of(number: int) -> str:
    """The ipppssoot of a number."""
    return f"j{number:07d}q"


# -- An S3 server behind a bad line ---------------------------------------------------------------------------------

Fault = Callable[[int, bytes], str]
"""Given the number of a request, from 0, and its first line: "" (none), "503" or "cut"."""


@dataclass
class Line:
    """An address, the number of requests that it got, and what is told of each one."""

    uri: str
    requests: int = 0
    on_request: list[Callable[[int], None]] = field(default_factory=list)


@contextmanager
def bad_line(endpoint: str, fault: Fault = lambda number, request: "") -> Iterator[Line]:
    """An address that forwards to an S3 server, with faults; what is signed goes through as it is."""
    line, counting, host = Line(""), threading.Lock(), urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with counting:
                number, line.requests = line.requests, line.requests + 1
            for told in line.on_request:
                told(number)
            spoil = fault(number, self.raw_requestline)
            if spoil == "503":
                self.send_error(503)
                return
            upstream = http.client.HTTPConnection(host, timeout=60)
            upstream.request(self.command, self.path, headers=dict(self.headers.items()))
            with closing(upstream), upstream.getresponse() as answer:
                content = answer.read()
                length = answer.headers["Content-Length"] or len(content)
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if spoil else content)

        do_HEAD = do_GET  # noqa: N815 - a name of the library

        def log_message(self, *words: object) -> None:
            pass

    with serving(Handler) as line.uri:
        yield line
