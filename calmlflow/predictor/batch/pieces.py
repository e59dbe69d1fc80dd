"""Pieces of an input, and what is known of an input before it is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calmlflow.errors import InputError


class Refused(NamedTuple):
    """A row that the source itself could not read; ``cells`` are those that it could."""

    number: int
    reason: str
    cells: Mapping[str, Any]


class Piece(NamedTuple):
    """Some rows that follow one another.

    Attributes
    ----------
    batch : RecordBatch of n rows
    numbers : ndarray of int64, shape (n,)
        Number of each row in the input, from 1.
    refused : tuple of Refused
    """

    batch: pa.RecordBatch
    numbers: NDArray[np.int64]
    refused: tuple[Refused, ...] = ()

    @property
    def last(self) -> int:
        """The highest number in it."""
        return max([*self.numbers[-1:].tolist(), *(row.number for row in self.refused[-1:])], default=0)


@dataclass(frozen=True)
class Source:
    """An input, opened.

    Attributes
    ----------
    name : str
        For people.
    columns : tuple of str
    rows : int or None
        How many there are, where that can be told without reading them.
    identity : JSON value, or None
        Equal for two inputs only if they hold the same; None where nobody can tell.
    read : callable
        From a number of rows that are to be left out, and a number of rows that is a good piece, to the pieces.
    files : tuple of Path
        Local files, or the folder, that it reads.
    """

    name: str
    columns: tuple[str, ...]
    rows: int | None
    identity: Any
    read: Callable[[int, int], Iterator[Piece]]
    files: tuple[Path, ...] = ()


def skipping(pieces: Iterable[Piece], after: int) -> Iterator[Piece]:
    """The pieces without the rows up to a number."""
    for piece in pieces:
        if piece.last > after:
            start = int(np.searchsorted(piece.numbers, after, side="right"))
            refused = tuple(row for row in piece.refused if row.number > after)
            yield Piece(piece.batch.slice(start), piece.numbers[start:], refused)


def stamp(path: Path) -> list[Any]:
    """What changes with a file's content."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def check_unchanged(path: Path, before: list[Any]) -> None:
    """Raise an InputError where a file is not what it was when it had that `stamp`."""
    if stamp(path) != before:
        raise InputError(f"{path} changed while it was read; expected it to stay as it was")


@contextmanager
def reading(shown: str, expected: str) -> Iterator[None]:
    """Turn what cannot be read in the block into an InputError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise InputError(f"{shown} cannot be read ({reason}); {expected}") from None
