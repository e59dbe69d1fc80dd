"""A training as two archives, the same bytes for the same content, and back into a folder.

Names, contents and empty folders go in; times, owners, modes and the order on disk do not. The compressed bytes are
zlib's: two machines with different versions of zlib may compress the same content to different, equally good bytes.
"""

import filecmp
import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.archive_members import CHUNK_BYTES, Member, is_safe, read_members

MAX_MEMBERS = 10_000
"""Files and folders that an archive may hold; a training has about fifty."""

MAX_UNPACKED_BYTES = 4 << 30
"""Bytes that an archive may unpack to; a training of a million jobs has about 0.3 GB."""

_MODELS = "models"
_COMPRESSION_LEVEL = 6
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
# The earliest moment that a zip archive can tell.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX = 3

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class _Entry(NamedTuple):
    """A file or folder on disk, and its name in an archive."""

    name: str
    path: Path
    is_folder: bool


def pack(tree: Path, output: Path) -> tuple[Path, Path]:
    """Pack a training into ``{date-epoch}.tar.gz`` (the whole folder) and ``models.zip`` (its folder of models).

    Parameters
    ----------
    tree : Path
        The training's folder, whose name becomes the archive's and the one folder inside it.
    output : Path
        Folder that gets both archives, outside of ``tree``; made if it is not there. Archives of an earlier packing
        are replaced.

    Returns
    -------
    tuple of Path
        The ``.tar.gz`` and the ``.zip``.

    Raises
    ------
    InputError
        ``tree`` is no folder, has no models, or holds a symbolic link, a special file, a name that `unpack` would
        refuse, or more than `MAX_MEMBERS` or `MAX_UNPACKED_BYTES`.
    CalmlflowError
        Something cannot be read or written.
    """
    tree = tree.resolve()
    for folder in (tree, tree / _MODELS):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; expected the folder of a training, with its models")
    if output.resolve().is_relative_to(tree):
        raise InputError(f"output {output} lies in {tree}; expected a folder outside of what is packed")
    try:
        everything = _entries(tree)
        models = _entries(tree / _MODELS)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".pack-") as temporary:
            archives = Path(temporary, f"{tree.name}.tar.gz"), Path(temporary, f"{_MODELS}.zip")
            _write_tar(archives[0], everything)
            _write_zip(archives[1], models)
            whole, part = (archive.replace(output / archive.name) for archive in archives)
    except OSError as error:
        what = error.filename or tree
        raise CalmlflowError(
            f"{tree} cannot be packed into {output}: {what}: {error.strerror or error}; expected files that can be "
            "read and a folder that can be written"
        ) from None
    return whole, part


def unpack(archive: Path, output: Path) -> Path:
    """Unpack an archive of one folder; nothing is written outside of it, and it is there whole or not at all.

    Parameters
    ----------
    archive : Path
        ``.tar.gz``, ``.tgz`` or ``.zip``, with one folder on top, as `pack` makes it.
    output : Path
        Folder that gets the folder of the archive; made if it is not there.

    Returns
    -------
    Path
        The folder, in ``output``. One that is there already is kept if it holds the same.

    Raises
    ------
    InputError
        The archive is damaged, or holds links, special files, encrypted members, duplicated names, names that leave
        the folder, or more than `MAX_MEMBERS` or `MAX_UNPACKED_BYTES`; or the folder is there with other content.
    CalmlflowError
        ``output`` cannot be written.
    """
    members = read_members(archive)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".unpack-") as temporary:
            folder = _extract(archive, members, Path(temporary))
            target = output / folder.name
            if not os.path.lexists(target):
                folder.rename(target)
            elif not _is_same(folder, target):
                raise InputError(f"{target} is there with other content than archive {archive}; expected no such path")
    except OSError as error:
        raise CalmlflowError(
            f"archive {archive} cannot be unpacked into {output} ({error.strerror or error}); expected a folder that "
            "can be written"
        ) from None
    return target


# -- Folders --------------------------------------------------------------------------------------------------------


def _entries(root: Path) -> list[_Entry]:
    """Everything in a folder and the folder itself, a folder before its content, in the order of names."""
    entries = []
    size = 0
    for entry in _walk(_Entry(root.name, root, True)):
        entries.append(entry)
        size += 0 if entry.is_folder else entry.path.stat().st_size
        _check_limits(str(root), len(entries), size)
    return entries


def _walk(entry: _Entry) -> Iterator[_Entry]:
    mode = entry.path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise InputError(f"{entry.path} is {kind}; expected only files and folders")
    if not is_safe(entry.name):
        raise InputError(f"the name of {str(entry.path)!r} cannot be packed; expected Unicode without backslashes")
    entry = entry._replace(is_folder=stat.S_ISDIR(mode))
    yield entry
    if entry.is_folder:
        for child in sorted(entry.path.iterdir()):
            yield from _walk(_Entry(f"{entry.name}/{child.name}", child, False))


def _is_same(one: Path, other: Path) -> bool:
    ours, theirs = _entries(one), _entries(other)
    same_names = [(entry.name, entry.is_folder) for entry in ours] == [
        (entry.name, entry.is_folder) for entry in theirs
    ]
    return same_names and all(
        filecmp.cmp(our.path, their.path, shallow=False)
        for our, their in zip(ours, theirs, strict=True)
        if not our.is_folder
    )


def _check_limits(what: str, members: int, size: int) -> None:
    if members > MAX_MEMBERS:
        raise InputError(f"{what} holds more than {MAX_MEMBERS} files and folders; expected fewer")
    if size > MAX_UNPACKED_BYTES:
        raise InputError(f"{what} holds {size} bytes or more; expected at most {MAX_UNPACKED_BYTES}")


# -- Writing --------------------------------------------------------------------------------------------------------


def _write_tar(archive: Path, entries: list[_Entry]) -> None:
    # A gzip header without name and time, and tar headers with neither time nor owner.
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            if entry.is_folder:
                info.type, info.mode = tarfile.DIRTYPE, _FOLDER_MODE
                tar.addfile(info)
                continue
            with entry.path.open("rb") as file:
                info.size, info.mode = os.fstat(file.fileno()).st_size, _FILE_MODE
                tar.addfile(info, file)


def _write_zip(archive: Path, entries: list[_Entry]) -> None:
    with zipfile.ZipFile(archive, "w") as zipped:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name + "/" * entry.is_folder, _ZIP_DATE)
            info.create_system = _UNIX
            if entry.is_folder:
                info.external_attr = (stat.S_IFDIR | _FOLDER_MODE) << 16
                zipped.writestr(info, b"")
                continue
            info.external_attr = (stat.S_IFREG | _FILE_MODE) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with entry.path.open("rb") as file:
                info.file_size = os.fstat(file.fileno()).st_size
                with zipped.open(info, "w") as member:
                    shutil.copyfileobj(file, member, CHUNK_BYTES)


# -- Unpacking ------------------------------------------------------------------------------------------------------


def _extract(archive: Path, members: Iterator[Member], folder: Path) -> Path:
    """Write members into an empty folder, each checked before; return the one folder that they are in."""
    seen: set[str] = set()
    size = 0
    top = ""
    for member in members:
        where = f"archive {archive}: member {member.name!r}"
        if not is_safe(member.name):
            raise InputError(f"{where} is no plain path; expected one that stays in the folder")
        if member.name in seen:
            raise InputError(f"{where} is there twice; expected every name once")
        seen.add(member.name)
        size += member.size
        _check_limits(f"archive {archive}", len(seen), size)
        first, *rest = member.name.split("/")
        top = top or first
        if first != top or not (rest or member.is_folder):
            raise InputError(f"{where} is not in folder {top!r}; expected one folder on top, with everything in it")
        path = folder / member.name
        try:
            (path if member.is_folder else path.parent).mkdir(parents=True, exist_ok=True)
            written = 0 if member.is_folder else _write(path, member.chunks)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{where} is a file as well as a folder; expected one of them") from None
        if written != member.size:
            raise InputError(f"{where} is damaged (it has {written} bytes); expected {member.size} bytes")
    if not top:
        raise InputError(f"archive {archive} is empty; expected a folder in it")
    return folder / top


def _write(path: Path, chunks: Iterator[bytes]) -> int:
    with path.open("xb") as file:
        return sum(file.write(chunk) for chunk in chunks)
