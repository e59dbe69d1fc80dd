"""Logs: one JSON object a line, and no secret in any."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.hst.features import FEATURES, Features
from calmlflow.predictor.logs import JsonFormatter, log_answer, place_of, to_json, without_secrets

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


def test_a_line_tells_when_how_grave_where_from_and_what():
    before = datetime.now(UTC).replace(microsecond=0)
    line = line_of("took %d of %s", 3, "é", level=logging.WARNING)
    assert list(line) == ["time", "level", "logger", "message"]
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "calmlflow.test", "took 3 of é")


def test_a_line_shows_the_fields_that_the_record_has_and_no_others():
    line = line_of(dataset="j8c601020", answer={"memBin": 1, "odd": float("nan")}, ms=np.float32(0.5), other="no")
    assert line["dataset"] == "j8c601020"
    assert line["answer"] == {"memBin": 1, "odd": None}
    assert line["ms"] == 0.5
    assert not {"other", "version", "source", "features"} & set(line)


def test_of_an_exception_the_kind_and_place_are_told_and_not_its_words():
    try:
        int("secret data")
    except ValueError:
        line = line_of("failed", exc_info=sys.exc_info())
    assert line["exception"].startswith("ValueError at test_logs.py:")
    assert "secret" not in json.dumps(line)
    assert place_of(KeyError("never raised")) == "KeyError"


def test_arguments_that_do_not_fit_cost_no_line():
    assert line_of("%d jobs", "many")["message"] == "%d jobs (TypeError in its arguments)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no server at https://me:hidden@host:5000/x answers", "no server at https://host:5000/x answers"),
        ("postgresql+psycopg://me:hid@den@host/db", "postgresql+psycopg://host/db"),
        ("https://hidden@host", "https://host"),
        ("key AKIAHIDDENHIDDEN1234 is old", "key *** is old"),
        ("ASIAHIDDENHIDDEN1234", "***"),
        ("Authorization: Basic aGlkZGVuOmhpZGRlbg==", "Authorization: Basic ***"),
        ("sent 'bearer hidden.hidden'", "sent 'bearer ***'"),
        ("MLFLOW_TRACKING_PASSWORD=hidden stays", "MLFLOW_TRACKING_PASSWORD=*** stays"),
        ('{"aws_secret_access_key": "hid den", "n": 1}', '{"aws_secret_access_key": ***, "n": 1}'),
        ("{'password': 'hid den'}", "{'password': ***}"),
        ("GET /a?X-Amz-Signature=hidden&n=1", "GET /a?X-Amz-Signature=***&n=1"),
        ("api_key: hidden", "api_key: ***"),
        ("nothing to hide: n_files=17, Key 'control/j8c601020/x' at 12:30", None),
        ("j8c601020: total_mb is 'much'; expected a number of megabytes, 0 to 1000000000", None),
    ],
)
def test_secrets_are_taken_out_and_nothing_else(text, shown):
    expected = text if shown is None else shown
    line = line_of("%s", text, dataset=text, answer={"source": [text]})
    assert (line["message"], line["dataset"], line["answer"]) == (expected, expected, {"source": [expected]})


def test_a_long_text_is_cut_and_keeps_no_half_secret():
    assert len(without_secrets("x" * 1_000_000)) == 2000
    assert "hid" not in without_secrets("x" * 1988 + " //me:hidden@host")


@pytest.mark.parametrize("part", ["x", "secret", "password=", "//", "a.-", "AKIA", "bearer ", "'", "token'"])
def test_no_text_takes_long(part):
    # Some ways to search for secrets take minutes here.
    assert len(without_secrets(part * 1_000_000)) <= 2000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.text(st.characters()))
def test_whatever_a_record_holds_it_becomes_one_line(value, message):
    line_of(message.replace("%", "%%"), dataset=value, version=value, features=value, answer=value, ms=value)
    line_of(message, value)


def test_what_json_has_no_form_for_becomes_text_or_is_cut():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "..." in to_json(deep)
    assert json.loads(to_json({"n": 10**5000, "\ud800": "\ud800", 1: {2}, "a": np.arange(2), "i": np.int64(3)})) == {
        "n": "a number of hundreds of digits",
        "\ud800": "\ud800",
        "1": "{2}",
        "a": [0, 1],
        "i": 3,
    }


def test_an_answer_is_logged_with_what_it_was_made_of(caplog):
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


def test_an_answer_that_nobody_wants_to_see_is_not_looked_at(caplog):
    caplog.set_level(logging.WARNING, "calmlflow.answers")
    log_answer("j8c601020", object(), None, None)  # type: ignore[arg-type]
    assert not caplog.records


def test_json_logs_are_written_once_and_on_standard_error():
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="root %(message)s")
from calmlflow.predictor.logs import log_answer, use_json_logs
use_json_logs()
use_json_logs()
log_answer("acs_8ph_01", None, {"memBin": 1, "version": None, "source": "policy"}, 1)
logging.getLogger("calmlflow.predictor.stage").warning("late")
logging.getLogger("calmlflow").debug("not told")
logging.getLogger("others").warning("as before")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, second, third = done.stderr.splitlines()
    assert (json.loads(first)["dataset"], json.loads(second)["message"]) == ("acs_8ph_01", "late")
    assert third == "root as before"
