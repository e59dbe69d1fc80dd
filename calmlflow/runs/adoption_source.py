"""Where networks that were trained elsewhere come from: a folder, a zip archive, or the package spacekit."""

import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from calmlflow.errors import InputError
from calmlflow.hst.scaling import Scaling
from calmlflow.settings import NETWORKS
from calmlflow.storage.archive import MAX_MEMBERS, extract

SPACEKIT_ARCHIVE = "spacekit/builder/trained_networks/hst_cal.zip"
MAX_FILE_BYTES = 1 << 26
MAX_DEPTH = 4
"""Folders above a file, as in ``{date-epoch}/models/mem_clf/mem_clf.keras``, and one to spare."""

SCALING_FILES = ("tx_data.json", "pt_transform", "pt_transform.json")
_OLDER_KEYS = (("f_lambda", "s_lambda"), ("f_mean", "s_mean"), ("f_sigma", "s_sigma"))
_WANTED = {f"{network}.keras": network for network in NETWORKS} | dict.fromkeys(SCALING_FILES, "scaling")


class SourceFile(NamedTuple):
    """A file of a source: what to call it, and its bytes."""

    shown: Path
    content: bytes


def read_source(source: str) -> dict[str, SourceFile]:
    """Read the files of three networks and of their scaling.

    Parameters
    ----------
    source : str
        A folder or a ``.zip`` archive with ``mem_clf.keras``, ``mem_reg.keras``,
        ``wall_reg.keras`` and ``tx_data.json`` (or the older ``pt_transform``), side by side or each in its folder, as
        in ``models/mem_clf/mem_clf.keras``; or ``spacekit``, the archive in the installed package of this name.

    Returns
    -------
    dict of str to SourceFile
        ``mem_clf``, ``mem_reg``, ``wall_reg`` and ``scaling``; nothing has been looked into.

    Raises
    ------
    InputError
        There is no such source, the package is not installed, the archive is damaged or holds links or names that
        leave it, or a file is missing, too large, or there more than once; names it.
    """
    # As with the sample of jobs, a folder of this name is said as ./spacekit.
    place = _spacekit_archive() if source == "spacekit" else Path(source)
    shown = Path("spacekit") if source == "spacekit" else place
    if place.is_dir():
        return _chosen(_files_of_folder(place, place), shown)
    if not place.is_file() or place.suffix.lower() != ".zip":
        what = "is no zip archive" if place.is_file() else "does not exist"
        raise InputError(f"source {source!r} {what}; expected a folder, a .zip archive, or spacekit")
    with tempfile.TemporaryDirectory() as temporary:
        extract(place, Path(temporary))
        return _chosen(_files_of_folder(Path(temporary), shown), shown)


def _chosen(files: Iterator[tuple[str, bytes]], shown: Path) -> dict[str, SourceFile]:
    """Of the files of a source those that are wanted, each of them once."""
    found: dict[str, SourceFile] = {}
    for name, content in files:
        part = _WANTED[PurePosixPath(name).name]
        if part in found:
            raise InputError(
                f"{shown} holds both {found[part].shown.relative_to(shown)} and {name}; expected one of them"
            )
        found[part] = SourceFile(shown / name, content)
    for name, part in _WANTED.items():
        if part not in found:
            raise InputError(f"{shown} holds no {name}; expected {', '.join(list(_WANTED)[:4])}")
    return found


def _spacekit_archive() -> Path:
    try:
        # Not by importing it: spacekit changes how TensorFlow takes NumPy's types, for the whole process.
        place = Path(str(distribution("spacekit").locate_file(SPACEKIT_ARCHIVE)))
    except PackageNotFoundError:
        raise InputError(
            "source is spacekit, and the package spacekit is not installed; expected it (pip install spacekit), or a "
            "folder or an archive"
        ) from None
    if not place.is_file():
        raise InputError(f"the installed package spacekit has no {SPACEKIT_ARCHIVE}; expected it as in spacekit 1.1")
    return place


def _files_of_folder(folder: Path, source: Path) -> Iterator[tuple[str, bytes]]:
    seen = 0
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        seen += len(folders) + len(files)
        if seen > MAX_MEMBERS:
            raise InputError(
                f"{source} holds more than {MAX_MEMBERS} files and folders; expected those of one training"
            )
        if len(inside.parts) >= MAX_DEPTH:
            folders.clear()
        folders.sort()
        for name in sorted({*folders, *files} & _WANTED.keys()):
            path = Path(place, name)
            if not path.is_file():
                raise InputError(f"{source / inside / name} is no file; expected one, as Keras 3 writes it")
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise InputError(f"{source / inside / name} has {size} bytes; expected at most {MAX_FILE_BYTES}")
            try:
                yield (inside / name).as_posix(), path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}); expected a file") from None


def read_scaling(file: SourceFile) -> Scaling:
    """Read the scaling of networks from elsewhere, told by its keys.

    ``lambdas``, ``mu`` and ``sigma`` as in ``tx_data.json``, or the older ``f_lambda``, ``f_mean``, ``f_sigma`` (of
    n_files) and ``s_lambda``, ``s_mean``, ``s_sigma`` (of total_mb). What is written is always the former.

    Raises
    ------
    InputError
        It does not parse, or holds a number that cannot be; names the file.
    """
    try:
        data = json.loads(file.content)
        older = data.keys() >= {key for pair in _OLDER_KEYS for key in pair}
        if older:
            columns = ([float(data[key]) for key in pair] for pair in _OLDER_KEYS)
            data = dict(zip(("lambdas", "mu", "sigma"), columns, strict=True))
        return Scaling.from_json(json.dumps(data))
    except InputError as error:
        raise InputError(f"{file.shown}: {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            f"{file.shown} does not parse; expected lambdas, mu and sigma, or f_lambda, s_lambda, f_mean, f_sigma, "
            "s_mean, s_sigma"
        ) from None
