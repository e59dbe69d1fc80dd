"""List a bundle's files with their SHA-256 in ``bundle.json``, and check them against it."""

import hashlib
import json
import mmap
from collections.abc import Callable, Container, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from calmlflow.errors import InputError
from calmlflow.hst.ladder import DEFAULT, LADDER, LADDER_FILE, Ladder
from calmlflow.predictor.evidence import FOLDER as EVIDENCE
from calmlflow.settings import NETWORKS

MANIFEST = "bundle.json"
# 2 if a network has tables of its own, 3 if evidence corrects the networks, 4 if the ladder is not the default one: a
# reader that does not know them must refuse the bundle.
FORMATS = (1, 2, 3, 4)
# Tables that a network may have in its own folder; otherwise the one at the top counts.
OWN_TABLES = ("tx_data.json", "seen_rows.json")
# Limits of all files of a bundle together; evidence of a million datasets has 40 megabytes.
MAX_FILES, MAX_BYTES = 100, 1 << 30


def table_of(network: str, table: str, files: Container[str]) -> str:
    """The table of a network among a bundle's files: its own, or else the one at the top."""
    own = f"{network}/{table}"
    return own if own in files else table


def ladder_of(files: Mapping[str, Any]) -> Ladder:
    """The ladder that a bundle was trained for; bundles from before they had one know the default ladder."""
    return Ladder.from_json(files[LADDER_FILE]) if LADDER_FILE in files else DEFAULT


def parse_manifest(content: bytes, bundle: str) -> dict[str, Any]:
    """Read ``bundle.json``: ``format`` (1 to 4), ``networks`` (list) and ``sha256`` (file -> hex digest)."""
    try:
        manifest = json.loads(content)
        known = (
            manifest["format"] in FORMATS
            and set(manifest["networks"]) <= set(NETWORKS)
            and len(manifest["sha256"]) <= MAX_FILES
            and all(isinstance(digest, str) for digest in manifest["sha256"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise InputError(
            f"{bundle}/{MANIFEST} is damaged; expected format {' or '.join(map(str, FORMATS))}, networks and sha256"
        )
    for name in manifest["sha256"]:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or {"..", "."} & set(parts) or "\\" in name or not name.isprintable():
            raise InputError(f"bundle {bundle}: {MANIFEST} lists {name[:60]!r}, which lies outside the bundle")
    return manifest


def read_listed(
    manifest: Mapping[str, Any], bundle: str, read: Callable[[str, str], Any], whole: bool = False
) -> dict[str, Any]:
    """Read the files that a manifest lists with ``read(name, digest)``, those for further training only if ``whole``.

    An InputError names one whose SHA-256 differs.
    """
    files: dict[str, Any] = {}
    for name, digest in manifest["sha256"].items():
        if name.endswith(".keras") and not whole:
            continue
        files[name] = read(name, digest)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise InputError(f"bundle {bundle}: {name} does not match its SHA-256 in {MANIFEST}; expected it unchanged")
        if sum(map(len, files.values())) > MAX_BYTES:
            raise InputError(
                f"bundle {bundle} has more than {MAX_BYTES:,} bytes; expected three small networks and their tables"
            )
    return files


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``bundle.json`` of a folder."""
    return parse_manifest(_bytes_of(folder, MANIFEST, "expected a bundle's folder"), str(folder))


def read_files(folder: Path, manifest: Mapping[str, Any], whole: bool = False) -> dict[str, Any]:
    """Read the files of a folder that a manifest lists, see `read_listed`; tables of evidence are memory-mapped."""

    def read(name: str, digest: str) -> Any:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"bundle {folder}: {MANIFEST} lists {name!r}, which lies outside the bundle")
        return _bytes_of(folder, name, f"expected it as listed in {MANIFEST}")

    return read_listed(manifest, str(folder), read, whole)


def write_manifest(folder: Path) -> None:
    """Complete a bundle: list its networks and the SHA-256 of every file in ``folder``.

    A bundle without a ladder gets the one in force.
    """
    if not (folder / LADDER_FILE).exists():
        (folder / LADDER_FILE).write_text(LADDER.to_json())
    networks = [network for network in NETWORKS if (folder / network / f"{network}.onnx").is_file()]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    has_own_tables = any(f"{network}/{table}" in digests for network in networks for table in OWN_TABLES)
    has_evidence = any(name.startswith(f"{EVIDENCE}/") for name in digests)
    is_usual = Ladder.from_json((folder / LADDER_FILE).read_bytes()) == DEFAULT
    number = 4 if not is_usual else 3 if has_evidence else 2 if has_own_tables else 1
    manifest = {"format": number, "networks": networks, "sha256": digests}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _bytes_of(folder: Path, name: str, expected: str) -> Any:
    try:
        with (folder / name).open("rb") as file:
            if name.endswith(".npy"):
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read(MAX_BYTES + 1)
    except ValueError as error:
        raise InputError(f"bundle {folder}: {name} is empty; {expected}") from error
    except OSError as error:
        raise InputError(f"bundle {folder}: {name} cannot be read ({error.strerror}); {expected}") from error
