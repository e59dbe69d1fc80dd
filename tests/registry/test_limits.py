"""The limits of the gate: defaults for every score that is compared; what does not fit is named."""

import pytest

from calmlflow.errors import InputError
from calmlflow.registry.limits import Bounds, read_limits
from calmlflow.results.scores import SCORES, headlines


def test_every_score_that_is_compared_has_a_margin_by_default():
    margins = read_limits("default").margins
    assert {target: tuple(found) for target, found in margins.items()} == {name: headlines(name) for name in SCORES}
    assert 0 < max(value for found in margins.values() for value in found.values()) <= 0.25


def test_lines_and_sections_may_be_left_out(tmp_path):
    (tmp_path / "gate.yaml").write_text("scores:\n  memory:\nmargins:\ndata: {min_jobs: 10}\n")
    limits = read_limits(str(tmp_path / "gate.yaml"))
    assert (limits.scores, limits.margins) == ({"memory": {}}, {})
    assert (limits.data.min_jobs, limits.data.max_age_days) == (10, None)
    (tmp_path / "gate.yaml").write_text("# nothing\n")
    assert read_limits(str(tmp_path / "gate.yaml")).scores == {}


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Bounds(min=1.0), "at least 1", 1.0, 0.9),
        (Bounds(max=2.0), "at most 2", 2.0, 2.1),
        (Bounds(min=1.0, max=2.0), "at least 1, at most 2", 1.5, 3.0),
    ],
)
def test_bounds_hold(bounds, words, inside, outside):
    assert (str(bounds), bounds.hold(inside), bounds.hold(outside)) == (words, True, False)
    assert not bounds.hold(float("nan"))
    assert (str(Bounds()), Bounds().hold(1e9)) == ("any value", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "the file is .1."),
        ("score: {}", "score is {}: Extra inputs are not permitted"),
        ("scores: {disk: {}}", "scores: Value error, disk is not a target: mem_bin, memory, wallclock"),
        ("scores: {memory: {mea: {max: 1}}}", r"memory\.mea is not a score: rmse, "),
        ("scores: {memory: {mae: 1}}", r"scores\.memory\.mae is 1"),
        ("scores: {memory: {mae: {max: x}}}", r"scores\.memory\.mae\.max is 'x': Input should be a valid number"),
        ("scores: {memory: {mae: {max: .inf}}}", "should be a finite number"),
        ("scores: {memory: {mae: {min: 2, max: 1}}}", "min 2 is above max 1"),
        ("margins: {memory: {log_mae: 1}}", r"memory\.log_mae is not compared: rmse, mae"),
        ("margins: {memory: {mae: -1}}", "is -1: Input should be greater than or equal to 0"),
        ("data: {max_age: 3}", r"data\.max_age is 3: Extra inputs"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system [echo]", "is not YAML"),
    ],
)
def test_limits_that_do_not_fit_are_named(tmp_path, text, words):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_limits(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_limits_must_be_there():
    with pytest.raises(InputError, match=r"gate no-such\.yaml cannot be read"):
        read_limits("no-such.yaml")
