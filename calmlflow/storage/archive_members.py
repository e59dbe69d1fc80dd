"""What is in an archive, read one member at a time and never trusted."""

import gzip
import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from calmlflow.errors import CalmlflowError, InputError

CHUNK_BYTES = 1 << 20
"""Bytes read at once."""


class Member(NamedTuple):
    """A file or folder in an archive; its content is read while the chunks are drawn, before the next member."""

    name: str
    is_folder: bool
    size: int
    chunks: Iterator[bytes]


def read_members(archive: Path) -> Iterator[Member]:
    """Members of a ``.tar.gz``, ``.tgz`` or ``.zip`` in their order; their names are as the archive has them.

    Raises
    ------
    InputError
        The name's ending is another; or, while members and chunks are drawn: the archive is damaged, or holds a link,
        a special file, an encrypted member, or a method of compression that no limit is known for.
    """
    readers = {".tar.gz": _read_tar, ".tgz": _read_tar, ".zip": read_zip}
    for suffix, read in readers.items():
        if archive.name.endswith(suffix):
            return read(archive)
    raise InputError(f"archive {archive} is of no known kind; expected a name in {', '.join(readers)}")


def read_zip(archive: Path, content: bytes | None = None) -> Iterator[Member]:
    """The same for a zip archive, whatever its name; with ``content``, ``archive`` only names it in errors."""
    source = archive if content is None else io.BytesIO(content)
    with _reading(archive), zipfile.ZipFile(source) as zipped:
        for info in zipped.infolist():
            name = info.filename if "\0" not in info.orig_filename else info.orig_filename
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(
                    f"archive {archive}: member {name!r} is a link or a special file; expected only files and folders"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"archive {archive}: member {name!r} is compressed by no known method; expected deflate"
                )
            chunks = _chunks(archive, name, partial(zipped.open, info))
            yield Member(name.removesuffix("/"), info.is_dir(), info.file_size, chunks)


def is_safe(name: str) -> bool:
    """Whether a name, its parts divided by slashes, stays in its folder on every system, and is text."""
    is_text = name == name.encode("utf-8", "ignore").decode()
    may_leave = re.search(r"^[A-Za-z]:|[\\\0]", name) or {"", ".", ".."}.intersection(name.split("/"))
    return is_text and not may_leave


@contextmanager
def _reading(archive: Path, what: str = "") -> Iterator[None]:
    # gzip, tarfile and zipfile raise at least OSError, EOFError, ValueError, RuntimeError, zlib.error and their own.
    try:
        yield
    except CalmlflowError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"archive {archive} is damaged{what} ({reason}); expected a whole archive") from None


def _chunks(archive: Path, name: str, open_member: Callable[[], IO[bytes] | None]) -> Iterator[bytes]:
    with _reading(archive, f" in member {name!r}"):
        file = open_member()
        while file and (chunk := file.read(CHUNK_BYTES)):
            yield chunk


class _TarBytes(gzip.GzipFile):
    """The bytes of a tar archive in a gzip file; keeps what was last read."""

    last = b""

    def read(self, size: int | None = -1) -> bytes:
        # tarfile reads a header of any size at once, and headers can be bombs too.
        if size is None or not 0 <= size <= CHUNK_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = super().read(size)
        return self.last


def _read_tar(archive: Path) -> Iterator[Member]:
    after = ""
    with _reading(archive), _TarBytes(archive) as source, tarfile.open(fileobj=source, mode="r:") as tar:
        while True:
            with _reading(archive, after):
                info = tar.next()
            if info is None:
                break
            if not (info.isdir() or info.isreg()) or info.issparse():
                raise InputError(
                    f"archive {archive}: member {info.name!r} is a link or a special file; expected only files and "
                    "folders"
                )
            after = f" after member {info.name!r}"
            chunks = _chunks(archive, info.name, partial(tar.extractfile, info))
            yield Member(info.name, info.isdir(), info.size, chunks)
        with _reading(archive, after):
            # tarfile takes a header that it cannot read for the end: make sure of the zeros that end an archive.
            end, padding = source.last, source.read(CHUNK_BYTES)
            if len(end) != tarfile.BLOCKSIZE or any(end) or any(padding) or source.read(1):
                raise tarfile.ReadError("no end of the archive")
