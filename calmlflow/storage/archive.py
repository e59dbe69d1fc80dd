"""Pack the folder of a training into archives, the same bytes for the same content, and unpack archives safely."""

import filecmp
import gzip
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.files import replacing

MAX_MEMBERS = 10_000
"""Files and folders that an archive may hold; a training has about fifty."""

MAX_UNPACKED_BYTES = 4 << 30
"""Bytes that an archive may unpack to; a training of a million jobs has about 0.3 GB."""

SUFFIXES = (".zip", ".tgz", ".tar.gz")
"""Endings of the names of archives."""

_MODELS = "models"
_CHUNK_BYTES = 1 << 20
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
# The earliest time that a zip archive can hold.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


# -- Packing --------------------------------------------------------------------------------------------------------


def pack(tree: Path, output: Path) -> tuple[Path, Path]:
    """Pack a training into ``{date-epoch}.tar.gz`` (the whole folder) and ``models.zip`` in ``output``.

    The same content gives the same bytes: times, owners, permissions and the order on disk do not count; another
    version of zlib may. Raises an InputError where ``tree`` has no models, or holds links, special files, names that
    `unpack` would refuse, or more than `MAX_MEMBERS` or `MAX_UNPACKED_BYTES`.
    """
    tree = tree.resolve()
    for folder in (tree, tree / _MODELS):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; expected the folder of a training, with its models")
    if output.resolve().is_relative_to(tree):
        raise InputError(f"output {output} lies in {tree}; expected a folder outside of what is packed")
    everything = _paths(tree)
    whole, models = output / f"{tree.name}.tar.gz", output / f"{_MODELS}.zip"
    with replacing(whole, "wb") as file:
        _write_tar(file, tree.parent, everything)
    with replacing(models, "wb") as file:
        _write_zip(file, tree, [path for path in everything if path.is_relative_to(tree / _MODELS)])
    return whole, models


def _paths(root: Path) -> list[Path]:
    """The folder and everything in it, a folder before its content, in the order of names."""
    try:
        paths = [root, *sorted(root.rglob("*"))]
        size = 0
        for path in paths:
            status = path.lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                kind = "a symbolic link" if path.is_symlink() else "a special file"
                raise InputError(f"{path} is {kind}; expected only files and folders")
            if not _is_safe(path.relative_to(root.parent).as_posix()):
                raise InputError(f"the name of {str(path)!r} cannot be packed; expected Unicode without backslashes")
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    except OSError as error:
        raise CalmlflowError(f"{root} cannot be read ({error.strerror}: {error.filename})") from error
    _check_limits(str(root), len(paths), size)
    return paths


def _write_tar(archive: IO[bytes], root: Path, paths: list[Path]) -> None:
    # A gzip header without name and time, and tar headers with neither time nor owner.
    with (
        gzip.GzipFile("", "wb", fileobj=archive, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar,
    ):
        for path in paths:
            info = tarfile.TarInfo(path.relative_to(root).as_posix())
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, _FOLDER_MODE
                tar.addfile(info)
                continue
            with path.open("rb") as file:
                info.size, info.mode = os.fstat(file.fileno()).st_size, _FILE_MODE
                tar.addfile(info, file)


def _write_zip(archive: IO[bytes], root: Path, paths: list[Path]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for path in paths:
            is_folder = path.is_dir()
            info = zipfile.ZipInfo(path.relative_to(root).as_posix() + "/" * is_folder, _ZIP_DATE)
            info.create_system = _UNIX
            info.external_attr = (stat.S_IFDIR | _FOLDER_MODE if is_folder else stat.S_IFREG | _FILE_MODE) << 16
            info.compress_type = zipfile.ZIP_STORED if is_folder else zipfile.ZIP_DEFLATED
            zipped.writestr(info, b"" if is_folder else path.read_bytes())


# -- Unpacking ------------------------------------------------------------------------------------------------------


def unpack(archive: Path, output: Path) -> Path:
    """Unpack an archive with one folder on top, as `pack` makes it, into ``output``, whole or not at all.

    Returns the folder; one that is there already is kept if it holds the same. Raises an InputError where `extract`
    refuses the archive, it does not hold one folder, or the folder is there with other content.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".unpack-") as temporary:
            extract(archive, Path(temporary))
            found = list(Path(temporary).iterdir())
            if len(found) != 1 or not found[0].is_dir():
                raise InputError(f"archive {archive} does not hold one folder on top; expected everything in one")
            target = output / found[0].name
            if not os.path.lexists(target):
                found[0].rename(target)
            elif not _is_same(found[0], target):
                raise InputError(f"{target} is there with other content than archive {archive}; expected no such path")
    except OSError as error:
        raise CalmlflowError(
            f"archive {archive} cannot be unpacked into {output} ({error.strerror or error}); expected a folder that "
            "can be written"
        ) from error
    return target


def extract(archive: Path, folder: Path) -> None:
    """Write the members of a ``.tar.gz``, ``.tgz`` or ``.zip`` into an empty folder, each checked before.

    Raises an InputError where the archive is damaged, or holds links, special files, encrypted members, duplicated
    names, names that leave the folder, or more than `MAX_MEMBERS` or `MAX_UNPACKED_BYTES`.
    """
    if not archive.name.lower().endswith(SUFFIXES):
        raise InputError(f"archive {archive} is of no known kind; expected a name in {', '.join(SUFFIXES)}")
    seen: set[str] = set()
    size = 0
    where = ""
    try:
        for member in (_zip_members if archive.name.lower().endswith(".zip") else _tar_members)(archive):
            # The content of a folder is packed as ./name by tar.
            name = member.name.removeprefix("./").removesuffix("/")
            if name == ".":
                continue
            where = f", member {name!r}"
            size += member.size
            if not member.is_plain:
                raise InputError(f"archive {archive}{where} is a link or a special file; expected files and folders")
            if not _is_safe(name):
                raise InputError(f"archive {archive}{where} is no plain path; expected one that stays in the folder")
            if name in seen:
                raise InputError(f"archive {archive}{where} is there twice; expected every name once")
            seen.add(name)
            _check_limits(f"archive {archive}", len(seen), size)
            member.write(folder)
    except CalmlflowError:
        raise
    except Exception as error:
        # gzip, tarfile and zipfile raise OSError, EOFError, ValueError, RuntimeError, zlib.error and their own.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"archive {archive}{where} cannot be unpacked ({reason}); expected a whole archive") from error


class _Member(NamedTuple):
    """A file or folder in an archive; ``write`` puts it into a folder."""

    name: str
    is_plain: bool
    size: int
    write: Callable[[Path], object]


class _TarBytes(gzip.GzipFile):
    """Content of a gzip file; refuses to read a large header, which tarfile would keep in memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _CHUNK_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with _TarBytes(archive) as source, tarfile.open(fileobj=source, mode="r:") as tar:
        for info in tar:
            is_plain = (info.isdir() or info.isreg()) and not info.issparse()
            yield _Member(info.name, is_plain, info.size, partial(tar.extract, info, set_attrs=False, filter="data"))
        # tarfile takes a damaged header for the end, and gzip compares its checksum at the end.
        while rest := source.read(_CHUNK_BYTES):
            if any(rest):
                raise tarfile.ReadError("data after the end of the archive")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            # zipfile cuts a name at its zero byte.
            name = info.orig_filename if "\0" in info.orig_filename else info.filename
            yield _Member(name, is_plain, info.file_size, partial(zipped.extract, info))


def _is_safe(name: str) -> bool:
    """Whether a name, its parts divided by slashes, stays in its folder on every system, and is text."""
    is_text = name == name.encode("utf-8", "ignore").decode()
    may_leave = re.search(r"^[A-Za-z]:|[\\\0]", name) or {"", ".", ".."}.intersection(name.split("/"))
    return is_text and not may_leave


def _check_limits(what: str, members: int, size: int) -> None:
    if members > MAX_MEMBERS:
        raise InputError(f"{what} holds more than {MAX_MEMBERS} files and folders; expected fewer")
    if size > MAX_UNPACKED_BYTES:
        raise InputError(f"{what} holds {size} bytes or more; expected at most {MAX_UNPACKED_BYTES}")


def _is_same(one: Path, other: Path) -> bool:
    ours, theirs = _paths(one), _paths(other)
    return [path.relative_to(one) for path in ours] == [path.relative_to(other) for path in theirs] and all(
        our.is_dir() == their.is_dir() and (our.is_dir() or filecmp.cmp(our, their, shallow=False))
        for our, their in zip(ours, theirs, strict=True)
    )
