"""Where control files come from: a local path, or an S3 bucket."""

from pathlib import Path

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, parse_control


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
    dataset : str
    bucket : str
    key : str, optional
        Default: ``control/{dataset}/{dataset}_MemModelFeatures.txt``.

    Raises
    ------
    InputError
        There is no such bucket or key, or its content is no control file.
    CalmlflowError
        S3 cannot be read otherwise; names bucket and key, and S3's reason.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    key = key or parse_dataset(dataset).control_key
    try:
        body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        content = body.read(MAX_CONTROL_FILE_BYTES + 1)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        kind = InputError if code in ("NoSuchKey", "NoSuchBucket", "InvalidBucketName") else CalmlflowError
        raise kind(f"s3://{bucket}/{key} cannot be read ({code}); expected a control file") from None
    except (BotoCoreError, ValueError) as error:
        raise CalmlflowError(
            f"s3://{bucket}/{key} cannot be read ({type(error).__name__}); expected a control file"
        ) from None
    return parse_control(content)
