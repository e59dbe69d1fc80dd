"""Ports of the embedded server."""

import contextlib
import itertools
import secrets
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from calmlflow import settings
from calmlflow.errors import CalmlflowError

STORE_PORTS = ("master.port", "volume.port", "filer.port", "admin.port", "s3.port.grpc")
"""Options of ``weed mini`` that name the ports its parts use among themselves."""

GRPC_OFFSET = 10_000
"""Every part of the store listens on a second port, this much above its first. Parts assume it of one another."""


def is_free(port: int) -> bool:
    """True where this process could listen on the port now. PermissionError for a port of the system's."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections have only just closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, port))
        except PermissionError:
            raise
        except OSError:
            return False
    return True


def store_ports(taken: Collection[int], before: Sequence[int] = ()) -> list[int]:
    """Ports for `STORE_PORTS`: those of the last start where they can still be had, else others.

    Both the ports and their gRPC twins lie below the range from which systems draw ports of outgoing connections.
    """

    def is_usable(port: int) -> bool:
        return all(number not in taken and is_free(number) for number in (port, port + GRPC_OFFSET))

    if len(before) == len(STORE_PORTS) and all(map(is_usable, before)):
        return list(before)
    candidates = secrets.SystemRandom().sample(range(10_000, 20_000), 10_000)
    return list(itertools.islice(filter(is_usable, candidates), len(STORE_PORTS)))


def remove_sockets(internal_ports: Sequence[int]) -> None:
    """Remove the socket files that the ended store leaves in the system's temporary folder."""
    for port in (*internal_ports, *(port + GRPC_OFFSET for port in internal_ports)):
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108 - the store's own choice
            with contextlib.suppress(OSError):
                path.unlink()


def require_free(port: int, option: str) -> None:
    try:
        free = is_free(port)
    except PermissionError:
        raise CalmlflowError(f"port {port} is the system's; expected one from 1024 up, see {option}") from None
    if not free:
        raise CalmlflowError(
            f"port {port} of {settings.HOST} is in use by another program; expected a free one: choose it with {option}"
        )
