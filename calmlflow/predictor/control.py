"""Where control files come from: a local path, or an S3 bucket."""

from dataclasses import dataclass
from pathlib import Path

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, parse_control
from calmlflow.predictor.registry_client import within
from calmlflow.storage.s3 import MAX_KEY_BYTES, S3Object, check_bucket, read_object, s3_client

PATIENCE = 4
"""How many times `calmlflow.settings.timeout_s` a control file may take, with a second try."""


@dataclass(frozen=True)
class ControlObject:
    """A control file in S3; see `control_object`."""

    dataset: Dataset
    bucket: str
    key: str


def control_object(dataset: object, bucket: object, key: object = None) -> ControlObject:
    """Say where the control file of a dataset is in S3.

    Parameters
    ----------
    dataset : str
    bucket : str
    key : str, optional
        Default, also for an empty text and calcloud's ``control``: the one of `Dataset.control_key`. Another one must
        lie in the dataset's own folder, ``control/{dataset}/``: the file of another dataset would give a wrong answer.
        Not looked at for a mosaic.

    Raises
    ------
    InputError
        Names the value that breaks its rule.
    """
    job = parse_dataset(dataset)
    check_bucket(bucket)
    # Of a mosaic no control file is read, whatever the key.
    if job.is_hap or key in (None, "", "control"):
        return ControlObject(job, str(bucket), job.control_key)
    folder = f"control/{job.name}/"
    expected = f"expected a key of one file in {folder}, or none for the usual one"
    if not isinstance(key, str):
        raise InputError(f"Key is no text ({type(key).__name__}); {expected}")
    shown = repr(key[:60])
    # Half a character, as JSON can write it, has no bytes in UTF-8; it counts as unprintable.
    if not key.isprintable():
        raise InputError(f"Key {shown} holds a character that cannot be printed; {expected}")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InputError(f"Key {shown} has {len(key.encode())} bytes; expected at most {MAX_KEY_BYTES}, as S3 allows")
    if not key.startswith(folder) or key.endswith("/") or {"..", "."} & set(key.split("/")):
        raise InputError(f"Key {shown} is not that of a file of {job.name}; {expected}")
    return ControlObject(job, str(bucket), key)


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
    if wanted.dataset.is_hap:
        return {}
    target = S3Object(wanted.bucket, wanted.key)
    client, patience_s = s3_client(), PATIENCE * settings.timeout_s()
    try:
        # A store that sends a byte now and then would keep the caller for ever.
        content = within(patience_s, lambda: read_object(client, target, MAX_CONTROL_FILE_BYTES, "a control file"))
    except TimeoutError:
        raise CalmlflowError(f"{target} cannot be read (no answer in time); expected a control file") from None
    return parse_control(content)
