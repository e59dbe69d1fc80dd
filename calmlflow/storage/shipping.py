"""Files to S3 and back: checksummed, and taken up again where they were interrupted.

Every object carries its SHA-256 as metadata, and ``SHA256SUMS`` beside the objects lists them all, so that
``sha256sum --check`` works on a copy of the folder. Where S3 keeps checksums itself, it checks each request by SHA-256.
"""

import fcntl
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.s3 import new_client
from calmlflow.storage.shipping_parts import (
    Target,
    asking,
    hash_file,
    head_object,
    parse_uri,
    refusal,
    send,
)

OnProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

SUMS = "SHA256SUMS"

_CHUNK_BYTES = 1 << 18
_MAX_SUMS_BYTES = 1 << 20


@dataclass(frozen=True)
class Shipped:
    """A file that is in S3 now; ``sent_bytes`` were sent for it this time, 0 where it was there already."""

    uri: str
    size_bytes: int
    sha256: str
    sent_bytes: int


def ship(
    files: Sequence[Path], s3_uri: str, on_progress: OnProgress | None = None, root: Path | None = None
) -> tuple[Shipped, ...]:
    """Upload files; objects that hold the same already are left, and an interrupted upload goes on.

    A file of more than 8 MiB goes in parts, and a second call with the same content sends those that are
    missing. An upload that is never taken up again leaves its parts behind: give the bucket a rule that ends such.

    Parameters
    ----------
    files : sequence of Path
        Each becomes the object of its name, or of its path below ``root`` if it lies there.
    s3_uri : str
        ``s3://bucket`` or ``s3://bucket/prefix``. Address and credentials of the store are boto3's own settings.
    on_progress : callable, optional
        Called with bytes done and bytes in all.

    Raises
    ------
    InputError
        The URI, or a file that cannot be read or whose name does not fit into ``SHA256SUMS``.
    CalmlflowError
        S3 refused, or holds something else afterwards; names bucket, key and S3's error code.
    """
    folder = parse_uri(s3_uri)
    prefix = folder.key.rstrip("/") + "/" if folder.key else ""
    names = [path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.name for path in files]
    for name in names:
        if not re.fullmatch(r"[^\x00-\x1f\\\ud800-\udfff]+", name) or name == SUMS or names.count(name) > 1:
            raise InputError(
                f"file {name!r} cannot be shipped; expected different names, as plain text, and not {SUMS}"
            )
    contents = [hash_file(path) for path in files]
    total = sum(content.size for content in contents)
    client = new_client()
    shipped: list[Shipped] = []
    done = 0
    for name, content in zip(names, contents, strict=True):
        target = folder._replace(key=prefix + name)

        def advance(size: int) -> None:
            nonlocal done
            done += size
            if on_progress:
                on_progress(done, total)

        sent = send(client, target, content, advance)
        shipped.append(Shipped(str(target), content.size, content.sha256, sent))
    if shipped:
        _add_sums(
            client,
            folder._replace(key=prefix + SUMS),
            {name: it.sha256 for name, it in zip(names, shipped, strict=True)},
        )
    return tuple(shipped)


def fetch(s3_uri: str, output: Path, on_progress: OnProgress | None = None) -> Path:
    """Download an object that `ship` made; an interrupted download goes on where it ended.

    Parameters
    ----------
    s3_uri : str
        ``s3://bucket/key``.
    output : Path
        Folder that gets the file, under the last part of the key; made if it is not there. Until the SHA-256 is
        verified, the file is hidden and ends in ``.part``.
    on_progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    Path
        The file. One that is there already is kept if it has the same SHA-256.

    Raises
    ------
    InputError
        The URI, or another file is there under this name.
    CalmlflowError
        S3 refused, the object has no SHA-256, or what came does not have it.
    """
    source = parse_uri(s3_uri)
    name = source.key.rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name:
        raise InputError(f"{source} names no object; expected s3://bucket/prefix/name")
    client = new_client()
    head = head_object(client, source)
    if head is None:
        raise CalmlflowError(f"{source} does not exist; expected an object in bucket {source.bucket}")
    sha256 = head["Metadata"].get("sha256") or _read_sums(client, source.beside(SUMS)).get(name, "")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise CalmlflowError(f"{source} has no SHA-256; expected it as metadata sha256, or in {SUMS} beside it")
    path = output / name
    try:
        output.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if (found := hash_file(path).sha256) != sha256:
                raise InputError(
                    f"{path} is there with SHA-256 {found}; expected {sha256} of {source}, or no such file"
                )
            return path
        # Named for the content: what was downloaded of another object is never continued.
        part = output / f".{name}.{sha256[:16]}.part"
        with part.open("ab") as file:
            _lock(file, part)
            _download(client, source, head, file, on_progress)
            file.flush()
            if (found := hash_file(part).sha256) != sha256:
                part.unlink()
                raise CalmlflowError(f"{source} came with SHA-256 {found}; expected {sha256}")
            part.replace(path)
    except OSError as error:
        raise CalmlflowError(
            f"{path} cannot be written ({error.strerror or error}); expected a folder for {source}"
        ) from None
    return path


def _download(
    client: Any, source: Target, head: dict[str, Any], file: BinaryIO, on_progress: OnProgress | None
) -> None:
    """Append what is missing; a connection that breaks is made again for as long as each one brings something."""
    size = head["ContentLength"]
    if file.tell() > size:
        file.seek(0)
        file.truncate()
    while (offset := file.tell()) < size:
        reason = "no data"
        try:
            wanted = {"Range": f"bytes={offset}-", "IfMatch": head["ETag"]}
            for chunk in client.get_object(**source.request, **wanted)["Body"].iter_chunks(_CHUNK_BYTES):
                file.write(chunk)
                if on_progress:
                    on_progress(file.tell(), size)
        except ClientError as error:
            raise refusal(source, "downloaded", error) from None
        except BotoCoreError as error:
            reason = type(error).__name__
        if file.tell() == offset:
            raise refusal(source, "downloaded", reason)


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CalmlflowError(f"{part} is being downloaded by another process; expected to be the only one") from None


def _read_sums(client: Any, target: Target) -> dict[str, str]:
    """SHA-256 by name, from lines as sha256sum writes them; empty where there is no such object."""
    head = head_object(client, target)
    if head is None:
        return {}
    if head["ContentLength"] > _MAX_SUMS_BYTES:
        raise CalmlflowError(f"{target} has {head['ContentLength']} bytes; expected at most {_MAX_SUMS_BYTES}")
    with asking(target, "downloaded"):
        text = client.get_object(**target.request)["Body"].read().decode("utf-8", "replace")
    return {name: sha256 for sha256, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.MULTILINE)}


def _add_sums(client: Any, target: Target, sums: dict[str, str]) -> None:
    known = _read_sums(client, target)
    merged = known | sums
    if merged != known:
        text = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(merged.items()))
        with asking(target, "uploaded"):
            client.put_object(**target.request, Body=text.encode(), ContentType="text/plain; charset=utf-8")
