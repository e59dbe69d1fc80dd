"""Finished parts of a long prediction, kept beside the output, so that an interrupted one goes on where it stopped."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from calmlflow.errors import CalmlflowError

log = logging.getLogger(__name__)

FORMAT = 1
_JOURNAL = "journal"


@contextmanager
def claimed(folder: Path, output: str) -> Iterator[None]:
    """Make a folder for the parts of an output, for this process alone; the kernel gives it free when the process ends.

    Raises
    ------
    CalmlflowError
        Another process writes the same output.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CalmlflowError(
                    f"{output} is being written by another process; expected to be the only one"
                ) from None
            # Who had it before may have removed it in the meantime.
            if _is_same(handle, folder):
                try:
                    yield
                finally:
                    # Once the parts are gone, another process may have made the folder anew.
                    if _is_same(handle, folder) and not any(folder.glob("*.arrow")):
                        # Nothing to go on with.
                        shutil.rmtree(folder, ignore_errors=True)
                return
        finally:
            os.close(handle)


def _is_same(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Part:
    """A line of the journal.

    Attributes
    ----------
    name : str
        Of its files: ``{name}.arrow`` with answers, and ``{name}.csv`` with the rows that could not be answered.
    last : int
        Number of its last row in the input, from 1.
    answered, failed : int
        Rows.
    reason : str
        Of its first row that could not be answered.
    sha256 : str
        Of both files, one after the other.
    """

    name: str
    last: int
    answered: int
    failed: int
    reason: str
    sha256: str


class Parts:
    """The finished parts of one output.

    Parameters
    ----------
    folder : Path
        Of this process alone, see `claimed`.
    header : dict
        What answers depend on, JSON values: only parts with an equal header are gone on with. Where its ``input`` is
        None, none are.
    """

    def __init__(self, folder: Path, header: dict[str, Any]):
        self._folder = folder
        self._journal = folder / _JOURNAL
        header = {"format": FORMAT, **header}
        self.done = self._kept(header)
        if not self.done:
            for path in folder.glob("[0-9]*.*"):
                path.unlink()
        lines = [json.dumps(header), *(json.dumps(asdict(part)) for part in self.done)]
        fresh = folder / f"{_JOURNAL}.new"
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._journal)

    @property
    def last(self) -> int:
        """Number of the last row that is done; 0 where none is."""
        return self.done[-1].last if self.done else 0

    def add(self, answers: pa.RecordBatch, failures: str, failed: int, reason: str, last: int) -> None:
        """Keep a part: answers, the lines of a CSV file for the rows that have none, and see `Part`."""
        name = f"{len(self.done):06}"
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, answers.schema) as writer:
            writer.write_batch(answers)
        contents = sink.getvalue(), failures.encode("utf-8", "replace")
        files = [self._folder / f"{name}{suffix}" for suffix in (".arrow", ".csv")]
        try:
            for file, content in zip(files, contents, strict=True):
                file.write_bytes(content)
        except OSError:
            for file in files:
                file.unlink(missing_ok=True)
            raise
        part = Part(name, last, answers.num_rows, failed, reason, _digest(*contents))
        # Only now it counts: files that the journal does not know are those of a part that was cut short.
        with self._journal.open("a") as journal:
            journal.write(json.dumps(asdict(part)) + "\n")
        self.done.append(part)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Answers of all parts, in order."""
        for part in self.done:
            with pa.memory_map(str(self._folder / f"{part.name}.arrow")) as file, pa.ipc.open_stream(file) as reader:
                yield from reader

    def failures(self) -> Iterator[bytes]:
        """The lines of the rows that could not be answered, in order."""
        for part in self.done:
            if part.failed:
                yield (self._folder / f"{part.name}.csv").read_bytes()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self, header: dict[str, Any]) -> list[Part]:
        """The parts of an earlier process that can be gone on with."""
        try:
            *lines, _torn = self._journal.read_text().split("\n")
            earlier, *parts = map(json.loads, lines)
            kept = [Part(**part) for part in parts]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError):
            log.warning("%s cannot be used; beginning anew", self._journal)
            return []
        if earlier != header or header["input"] is None:
            if kept:
                log.warning(
                    "%s holds parts of another prediction (%s); beginning anew", self._folder, _what(earlier, header)
                )
            return []
        whole = next((count for count, part in enumerate(kept) if not self._is_whole(part)), len(kept))
        return kept[:whole]

    def _is_whole(self, part: Part) -> bool:
        try:
            contents = [(self._folder / f"{part.name}{suffix}").read_bytes() for suffix in (".arrow", ".csv")]
        except OSError:
            return False
        return _digest(*contents) == part.sha256


def _what(earlier: Any, now: dict[str, Any]) -> str:
    """In which way two headers differ, for people."""
    if isinstance(earlier, dict) and (then := earlier.get("version")) != now["version"]:
        return f"by version {then}, not {now['version']}"
    differ = [name for name in now if not isinstance(earlier, dict) or earlier.get(name) != now[name]]
    return f"another {', another '.join(differ)}" if now["input"] is not None else "and its input cannot be told again"


def _digest(*contents: bytes | pa.Buffer) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
