"""How a file becomes an S3 object, in parts that are not sent twice, and how S3's refusals are told."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from calmlflow.errors import CalmlflowError, InputError

PART_BYTES = 8 << 20
"""Larger files are sent in parts of this size."""

# S3 takes no more parts than this.
_MAX_PARTS = 10_000
_MISSING = ("404", "NoSuchKey", "NotFound")


class Target(NamedTuple):
    """An object, there or not."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def beside(self, name: str) -> "Target":
        """Object of another name under the same prefix."""
        folder, slash, _ = self.key.rpartition("/")
        return self._replace(key=folder + slash + name)

    @property
    def marker(self) -> "Target":
        """Object that says, while a file is being sent in parts, which content the parts belong to."""
        return self._replace(key=f"{self.key}.upload")

    @property
    def request(self) -> dict[str, str]:
        """The object as boto3's methods take it."""
        return {"Bucket": self.bucket, "Key": self.key}


@dataclass(frozen=True)
class Content:
    """A file as it was when it was read, with the SHA-256 of the whole and of each part."""

    path: Path
    size: int
    sha256: str
    part_bytes: int
    parts: tuple[bytes, ...]

    @property
    def checksums(self) -> set[str]:
        """What S3 may tell as the object's SHA-256: that of the whole, or that of the parts' checksums."""
        combined = hashlib.sha256(b"".join(self.parts)).digest()
        return {_base64(bytes.fromhex(self.sha256)), f"{_base64(combined)}-{len(self.parts)}"}


def parse_uri(s3_uri: str) -> Target:
    """Read ``s3://bucket/key``; the key may be empty. An InputError says what is no such URI."""
    scheme, _, rest = s3_uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", bucket):
        # Somebody may have put a key and a secret before the bucket.
        shown = s3_uri.rpartition("@")[2]
        raise InputError(f"{shown!r} is no S3 URI; expected s3://bucket/prefix")
    return Target(bucket, key)


def hash_file(path: Path) -> Content:
    """Read a file for its checksums; an InputError names one that cannot be read."""
    whole = hashlib.sha256()
    parts: list[bytes] = []
    size = 0
    try:
        part_bytes = max(PART_BYTES, math.ceil(path.stat().st_size / _MAX_PARTS))
        with path.open("rb") as file:
            while part := file.read(part_bytes):
                whole.update(part)
                parts.append(hashlib.sha256(part).digest())
                size += len(part)
    except OSError as error:
        raise InputError(f"file {path} cannot be read ({error.strerror}); expected a file") from None
    # An empty file is one empty part.
    return Content(path, size, whole.hexdigest(), part_bytes, tuple(parts) or (whole.digest(),))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


# -- S3 -------------------------------------------------------------------------------------------------------------


@contextmanager
def asking(target: Target, act: str) -> Iterator[None]:
    """Turn boto3's errors of the block into a `refusal`."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise refusal(target, act, error) from None


def refusal(target: Target, act: str, error: Exception | str) -> CalmlflowError:
    """An error that names the object, what was to be done, and S3's code or boto3's kind of error."""
    # Never boto3's text, which may quote an address with a password in it.
    if isinstance(error, Exception):
        error = _code(error) if isinstance(error, ClientError) else type(error).__name__
    return CalmlflowError(
        f"{target} cannot be {act} ({error}); expected an S3 store that answers, with that bucket, and credentials "
        "that allow it"
    )


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "unknown error")


def head_object(client: Any, target: Target) -> dict[str, Any] | None:
    """What S3 tells of an object, its metadata by names in lower case; None where there is none."""
    with asking(target, "looked up"):
        try:
            head = client.head_object(**target.request, ChecksumMode="ENABLED")
        except ClientError as error:
            if _code(error) in _MISSING:
                return None
            raise
    return {**head, "Metadata": {name.lower(): value for name, value in head["Metadata"].items()}}


# -- Upload ---------------------------------------------------------------------------------------------------------


def send(client: Any, target: Target, content: Content, advance: Callable[[int], None]) -> int:
    """Upload a file unless it is there, and verify; return the bytes sent."""
    sent = 0
    with asking(target, "uploaded"):
        if _is_there(head_object(client, target), content):
            advance(content.size)
        else:
            transfer = _send_parts if len(content.parts) > 1 else _send_whole
            sent = transfer(client, target, content, advance)
            head = head_object(client, target)
            if not _is_there(head, content):
                found = head and (head["ContentLength"], head["Metadata"].get("sha256"), head.get("ChecksumSHA256"))
                raise CalmlflowError(
                    f"{target} holds {found} (bytes, SHA-256, S3's checksum) after the upload; expected {content.size} "
                    f"bytes with SHA-256 {content.sha256}"
                )
        if len(content.parts) > 1:
            client.delete_object(**target.marker.request)
    return sent


def _send_whole(client: Any, target: Target, content: Content, advance: Callable[[int], None]) -> int:
    metadata = {"sha256": content.sha256}
    checksum = _base64(content.parts[0])
    client.put_object(**target.request, Body=_part(content, 1), Metadata=metadata, ChecksumSHA256=checksum)
    advance(content.size)
    return content.size


def _is_there(head: dict[str, Any] | None, content: Content) -> bool:
    return head is not None and (
        head["ContentLength"] == content.size
        and head["Metadata"].get("sha256") == content.sha256
        and head.get("ChecksumSHA256") in (None, *content.checksums)
    )


def _send_parts(client: Any, target: Target, content: Content, advance: Callable[[int], None]) -> int:
    upload_id, there = _begin(client, target, content)
    request = {**target.request, "UploadId": upload_id}
    parts = []
    sent = 0
    for number, digest in enumerate(content.parts, 1):
        size = min(content.part_bytes, content.size - (number - 1) * content.part_bytes)
        part = {"PartNumber": number, "ChecksumSHA256": _base64(digest)}
        etag = there.get((number, size))
        if etag is None:
            etag = client.upload_part(**request, **part, Body=_part(content, number))["ETag"]
            sent += size
        parts.append({**part, "ETag": etag})
        advance(size)
    client.complete_multipart_upload(**request, MultipartUpload={"Parts": parts})
    return sent


def _begin(client: Any, target: Target, content: Content) -> tuple[str, dict[tuple[int, int], str]]:
    """Find the interrupted upload of this content, or begin one; its number, and the ETag of each (part, size) there.

    S3 does not tell what an unfinished upload will be, so a marker object keeps it. Uploads of other content to the
    same key are aborted: nobody would finish them, and their parts cost money.
    """
    marker = head_object(client, target.marker)
    noted = marker["Metadata"] if marker else {}
    identity = {"sha256": content.sha256, "part-bytes": str(content.part_bytes)}
    upload_id = noted.get("upload-id") if identity.items() <= noted.items() else None
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=target.bucket, Prefix=target.key)
    uploads = {
        upload["UploadId"] for page in pages for upload in page.get("Uploads", ()) if upload["Key"] == target.key
    }
    for other in uploads - {upload_id}:
        client.abort_multipart_upload(**target.request, UploadId=other)
    if upload_id and upload_id in uploads:
        pages = client.get_paginator("list_parts").paginate(**target.request, UploadId=upload_id)
        parts = (part for page in pages for part in page.get("Parts", ()))
        return upload_id, {(part["PartNumber"], part["Size"]): part["ETag"] for part in parts}
    metadata = {"sha256": content.sha256}
    created = client.create_multipart_upload(**target.request, Metadata=metadata, ChecksumAlgorithm="SHA256")[
        "UploadId"
    ]
    client.put_object(**target.marker.request, Body=b"", Metadata={**identity, "upload-id": created})
    return created, {}


def _part(content: Content, number: int) -> bytes:
    try:
        with content.path.open("rb") as file:
            file.seek((number - 1) * content.part_bytes)
            body = file.read(content.part_bytes)
    except OSError as error:
        raise InputError(f"file {content.path} cannot be read ({error.strerror}); expected a file") from None
    if hashlib.sha256(body).digest() != content.parts[number - 1]:
        raise CalmlflowError(f"file {content.path} changed while it was shipped; expected it to stay as it was")
    return body
