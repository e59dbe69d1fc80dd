"""Keep every prediction in the job record's columns, for comparison with the finished job."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calmlflow import settings
from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, Ladder
from calmlflow.predictor.control import PATIENCE
from calmlflow.predictor.http_client import within
from calmlflow.predictor.logs import to_json
from calmlflow.storage.s3 import S3Object, asking, parse_s3, s3_client

# Called with one record after each answer. It may raise: the caller logs a warning and gives the answer all the same.
Emitter = Callable[[Mapping[str, Any]], None]

_ANSWER_COLUMNS = {"memBin": "bin_pred", "memVal": "mem_pred", "clockTime": "wall_pred", "killTime": "kill_time"}


def prediction_record(
    dataset: str, features: Sequence[float] | None, answer: Mapping[str, Any], timestamp: float, ladder: Ladder = LADDER
) -> dict[str, Any]:
    """One answer of `Predictor.predict` in the columns of a job record, at epoch seconds; None for a missing value."""
    nine = [None] * len(FEATURES) if features is None else features
    probabilities = answer.get("probabilities") or [None] * len(ladder)
    return {
        "ipst": parse_dataset(dataset).name,
        "timestamp": timestamp,
        **dict(zip(FEATURES, nine, strict=True)),
        **{column: answer.get(key) for key, column in _ANSWER_COLUMNS.items()},
        **{f"prob_{rung.name}": value for rung, value in zip(ladder.rungs, probabilities, strict=True)},
        **{column: answer.get(column) for column in ("unseen", "version", "source")},
    }


def open_emitter(uri: str) -> Emitter:
    """Make an emitter for ``s3://bucket/prefix``: an object ``{prefix}/{ipst}/{nanoseconds}-{random}.json`` each."""
    bucket, prefix = parse_s3(uri)
    prefix = prefix.strip("/")
    if not prefix.isprintable() or ".." in prefix.split("/") or len(prefix.encode()) > 900:
        raise InputError(f"predictions cannot be kept under {prefix[:120]!r} of a bucket; expected a plain prefix")

    def emit(record: Mapping[str, Any]) -> None:
        name = f"{time.time_ns()}-{secrets.token_hex(4)}.json"
        target = S3Object(bucket, "/".join(filter(None, [prefix, record["ipst"], name])))
        body = to_json(record).encode()
        client = s3_client()

        def put() -> None:
            with asking(target, "written", "a bucket of yours"):
                client.put_object(Bucket=target.bucket, Key=target.key, Body=body, ContentType="application/json")

        within(PATIENCE * settings.timeout_s(), put)

    return emit
