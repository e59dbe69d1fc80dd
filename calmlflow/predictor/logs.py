"""Log the predictor's work on standard error: one JSON object a line, without secrets."""

import json
import logging
import threading
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calmlflow.hst.features import FEATURES
from calmlflow.predictor.metrics import answer_emf
from calmlflow.settings import hide_password

# Attributes of a log record that its line shows, if the record has them.
FIELDS = ("dataset", "version", "source", "features", "answer", "ms")
# Characters of a message that a line shows.
MAX_TEXT = 2000
# One line for each answer, at level INFO.
answers_log = logging.getLogger("calmlflow.answers")
_installing = threading.Lock()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (ISO, UTC), ``level``, ``logger``, ``message``, and `FIELDS` the record has.

    With ``emf_stage`` the line of an answer is also one of CloudWatch's embedded metric format, for this stage.
    """

    def __init__(self, emf_stage: str = ""):
        super().__init__()
        self._emf_stage = emf_stage

    def format(self, record: logging.LogRecord) -> str:
        """Never fails, whatever the record holds. An exception is shown without its text, which may quote data."""
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg!s:.200} ({type(error).__name__} in its arguments)"
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            # Cut last: half an address would show its password.
            "message": hide_password(message[: 2 * MAX_TEXT])[:MAX_TEXT],
        }
        line |= {field: getattr(record, field) for field in FIELDS if hasattr(record, field)}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = place_of(record.exc_info[1])
        if self._emf_stage and "answer" in line:
            line |= answer_emf(line["answer"], line["source"], line["ms"], self._emf_stage, record.created)
        return to_json(line)


def use_json_logs(emf_stage: str = "") -> None:
    """Send the logs of calmlflow, from level INFO, to standard error as JSON instead of the root logger.

    For ``emf_stage`` see `JsonFormatter`.
    """
    logger = logging.getLogger("calmlflow")
    with _installing:
        if not any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers):
            handler = logging.StreamHandler()
            handler.setFormatter(JsonFormatter(emf_stage))
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False


def log_answer(dataset: str, features: Sequence[float] | None, answer: Mapping[str, Any], elapsed_ms: float) -> None:
    """Log one answer of `Predictor.predict` on `answers_log`, if that is enabled."""
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


def place_of(error: BaseException) -> str:
    """Type of an exception and where it was raised; not its text, which may quote data."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def to_json(value: object) -> str:
    """Any value as one line of JSON in ASCII; NaN and infinity become null, unknown types become text."""
    try:
        text = json.dumps(value, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda constant: None))
    except (TypeError, ValueError, RecursionError) as error:
        # Nothing of the project looks like this: keys that are not text, or a circle.
        return json.dumps(f"{type(value).__name__} that is no JSON ({type(error).__name__})")
