"""Read control files from disk or S3."""

from dataclasses import dataclass
from pathlib import Path

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, parse_control
from calmlflow.predictor.http_client import within
from calmlflow.storage.s3 import MAX_KEY_BYTES, S3Object, check_bucket, read_object, s3_client

# Time limit of a request to S3, with a second try, in `calmlflow.settings.timeout_s`.
PATIENCE = 4


@dataclass(frozen=True)
class ControlObject:
    dataset: Dataset
    bucket: str
    key: str


def control_object(dataset: object, bucket: object, key: object = None) -> ControlObject:
    """Locate the control file of a dataset in S3; an InputError names a value that breaks its rule.

    Without a key, and for an empty one or calcloud's ``control``, it is `Dataset.control_key`. Another key must lie in
    ``control/{dataset}/``: the file of another dataset would give a wrong answer. The key of a mosaic is ignored.
    """
    job = parse_dataset(dataset)
    check_bucket(bucket)
    if job.is_hap or key in (None, "", "control"):
        return ControlObject(job, str(bucket), job.control_key)
    folder = f"control/{job.name}/"
    shown = repr(key[:60]) if isinstance(key, str) else f"of type {type(key).__name__}"
    text = key if isinstance(key, str) else ""
    # Surrogates, which JSON can write and UTF-8 cannot, count as unprintable.
    is_safe = text.isprintable() and len(text.encode()) <= MAX_KEY_BYTES and not {"..", "."} & set(text.split("/"))
    if not is_safe or not text.startswith(folder) or text.endswith("/"):
        raise InputError(
            f"Key {shown} is not that of a file of {job.name}; expected a printable key of at most {MAX_KEY_BYTES} "
            f"bytes in {folder}, or none for the usual one"
        )
    return ControlObject(job, str(bucket), text)


def read_control_file(path: Path) -> dict[str, str]:
    """Keys of a control file on disk; an InputError names the path."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONTROL_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"control file {path} cannot be read ({error.strerror}); expected key=value lines") from error
    return parse_control(content)


def read_control_object(dataset: str, bucket: str, key: str | None = None) -> dict[str, str]:
    """Keys of a control file in S3; empty for a mosaic. An InputError is the caller's fault, others are those of S3."""
    wanted = control_object(dataset, bucket, key)
    if wanted.dataset.is_hap:
        return {}
    target = S3Object(wanted.bucket, wanted.key)
    client, patience_s = s3_client(), PATIENCE * settings.timeout_s()
    try:
        # A store that sends a byte now and then never exceeds a read timeout.
        content = within(patience_s, lambda: read_object(client, target, MAX_CONTROL_FILE_BYTES, "a control file"))
    except TimeoutError as error:
        raise CalmlflowError(f"{target} cannot be read (no answer in time); expected a control file") from error
    return parse_control(content)
