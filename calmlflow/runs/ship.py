"""Ship a training to S3 and fetch it back."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calmlflow.console import byte_progress
from calmlflow.errors import InputError
from calmlflow.storage.archive import pack, unpack
from calmlflow.storage.s3 import asking, download, new_client, parse_s3, upload

SUMS = "SHA256SUMS"
"""Object beside the others that lists their SHA-256, as ``sha256sum --check`` reads it."""


def ship_training(tree: str, output: str, destination: str) -> list[str]:
    """Pack a training and, unless the destination is ``none``, send it; one line for each file.

    Parameters
    ----------
    tree : str
        Folder of the training.
    output : str
        Folder that gets a folder ``{date-epoch}`` with the archives.
    destination : str
        ``s3://bucket/prefix``, which gets ``{date-epoch}/``, or ``none``.
    """
    folder = Path(tree).resolve()
    if destination != "none":
        # Before the work of packing.
        parse_s3(destination)
    files = pack(folder, Path(output) / folder.name)
    return [str(file) for file in files] if destination == "none" else send_training(folder, files, destination)


def send_training(tree: Path, archives: Sequence[Path], destination: str) -> list[str]:
    """Send the files of a training, and archives of it, to ``{destination}/{date-epoch}/``; one line for each."""
    files = {path.name: path for path in archives}
    files |= {path.relative_to(tree).as_posix(): path for path in sorted(tree.rglob("*")) if path.is_file()}
    for name in files:
        if name == SUMS or re.search(r"[\x00-\x1f\\\ud800-\udfff]", name):
            raise InputError(f"file {name!r} cannot be shipped; expected a name of plain text, other than {SUMS}")
    total = sum(path.stat().st_size for path in files.values())
    target = parse_s3(f"{destination.rstrip('/')}/{tree.name}")
    client = new_client()
    lines, sums = [], ""
    with byte_progress("sending", total) as advance:
        for name, path in files.items():
            one = target._replace(key=f"{target.key}/{name}")
            sha256 = upload(path, one, client, advance)
            sums += f"{sha256}  {name}\n"
            lines.append(f"{one} sha256 {sha256} ({path.stat().st_size:,} bytes)")
    listing = target._replace(key=f"{target.key}/{SUMS}")
    with asking(listing, "written", "a bucket that is there, and credentials that allow it"):
        client.put_object(Bucket=listing.bucket, Key=listing.key, Body=sums.encode(), ContentType="text/plain")
    return lines


def fetch_training(source: str, output: str) -> str:
    """Fetch an archive of a training, ``s3://bucket/prefix/name``, and unpack it; the path of its folder."""
    target = parse_s3(source)
    name = target.key.rpartition("/")[2]
    if not name.strip(".") or "\0" in name:
        raise InputError(f"{target} names no object; expected s3://bucket/prefix/name")
    with tempfile.TemporaryDirectory() as temporary, byte_progress("fetching") as advance:
        archive = Path(temporary, name)
        download(target, archive, "an archive of a training", advance=advance)
        return str(unpack(archive, Path(output)))
