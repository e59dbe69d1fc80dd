"""An address that forwards to a server, each request some milliseconds late: what a bucket far away costs."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


@contextmanager
def slow_line(endpoint: str, delay_s: float) -> Iterator[str]:
    """Yields the address. Requests must be smaller than 64 kB; answers may have any size."""
    address = urlsplit(endpoint)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    over = asyncio.Event()
    uri = ""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(address.hostname, address.port)
        # Connections that are open at the end are cut; nobody need be told.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(forward(reader, forth, delay_s), forward(back, writer, 0))

    async def run() -> None:
        nonlocal uri
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await over.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    started.wait()
    try:
        yield uri
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
