"""Where control files come from: a local path, or an S3 bucket."""

import functools
import ipaddress
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calmlflow import settings
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, parse_control

MAX_KEY_BYTES = 1024
"""S3's own limit."""

_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9]|[.-](?!\.))*[a-z0-9]")
_making = threading.Lock()


@dataclass(frozen=True)
class ControlObject:
    """A control file in S3; see `control_object`."""

    dataset: Dataset
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key[:120]}"


def control_object(dataset: object, bucket: object, key: object = None) -> ControlObject:
    """Say where the control file of a dataset is in S3.

    Parameters
    ----------
    dataset : str
    bucket : str
    key : str, optional
        Default, also for an empty text and calcloud's ``control``: the one of `Dataset.control_key`. Another one must
        lie in the dataset's own folder, ``control/{dataset}/``: the file of another dataset would give a wrong answer.

    Raises
    ------
    InputError
        Names the value that breaks its rule.
    """
    job = parse_dataset(dataset)
    check_bucket(bucket)
    if key in (None, "", "control"):
        return ControlObject(job, str(bucket), job.control_key)
    folder = f"control/{job.name}/"
    expected = f"expected a key of one file in {folder}, or none for the usual one"
    if not isinstance(key, str):
        raise InputError(f"Key is {_kind(key)}; {expected}")
    shown = repr(key[:60])
    # Half a character, as JSON can write it, has no bytes in UTF-8; it counts as unprintable.
    if not key.isprintable():
        raise InputError(f"Key {shown} holds a character that cannot be printed; {expected}")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InputError(f"Key {shown} has {len(key.encode())} bytes; expected at most {MAX_KEY_BYTES}, as S3 allows")
    if not key.startswith(folder) or key.endswith("/") or {"..", "."} & set(key.split("/")):
        raise InputError(f"Key {shown} is not that of a file of {job.name}; {expected}")
    return ControlObject(job, str(bucket), key)


def check_bucket(bucket: object) -> None:
    """Raise an InputError where S3 allows no bucket of that name."""
    expected = "expected 3 to 63 lower-case letters, digits, dots and hyphens, as S3 allows"
    if not isinstance(bucket, str):
        raise InputError(f"Bucket is {_kind(bucket)}; {expected}")
    if not 3 <= len(bucket) <= 63 or not _BUCKET.fullmatch(bucket) or _is_ip_address(bucket):
        raise InputError(f"Bucket {bucket[:63]!r} is no bucket's name; {expected}")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _kind(value: object) -> str:
    """What a value that is no text is, in words that quote nothing of it."""
    return "missing" if value is None else f"no text ({type(value).__name__})"


def read_control_file(path: Path) -> dict[str, str]:
    """Keys of a control file on disk; an InputError names the path."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONTROL_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"control file {path} cannot be read ({error.strerror}); expected key=value lines") from None
    return parse_control(content)


def read_control_object(dataset: str, bucket: str, key: str | None = None) -> dict[str, str]:
    """Keys of a control file in S3.

    Parameters
    ----------
    dataset, bucket, key : str
        See `control_object`.

    Returns
    -------
    dict
        Empty for a mosaic, whose answer needs no control file: none is read.

    Raises
    ------
    InputError
        There is no such bucket or key, or its content is no control file.
    CalmlflowError
        S3 cannot be read otherwise, or not to the end; names bucket and key, and S3's reason.
    """
    wanted = control_object(dataset, bucket, key)
    return {} if wanted.dataset.is_hap else parse_control(_read(wanted))


def _read(wanted: ControlObject) -> bytes:
    client = s3_client()
    try:
        response = client.get_object(Bucket=wanted.bucket, Key=wanted.key)
        size = response["ContentLength"]
        with response["Body"] as body:
            if size > MAX_CONTROL_FILE_BYTES:
                raise InputError(
                    f"{wanted} has {size} bytes; expected a control file, at most {MAX_CONTROL_FILE_BYTES}"
                )
            content = body.read(MAX_CONTROL_FILE_BYTES + 1)
    except InputError:
        raise
    except Exception as error:
        # boto3, and what it stands on, raise families of their own, before and while the content comes.
        reason = s3_reason(error)
        kind = InputError if reason in ("NoSuchKey", "NoSuchBucket", "InvalidBucketName") else CalmlflowError
        raise kind(f"{wanted} cannot be read ({reason}); expected a control file") from None
    if len(content) != size:
        raise CalmlflowError(f"{wanted} cannot be read ({len(content)} of {size} bytes); expected a control file")
    return content


def s3_client() -> Any:
    """The process's client of S3, safe to share between threads; as quick to give up as the rest of the predictor.

    Address and credentials are boto3's own settings; where they name no address, ``MLFLOW_S3_ENDPOINT_URL`` counts.

    Raises
    ------
    CalmlflowError
        boto3's settings do not fit together.
    """
    own = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = None if own else os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    with _making:
        # A process that was forked must not share its parent's connections.
        return _client(os.getpid(), own, endpoint, settings.timeout_s())


@functools.lru_cache(maxsize=1)
def _client(process: int, own: str | None, endpoint: str | None, timeout_s: float) -> Any:
    """Made anew when one of the values changes."""
    del process, own
    import boto3
    from botocore.config import Config

    retries: dict[str, Any] = {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = 2
    config = Config(connect_timeout=timeout_s, read_timeout=timeout_s, retries=retries)
    try:
        return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)
    except Exception as error:
        # boto3's own kinds and ValueError. Their texts may quote an address with a password in it.
        raise CalmlflowError(
            f"boto3 cannot make a client for S3 ({type(error).__name__}); expected AWS_* variables that fit together"
        ) from None


def s3_reason(error: Exception) -> str:
    """S3's code for what it refused, or the kind of boto3's error; no text of it, which may quote an address."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)[:60]
