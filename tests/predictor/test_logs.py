"""Logs: one JSON object a line, without secrets."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.hst.features import FEATURES, Features
from calmlflow.predictor.logs import JsonFormatter, log_answer, place_of, to_json

ROOT = Path(__file__).parents[2]
FEATURES_OF_JOB = Features(17, 10, 1, 0, 0, 0, 0, 1, 0)
ANSWER = {"memBin": 0, "memVal": 0.89, "clockTime": 149, "killTime": 465, "version": "7", "source": "registry"}


def line_of(message="words", *arguments, level=logging.INFO, exc_info=None, **fields) -> dict:
    record = logging.LogRecord("calmlflow.test", level, "file.py", 1, message, arguments, exc_info)
    for name, value in fields.items():
        setattr(record, name, value)
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert "\n" not in text

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_line_has_time_level_logger_and_message():
    before = datetime.now(UTC).replace(microsecond=0)
    line = line_of("took %d of %s", 3, "é", level=logging.WARNING)
    assert list(line) == ["time", "level", "logger", "message"]
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "calmlflow.test", "took 3 of é")


def test_a_line_shows_the_fields_that_the_record_has_and_no_others():
    line = line_of(dataset="j8c601020", answer={"memBin": 1, "odd": float("nan")}, ms=0.5, other="no")
    assert line["dataset"] == "j8c601020"
    assert line["answer"] == {"memBin": 1, "odd": None}
    assert line["ms"] == 0.5
    assert not {"other", "version", "source", "features"} & set(line)


def test_an_exception_is_shown_by_type_and_place_without_its_text():
    try:
        int("secret data")
    except ValueError:
        line = line_of("failed", exc_info=sys.exc_info())
    assert line["exception"].startswith("ValueError at test_logs.py:")
    assert "secret" not in json.dumps(line)
    assert place_of(KeyError("never raised")) == "KeyError"


def test_a_message_hides_passwords_and_is_cut():
    # Every spelling: tests/test_passwords.py.
    assert line_of("no %s answers", "https://me:hidden@host/x")["message"] == "no https://***@host/x answers"
    assert "hidden" not in line_of("x" * 1990 + " http://hidden:hidden@host")["message"]
    assert len(line_of("x" * 1_000_000)["message"]) == 2000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(VALUES, st.text(st.characters()))
def test_whatever_a_record_holds_it_becomes_one_line(value, message):
    line_of(message.replace("%", "%%"), dataset=value, version=value, features=value, answer=value, ms=value)
    line_of(message, value)


def test_what_is_no_json_or_does_not_fit_costs_no_line():
    assert line_of("%d jobs", "many")["message"] == "%d jobs (TypeError in its arguments)"
    circle: list = []
    circle.append(circle)
    assert json.loads(to_json(circle)) == "list that is no JSON (ValueError)"
    assert json.loads(to_json({(1, 2): 3})) == "dict that is no JSON (TypeError)"


def test_an_answer_is_logged_with_its_features(caplog):
    caplog.set_level(logging.INFO, "calmlflow.answers")
    log_answer("j8c601020", FEATURES_OF_JOB, ANSWER, 0.12345)
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert {name: line[name] for name in ("logger", "dataset", "version", "source", "ms")} == {
        **{"logger": "calmlflow.answers", "dataset": "j8c601020", "version": "7", "source": "registry", "ms": 0.123}
    }
    assert line["features"] == dict(zip(FEATURES, FEATURES_OF_JOB, strict=True))
    assert line["answer"] == {"memBin": 0, "memVal": 0.89, "clockTime": 149, "killTime": 465}
    log_answer("acs_8ph_01", None, ANSWER, 0)
    assert json.loads(JsonFormatter().format(caplog.records[-1]))["features"] is None


def test_json_logs_are_written_once_and_on_standard_error():
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="root %(message)s")
from calmlflow.predictor.logs import log_answer, use_json_logs
use_json_logs()
use_json_logs()
log_answer("acs_8ph_01", None, {"memBin": 1, "version": None, "source": "policy"}, 1)
logging.getLogger("calmlflow.predictor.cache").warning("late")
logging.getLogger("calmlflow").debug("not told")
logging.getLogger("others").warning("as before")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, second, third = done.stderr.splitlines()
    assert (json.loads(first)["dataset"], json.loads(second)["message"]) == ("acs_8ph_01", "late")
    assert third == "root as before"
