"""The limits of the gate: defaults for every score that is compared; what does not fit is named."""

import pytest

from calmlflow.errors import InputError
from calmlflow.registry.limits import COMPARED, Bounds, read_limits


def test_every_score_that_is_compared_has_a_margin_by_default():
    margins = read_limits("default").margins
    assert {target: set(found) for target, found in margins.items()} == {name: set(COMPARED[name]) for name in COMPARED}
    assert 0 < max(value for found in margins.values() for value in found.values()) <= 0.25


def test_lines_and_sections_may_be_left_out(tmp_path):
    (tmp_path / "gate.yaml").write_text("scores:\n  memory:\nmargins:\ndata: {min_jobs: 10}\n")
    limits = read_limits(str(tmp_path / "gate.yaml"))
    assert (limits.scores, limits.margins) == ({"memory": {}}, {})
    assert (limits.data.min_jobs, limits.data.max_age_days) == (10, None)
    (tmp_path / "gate.yaml").write_text("reference: 3\nslices: {memory: {log_mae: 0.1}}\n")
    limits = read_limits(str(tmp_path / "gate.yaml"))
    assert (limits.scores, limits.reference, limits.slices) == ({}, 3, {"memory": {"log_mae": 0.1}})


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "{}", "scores:\nmargins:\n", "scores: {memory: {mae: {}}, wallclock: }", "reference: none",
     "margins: {memory: {}}", "data: {min_jobs: }"],
)  # fmt: skip
def test_a_file_without_any_limit_is_an_error(tmp_path, text):
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(InputError, match=r"gate\.yaml is empty; expected scores, margins, slices, reference or data"):
        read_limits(str(tmp_path / "gate.yaml"))


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
        ("margins: {memory: {r2: 1}}", r"memory\.r2 is not compared: rmse, mae, log_mae"),
        ("slices: {memory: {r2: 1}}", r"memory\.r2 is not compared: rmse, mae, log_mae"),
        ("reference: newest", r"reference\..* is 'newest': Input should be 'best' or 'none'"),
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
