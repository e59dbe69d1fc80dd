"""Read, upload and download objects of S3, and translate its errors; boto3 is imported at the first request."""

import functools
import hashlib
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.files import replacing

MAX_KEY_BYTES = 1024
"""S3's own limit."""

_LIBRARIES = ("boto3", "botocore", "s3transfer", "urllib3", "http")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9]|[.-](?!\.))*[a-z0-9]")
_making = threading.Lock()


class NoSuchObjectError(InputError):
    """There is no such bucket or key."""


class NoSuchBucketError(NoSuchObjectError):
    """There is no such bucket."""


class DeniedError(CalmlflowError):
    """The credentials may not ask; where they may not list a bucket, S3 answers so for a missing key too."""


class TryAgainError(CalmlflowError):
    """S3 was busy, or an object could not be read to its end."""


_ERRORS: dict[str, type[CalmlflowError]] = {
    **dict.fromkeys(("NoSuchKey", "404"), NoSuchObjectError),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), NoSuchBucketError),
    **dict.fromkeys(("AccessDenied", "403"), DeniedError),
    **dict.fromkeys(("InternalError", "SlowDown", "ServiceUnavailable", "500", "503"), TryAgainError),
}
# Code of S3 -> error; every other one is a CalmlflowError.


class S3Object(NamedTuple):
    """An object, or a prefix of several."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_s3(uri: str) -> S3Object:
    """Read ``s3://bucket/key``; the key may be empty."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or re.search("[:@]", bucket):
        # A key and a secret may stand before the bucket.
        raise InputError(f"{uri.rpartition('@')[2]!r} is no S3 URI; expected s3://bucket/key")
    check_bucket(bucket)
    return S3Object(bucket, key)


def check_bucket(bucket: object) -> None:
    """Raise an InputError where S3 allows no bucket of that name."""
    expected = "expected 3 to 63 lower-case letters, digits, dots and hyphens, as S3 allows"
    if not isinstance(bucket, str):
        kind = "missing" if bucket is None else f"no text ({type(bucket).__name__})"
        raise InputError(f"Bucket is {kind}; {expected}")
    if not 3 <= len(bucket) <= 63 or not _BUCKET.fullmatch(bucket) or _is_ip_address(bucket):
        raise InputError(f"Bucket {bucket[:63]!r} is no bucket's name; {expected}")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


# -- Clients --------------------------------------------------------------------------------------------------------


def s3_client() -> Any:
    """The client of this process, with the predictor's timeout; threads may share it."""
    address = [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")]
    with _making:
        # A process that was forked must not share its parent's connections.
        return _kept_client(os.getpid(), tuple(address), settings.timeout_s())


@functools.lru_cache(maxsize=1)
def _kept_client(process: int, address: tuple[str | None, ...], timeout_s: float) -> Any:
    del process, address
    return new_client(timeout_s, timeout_s, attempts=2)


def new_client(connect_s: float = 10.0, read_s: float = 30.0, attempts: int = 5, connections: int = 16) -> Any:
    """Make a client with boto3's own settings; where they name no address, ``MLFLOW_S3_ENDPOINT_URL`` counts.

    ``AWS_MAX_ATTEMPTS`` comes before ``attempts``. Raises a CalmlflowError where the settings do not fit together.
    """
    import boto3
    from botocore.config import Config

    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = None if own else os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = attempts
    config = Config(connect_timeout=connect_s, read_timeout=read_s, retries=retries, max_pool_connections=connections)
    try:
        return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)
    except Exception as error:
        # The text may hold an address with its password.
        raise CalmlflowError(
            f"boto3 cannot make a client for S3 ({type(error).__name__}); expected AWS_* variables that fit together"
        ) from error


# -- Requests -------------------------------------------------------------------------------------------------------


class Content(NamedTuple):
    """Bytes of an object, and its time of modification (epoch seconds, 0 if unknown)."""

    data: bytes
    modified: float


def read_object(client: Any, target: S3Object, limit: int, expected: str) -> bytes:
    """Read the bytes of an object; see `read_content`."""
    return read_content(client, target, limit, expected).data


def read_content(client: Any, target: S3Object, limit: int, expected: str) -> Content:
    """Read an object of at most ``limit`` bytes into memory; ``expected`` is its kind, for errors.

    Raises NoSuchObjectError, TryAgainError (S3 is busy, or the object cannot be read to its end), or another
    CalmlflowError.
    """
    with asking(target, "read", expected):
        response = client.get_object(Bucket=target.bucket, Key=target.key)
        size = response.get("ContentLength", -1)
        modified = response["LastModified"].timestamp() if "LastModified" in response else 0.0
    try:
        with asking(target, "read", expected), response["Body"] as body:
            if size > limit:
                raise InputError(f"{target} has {size} bytes; expected {expected}, at most {limit}")
            content: bytes = body.read(limit + 1)
    except InputError:
        raise
    except CalmlflowError as error:
        raise TryAgainError(str(error)) from error
    if len(content) != size:
        raise TryAgainError(f"{target} cannot be read ({len(content)} of {size} bytes); expected {expected}")
    return Content(content, modified)


def list_pages(client: Any, prefix: S3Object, expected: str, **request: Any) -> Iterator[dict[str, Any]]:
    """Pages of a listing of the objects below a prefix, requested one by one."""
    with asking(prefix, "listed", expected):
        pages = client.get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=prefix.bucket, Prefix=prefix.key, **request)


def list_objects(client: Any, prefix: S3Object, expected: str) -> Iterator[dict[str, Any]]:
    """``Key``, ``Size``, ``ETag`` and so on of the objects below a prefix, requested page by page."""
    for page in list_pages(client, prefix, expected):
        yield from page.get("Contents", ())


@contextmanager
def asking(target: S3Object, act: str, expected: str) -> Iterator[None]:
    """Translate the errors of boto3 in the block; ``act`` is a participle, ``expected`` what the object should be."""
    try:
        yield
    except Exception as error:
        # boto3's libraries share no base of errors. A full disk is an OSError of Python and not translated.
        library = type(error).__module__.partition(".")[0]
        if library not in _LIBRARIES and not isinstance(error, ConnectionError | TimeoutError):
            raise
        reason = s3_reason(error)
        raise _ERRORS.get(reason, CalmlflowError)(
            f"{target} cannot be {act} ({reason}); expected {expected}"
        ) from error


def s3_reason(error: Exception) -> str:
    """S3's code, or the class of boto3's error; not its text, which may hold an address with its password."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)[:60]


# -- Files ----------------------------------------------------------------------------------------------------------


def upload(path: Path, target: S3Object, client: Any = None, advance: Callable[[int], None] | None = None) -> str:
    """Upload a file, in parts where it is large, with its SHA-256 as metadata, and return that.

    The object holds the whole file afterwards, or what it held before. ``advance`` is called with the number of bytes
    sent since the last call, by several threads. Raises a CalmlflowError where S3 refuses or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with asking(target, "written", "a bucket that is there, and credentials that allow it"):
                (client or new_client()).upload_fileobj(
                    file, target.bucket, target.key, {"Metadata": {"sha256": sha256}}, Callback=advance
                )
    except OSError as error:
        raise CalmlflowError(f"file {path} cannot be read ({error.strerror}); expected a file") from error
    return sha256


def download(
    target: S3Object,
    path: Path,
    expected: str,
    client: Any = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Download an object to a file, which is replaced when the whole content has the SHA-256 of the metadata.

    ``expected`` is the kind of object, for errors; ``advance`` is that of `upload`. Raises NoSuchObjectError or another
    CalmlflowError.
    """
    client = client or new_client()
    with asking(target, "read", expected):
        head = client.head_object(Bucket=target.bucket, Key=target.key)
    with replacing(path, "wb") as file:
        with asking(target, "read", expected):
            client.download_fileobj(target.bucket, target.key, file, Callback=advance)
        file.flush()
        with Path(file.name).open("rb") as written:
            found = hashlib.file_digest(written, "sha256").hexdigest()
        if found != (sha256 := _sha256(head, found)):
            raise CalmlflowError(f"{target} came with SHA-256 {found}; expected {sha256}, as its metadata says")


def _sha256(head: dict[str, Any], default: str) -> str:
    """SHA-256 in the metadata of an object; some stores give the name of a value in capitals."""
    return {name.lower(): value for name, value in head["Metadata"].items()}.get("sha256", default)
