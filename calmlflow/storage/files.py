"""Replace files and folders as a whole, and lock them against other processes."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from calmlflow.errors import CalmlflowError

_POLL_S = 0.02
# A hidden folder is locked right after it is made.
_FRESH_S = 60


class LockedError(CalmlflowError):
    """Another process holds the lock."""


@contextmanager
def replacing(path: Path, mode: str = "w", private: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file that takes the place of ``path`` when the block succeeds.

    Readers see the old file or the new one, never half of it. A missing folder is made, and a symbolic link stays one.
    Text (mode ``w``) is UTF-8 with line ends as written. A ``private`` file is readable by its owner alone; otherwise
    an old file keeps its permissions. Raises a CalmlflowError where the file cannot be written.
    """
    place = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        os.close(handle)
        temporary = Path(name)
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with temporary.open(mode, **text) as file:
            yield file
        if not private:
            temporary.chmod(_permissions(place))
        temporary.replace(place)
    except OSError as error:
        raise CalmlflowError(
            f"{path} cannot be written ({error.strerror or error}); expected a file in a folder of yours"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _permissions(path: Path) -> int:
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def locked(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the exclusive lock of a file while the block runs; the kernel releases it when the process ends.

    The file stays: another process may wait for it. Raises a LockedError after ``patience_s`` seconds, or a
    CalmlflowError where the file cannot be opened for writing.
    """
    deadline = time.monotonic() + patience_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise CalmlflowError(f"{path} cannot be locked ({error.strerror}); expected a folder of yours") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise LockedError(f"{path} is locked by another process; expected to be the only one") from error
                time.sleep(_POLL_S)
        try:
            yield
        finally:
            # Not by closing alone: a child that was forked meanwhile holds the file open too.
            fcntl.flock(file, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Whether another process keeps the lock of a file; patient for one that only looks."""
    if not path.exists():
        return False
    try:
        with locked(path, patience_s=0.02):
            return False
    except LockedError:
        return True


# -- The folder of a training ---------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """The hidden folder that a training writes to, and the name that it gets at the end."""

    partial: Path
    final: Path


@contextmanager
def new_tree(output: Path) -> Iterator[Tree]:
    """Make a folder ``{date}-{epoch}`` in ``output`` that gets its name when the block succeeds.

    Until then it is hidden, and locked. Hidden folders of trainings that were killed are removed.
    """
    epoch = int(time.time())
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_killed(output)
        while not (tree := _claimed(output, epoch)):
            # Another training began in the same second.
            epoch += 1
    except OSError as error:
        raise CalmlflowError(f"output {output} cannot be written ({error.strerror}); expected a folder") from error
    with _holding(tree.partial):
        try:
            yield tree
            tree.partial.rename(tree.final)
        finally:
            shutil.rmtree(tree.partial, ignore_errors=True)


@contextmanager
def _holding(folder: Path) -> Iterator[bool]:
    """Lock a folder while the block runs, or as long as the process lives; False where another process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _remove_killed(output: Path) -> None:
    for folder in output.glob(".[0-9]*-[0-9]*-[0-9]*-[0-9]*"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        # Another training may be removing it too.
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime >= _FRESH_S:
                with _holding(folder) as is_ours:
                    if is_ours:
                        shutil.rmtree(folder, ignore_errors=True)


def _claimed(output: Path, epoch: int) -> Tree | None:
    """Folders of that second, or None where another training has them."""
    name = f"{datetime.fromtimestamp(epoch, UTC).date().isoformat()}-{epoch}"
    tree = Tree(output / f".{name}", output / name)
    if os.path.lexists(tree.final):
        return None
    try:
        tree.partial.mkdir()
    except FileExistsError:
        return None
    return tree
