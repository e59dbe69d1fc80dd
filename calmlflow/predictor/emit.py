"""Keep every prediction with the job record's columns, so that it can be compared when the job has finished.

An emitter is called with one record after each answer, in the process that answers, and may raise: the caller logs a
warning, and the answer is given all the same.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.control import PATIENCE
from calmlflow.predictor.logs import to_json, without_secrets
from calmlflow.predictor.registry_client import within
from calmlflow.storage.s3 import S3Object, asking, parse_s3, s3_client

Emitter = Callable[[Mapping[str, Any]], None]

ACCEPTED = "a path that ends in .jsonl, or s3://bucket/prefix"

_ANSWER_COLUMNS = {"memBin": "bin_pred", "memVal": "mem_pred", "clockTime": "wall_pred", "killTime": "kill_time"}


def prediction_record(
    dataset: str, features: Sequence[float] | None, answer: Mapping[str, Any], timestamp: float
) -> dict[str, Any]:
    """One prediction in the columns of a job record.

    Parameters
    ----------
    dataset : str
    features : sequence of 9 numbers, optional
        Raw, in the order of `calmlflow.hst.features.FEATURES`; None for a mosaic.
    answer : mapping
        See `calmlflow.predictor.Predictor.predict`.
    timestamp : float
        Epoch seconds.

    Returns
    -------
    dict
        ``ipst``, ``timestamp``, the nine features, ``bin_pred``, ``mem_pred`` (GB), ``wall_pred`` (s), ``kill_time``
        (s), ``prob_2g`` to ``prob_64g``, ``unseen``, ``version`` and ``source``; None where there is no such value.
    """
    nine = [None] * len(FEATURES) if features is None else features
    probabilities = answer.get("probabilities") or [None] * len(LADDER)
    return {
        "ipst": parse_dataset(dataset).name,
        "timestamp": timestamp,
        **dict(zip(FEATURES, nine, strict=True)),
        **{column: answer.get(key) for key, column in _ANSWER_COLUMNS.items()},
        **{f"prob_{rung.name}": value for rung, value in zip(LADDER, probabilities, strict=True)},
        **{column: answer.get(column) for column in ("unseen", "version", "source")},
    }


def open_emitter(uri: str) -> Emitter:
    """Tell where predictions are kept, and give what keeps one.

    Parameters
    ----------
    uri : str
        A path that ends in ``.jsonl``: each record becomes a line; many processes may write to one file. Or
        ``s3://bucket/prefix``: each record becomes an object ``{prefix}/{ipst}/{nanoseconds}-{random}.json``. Other
        schemes are those of `OPENERS`.

    Raises
    ------
    InputError
        ``uri`` is nothing of the kind.
    CalmlflowError
        The file's folder cannot be made. Later, from the emitter itself: the record could not be written.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in OPENERS:
        return OPENERS[scheme](uri)
    if separator or not uri.endswith(".jsonl") or "\0" in uri:
        raise InputError(f"predictions cannot be kept in {without_secrets(uri)[:120]!r}; expected {ACCEPTED}")
    return _open_lines(Path(uri))


def _open_lines(path: Path) -> Emitter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalmlflowError(
            f"folder {path.parent} cannot be made ({error.strerror}); expected a folder of yours for predictions"
        ) from None

    def emit(record: Mapping[str, Any]) -> None:
        try:
            _append(path, to_json(record).encode() + b"\n")
        except OSError as error:
            raise CalmlflowError(f"{path} cannot be written ({error.strerror}); expected a file of yours") from None

    return emit


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, or nothing."""
    # Opened each time: a log rotation may move the file, and a lock of one opening does not keep its own threads apart.
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(file)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            # The end of somebody who was killed while writing: it must not spoil this line.
            line = b"\n" + line
        try:
            written = os.write(file, line)
            while written < len(line):
                # What stands in the way says so at the second try.
                written += os.write(file, line[written:])
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def _lock(file: int) -> None:
    """Wait for who writes just now, but not for ever: answers wait behind this."""
    deadline = time.monotonic() + settings.timeout_s()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.001)
        else:
            return


def _open_objects(uri: str) -> Emitter:
    bucket, prefix = parse_s3(uri)
    prefix = prefix.strip("/")
    if not prefix.isprintable() or ".." in prefix.split("/") or len(prefix.encode()) > 900:
        raise InputError(f"predictions cannot be kept under {prefix[:120]!r} of a bucket; expected a plain prefix")

    def emit(record: Mapping[str, Any]) -> None:
        name = f"{time.time_ns()}-{secrets.token_hex(4)}.json"
        target = S3Object(bucket, "/".join(filter(None, [prefix, record["ipst"], name])))
        body = to_json(record).encode()
        client = s3_client()
        kind = "application/json"

        def put() -> None:
            with asking(target, "written", "a bucket of yours"):
                client.put_object(Bucket=target.bucket, Key=target.key, Body=body, ContentType=kind)

        within(PATIENCE * settings.timeout_s(), put)

    return emit


OPENERS: dict[str, Callable[[str], Emitter]] = {"s3": _open_objects}
"""What opens the URIs of a scheme. Databases need more than an answer does: `calmlflow.jobs.emission` opens them."""
