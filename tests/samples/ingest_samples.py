"""Finished jobs in a bucket as the pipeline leaves them, and an S3 server that is slow or fails now and then."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

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
"""Given the number of a request, from 0, and its first line: "" (none), a status to answer with, or "cut"."""


@dataclass
class Line:
    """What goes through a line: the number of requests, and how many of them were spoiled."""

    uri: str
    requests: int = 0
    spoiled: int = 0
    on_request: list[Callable[[int], None]] = field(default_factory=list)


@contextlib.contextmanager
def bad_line(endpoint: str, fault: Fault = lambda number, request: "", delay_s: float = 0.0) -> Iterator[Line]:
    """An address that forwards to an S3 server, late and with faults; what is signed goes through as it is."""
    address = urlsplit(endpoint)
    started: threading.Event = threading.Event()
    loop = asyncio.new_event_loop()
    line = Line("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        try:
            while head := await _head(reader):
                number, line.requests = line.requests, line.requests + 1
                for told in line.on_request:
                    told(number)
                body = await reader.readexactly(_length(head))
                await asyncio.sleep(delay_s)
                spoil = fault(number, head.partition(b"\r\n")[0])
                line.spoiled += bool(spoil)
                if spoil and spoil != "cut":
                    text = f"<Error><Code>{'InternalError' if spoil == '500' else 'SlowDown'}</Code></Error>".encode()
                    writer.write(f"HTTP/1.1 {spoil} Busy\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
                    continue
                if upstream is None:
                    upstream = await asyncio.open_connection(address.hostname, address.port)
                upstream[1].write(head + body)
                answer = await _head(upstream[0])
                empty = head.startswith(b"HEAD") or b" 204 " in answer.partition(b"\r\n")[0]
                content = b"" if empty else await _body(upstream[0], answer)
                if spoil:
                    writer.write(answer + content[: len(content) // 2])
                    await writer.drain()
                    return
                writer.write(answer + content)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in filter(None, (writer, upstream and upstream[1])):
                end.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        line.uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await over.wait()
        server.close()

    over = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield line
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """A request's or an answer's first lines, or nothing at the end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _length(head: bytes) -> int:
    for row in head.split(b"\r\n"):
        name, _, value = row.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return await reader.readexactly(_length(head))
    whole = b""
    while True:
        size = await reader.readuntil(b"\r\n")
        chunk = await reader.readexactly(int(size, 16) + 2)
        whole += size + chunk
        if not int(size, 16):
            return whole
