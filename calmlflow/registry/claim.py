"""One at a time: a claim on a registered model, made of nothing but tags.

MLflow's registry has no lock and no compare-and-set, only reads and writes. That is enough for Lamport's bakery: every
contender draws a ticket above all tickets it sees, and the lowest ticket wins. Here the others do not wait, they are
told who is ahead.

References
----------
Lamport, A new solution of Dijkstra's concurrent programming problem, Communications of the ACM 17 (1974).
"""

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow.errors import CalmlflowError

PREFIX = "calmlflow.claim."
LEASE_S = 300.0
"""A move takes about a second. A claim this old is dead, whatever its process does."""

POLL_S = 0.02
PATIENCE_S = 10.0
"""For somebody else to draw a ticket, which takes two requests."""


class ConflictError(CalmlflowError):
    """Somebody else moves, or has moved, a version of the same model."""


@dataclass(frozen=True)
class Claim:
    """Who claims a model; without a ticket yet while one is being drawn."""

    ticket: int | None
    who: str
    machine: str
    pid: int
    at: float

    def is_alive(self) -> bool:
        """Whether the process may still be at work; of other machines only the lease tells."""
        if abs(time.time() - self.at) > LEASE_S:
            return False
        if self.machine != _machine():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


@contextmanager
def claimed(client: MlflowClient, model: str, who: str, take_over: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a registered model for the block; nobody else does at the same time.

    Parameters
    ----------
    client : MlflowClient
    model : str
    who : str
        Told to others.
    take_over : bool
        Also end claims of other machines that may still be alive.

    Yields
    ------
    callable
        To be called before what must not be done by two: raises a ConflictError if this process slept for so long that
        its claim was taken for dead.

    Raises
    ------
    ConflictError
        Somebody was first.
    """
    me = PREFIX + uuid.uuid4().hex

    def write(ticket: int | None) -> None:
        claim = Claim(ticket, who, _machine(), os.getpid(), time.time())
        client.set_registered_model_tag(model, me, json.dumps(asdict(claim)))

    def still_held() -> None:
        if me not in client.get_registered_model(model).tags:
            raise ConflictError(
                f"the claim on {model} was taken for dead meanwhile; expected to hold it: look at `calmlflow stages` "
                "and try again"
            )

    write(None)
    try:
        ticket = 1 + max((claim.ticket or 0 for claim in _others(client, model, me, take_over).values()), default=0)
        write(ticket)
        patient_until = time.monotonic() + PATIENCE_S
        while others := _others(client, model, me, take_over):
            # Whoever is still drawing a ticket may draw a lower one than ours.
            drawing = [other for other in others.values() if other.ticket is None]
            ahead = [other for key, other in others.items() if other.ticket and (other.ticket, key) < (ticket, me)]
            if ahead or (drawing and time.monotonic() > patient_until):
                raise ConflictError(
                    f"{(ahead or drawing)[0].who} is moving a version of {model} right now; expected to be alone: "
                    "look at `calmlflow stages` and try again (a claim that a process left behind on another machine "
                    f"ends after {LEASE_S / 60:.0f} minutes, or with `calmlflow stages --repair`)"
                )
            if not drawing:
                break
            time.sleep(POLL_S)
        yield still_held
    finally:
        # Without a server the claim stays, and is dead as soon as this process is.
        with suppress(MlflowException):
            client.delete_registered_model_tag(model, me)


def _others(client: MlflowClient, model: str, me: str, take_over: bool) -> dict[str, Claim]:
    """Living claims of others by their tag; dead ones are removed."""
    found = {}
    for key, text in client.get_registered_model(model).tags.items():
        if not key.startswith(PREFIX) or key == me:
            continue
        try:
            claim = Claim(**json.loads(text))
            alive = claim.is_alive() and not (take_over and claim.machine != _machine())
        except (ValueError, TypeError):
            alive = False
        if alive:
            found[key] = claim
        else:
            client.delete_registered_model_tag(model, key)
    return found


def _machine() -> str:
    """Digest of the machine and its space of process ids: what it is called is nobody's business."""
    parts = [socket.gethostname()]
    # Where there is no /proc, the name alone has to tell.
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
