"""What the predictor tells of its work: one JSON object a line, on standard error, without secrets."""

import json
import logging
import math
import re
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calmlflow.hst.features import FEATURES

FIELDS = ("dataset", "version", "source", "features", "answer", "ms")
"""Attributes of a log record that its line shows, where the record has them."""

MAX_TEXT = 2000
"""Characters of a text, and items of a list, that a line shows."""

answers_log = logging.getLogger("calmlflow.answers")
"""One line for each answer, at level INFO."""

_MAX_DEPTH = 6
_installing = threading.Lock()

_SECRETS = (
    # User and password in an address.
    (re.compile(r"(//)[^/?#\s]*@"), r"\1"),
    # Keys of AWS.
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), "***"),
    (re.compile(r"\b(basic|bearer)\s+[\w.~+/=-]{6,}", re.IGNORECASE), r"\1 ***"),
    # A value whose name says what it is: password=..., "aws_secret_access_key": "...", X-Amz-Signature=...
    (
        re.compile(
            r"((?:passw(?:or)?d|secret|token|credential|signature|api[_-]?key|access[_-]?key)[\w.-]*"
            r"""["']?\s*[:=]\s*)("[^"]*"?|'[^']*'?|[^\s,;&"'})\]]+)""",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (ISO, UTC), ``level``, ``logger``, ``message``, and `FIELDS` the record has.

    Passwords in addresses, keys and whatever else is named like a secret become ``***``; of an exception only its type
    and place are told, as its text may quote data; numbers that JSON does not know become null; a line is ASCII.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class; never fails, whatever the record holds."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        line |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = place_of(record.exc_info[1])
        return to_json(line, without_secrets)


def use_json_logs() -> None:
    """Send what calmlflow logs, from level INFO, to standard error as JSON; twice is once.

    Handlers of the root logger no longer see it, so that a line is not written twice where the process has some.
    """
    logger = logging.getLogger("calmlflow")
    with _installing:
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers):
            handler = logging.StreamHandler()
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


def log_answer(dataset: str, features: Sequence[float] | None, answer: Mapping[str, Any], elapsed_ms: float) -> None:
    """Log one answer on `answers_log`; costs next to nothing where nobody listens.

    Parameters
    ----------
    dataset : str
    features : sequence of 9 numbers, optional
        Raw, in the order of `calmlflow.hst.features.FEATURES`; None where the answer does not rest on any.
    answer : mapping
        See `calmlflow.predictor.Predictor.predict`.
    elapsed_ms : float
        Milliseconds that the answer took.
    """
    if answers_log.isEnabledFor(logging.INFO):
        fields = {
            "dataset": dataset,
            "version": answer.get("version"),
            "source": answer.get("source"),
            "features": None if features is None else dict(zip(FEATURES, features, strict=True)),
            "answer": {key: value for key, value in answer.items() if key not in ("version", "source")},
            "ms": round(elapsed_ms, 3),
        }
        answers_log.info("answered %s", dataset, extra=fields)


def without_secrets(text: str) -> str:
    """Take passwords, keys and tokens out of a text, and cut it to `MAX_TEXT` characters."""
    # Cut first, so that a long text costs no more than a short one; a margin, so that no half of a secret is left over.
    text = text[: 2 * MAX_TEXT]
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text[:MAX_TEXT]


def place_of(error: BaseException) -> str:
    """Type of an exception, and where it was raised: no text of it, which may quote data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def to_json(value: object, text: Callable[[str], str] = str) -> str:
    """Any value as one line of JSON in ASCII.

    Numbers that JSON does not know become null, what it has no form for becomes text, and what is nested too deep or
    goes on too long is cut.

    Parameters
    ----------
    value : object
    text : callable
        Applied to every text in it.
    """
    return json.dumps(_plain(value, text, _MAX_DEPTH))


def _plain(value: Any, text: Callable[[str], str], depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        # Python refuses to print whole numbers of thousands of digits.
        return value if value.bit_length() < 1024 else "a number of hundreds of digits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = list(value.items())[:MAX_TEXT]
        return {text(str(_plain(key, text, 0))): _plain(item, text, depth - 1) for key, item in pairs}
    if isinstance(value, list | tuple):
        return [_plain(item, text, depth - 1) for item in value[:MAX_TEXT]]
    # Of numpy, numbers and arrays.
    if callable(getattr(value, "tolist", None)):
        return _plain(value.tolist(), text, depth - 1)
    return text(_shown(value))


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"{type(value).__name__} that cannot be shown ({type(error).__name__})"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:
        # Arguments that do not fit: the words that were meant are better than none.
        return f"{record.msg!s:.200} ({type(error).__name__} in its arguments)"
