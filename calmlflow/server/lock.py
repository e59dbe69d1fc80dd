"""The lock that tells whether the embedded server of a home folder runs."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from calmlflow.errors import CalmlflowError
from calmlflow.server.processes import wait_until


@contextlib.contextmanager
def hold(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel releases it when the process ends, however that comes."""
    with (home / "server.lock").open("a") as file:
        # Patience for `is_held` of another process, which holds the lock for a moment.
        if not wait_until(lambda: _try_lock(file.fileno(), fcntl.LOCK_EX), 1.0):
            raise CalmlflowError(f"a server of {home} runs already (or starts just now); expected none: stop it first")
        yield


def is_held(home: Path) -> bool:
    try:
        with (home / "server.lock").open() as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except OSError:
        return False


def _try_lock(file: int, mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
