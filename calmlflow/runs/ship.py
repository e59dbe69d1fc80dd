"""Ship a training to S3 and fetch it back."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from calmlflow.console import byte_progress
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.archive import pack, unpack
from calmlflow.storage.s3 import S3Object, asking, download, new_client, parse_s3, upload

SUMS = "SHA256SUMS"
"""Object beside the others that lists their SHA-256, as ``sha256sum --check`` reads it."""
_TRIES = 20


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
    lines: list[str] = []
    sums: dict[str, str] = {}
    with byte_progress("sending", total) as advance:
        for name, path in files.items():
            one = target._replace(key=f"{target.key}/{name}")
            sha256 = upload(path, one, client, advance)
            sums[name] = sha256
            lines.append(f"{one} sha256 {sha256} ({path.stat().st_size:,} bytes)")
    _add_sums(client, target._replace(key=f"{target.key}/{SUMS}"), sums)
    return lines


def _add_sums(client: Any, listing: S3Object, sums: Mapping[str, str]) -> None:
    """Add the SHA-256 of files to a listing; lines that somebody else adds meanwhile stay."""
    place = {"Bucket": listing.bucket, "Key": listing.key}
    for _ in range(_TRIES):
        there: dict[str, str] = {}
        unchanged = {"IfNoneMatch": "*"}
        with asking(listing, "written", "a bucket that is there, and credentials that allow it"):
            try:
                found = client.get_object(**place)
                unchanged = {"IfMatch": found["ETag"]}
                pairs = (line.partition("  ") for line in found["Body"].read().decode(errors="replace").splitlines())
                there = {name: sha256 for sha256, _, name in pairs}
            except client.exceptions.NoSuchKey:
                pass
            text = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted({**there, **sums}.items()))
            try:
                client.put_object(**place, **unchanged, Body=text.encode(), ContentType="text/plain")
                return
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
    raise CalmlflowError(f"{listing} is changed by others all the time; expected to add lines: ship once more")


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
