"""What may stand in place of a control file: features in their ranges, or the documented error, cut short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import MAX_FILES, MAX_TOTAL_MB, OPTIONAL_KEYS, Features, job_features, parse_control
from tests.samples.event_samples import ANYTHING, HUGE, deep

JOB = "jabc07020"
WHOLE = b"n_files=17\ntotal_mb=9.6\nDETECTOR=WFC\nSUBARRAY=True\nDRIZCORR=PERFORM\nPCTECORR=OMIT\nCRSPLIT=1.0\n"


def check_message(error: InputError) -> None:
    assert str(error).isprintable()
    # Two values of sixty characters, each written out in as many as ten.
    assert len(str(error)) < 1900
    assert "xxxxxxxxxx" * 7 not in str(error)


def check_ranges(features: Features) -> None:
    lowest, highest = (1, 0, 0, 0, 0, 0, 0, 1, 0), (MAX_FILES, MAX_TOTAL_MB, 1, 1, 2, 1, 1, 1, 0)
    for value, low, high in zip(features, lowest, highest, strict=True):
        assert isinstance(value, int)
        assert low <= value <= high


def check(content) -> None:
    try:
        features = job_features(JOB, parse_control(content))
    except InputError as error:
        check_message(error)
    else:
        check_ranges(features)


@st.composite
def damaged_bytes(draw) -> bytes:
    """A control file with some bytes changed, cut out or put in."""
    content = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8) | st.sampled_from([b"\n", b"=", b"e9"]))
    return bytes(content)


@given(damaged_bytes())
def test_a_damaged_file_gives_features_or_the_documented_error(content):
    check(content)


@given(st.text(st.characters()) | st.lists(st.text(st.characters(), max_size=9)).map("\nn_files=1\ntotal_mb=".join))
def test_any_text_gives_features_or_the_documented_error(text):
    check(text)


@pytest.mark.parametrize(
    "content",
    [
        "x" * 65_000,
        b"x" * 65_000,
        "x" * 10_000_000,
        b"\xff" * 10_000_000,
        "n_files=" + "1" * 60_000 + "\ntotal_mb=1",
        "n_files=" + "x" * 60_000 + "\ntotal_mb=1",
        "n_files=1\ntotal_mb=" + "x" * 60_000,
        "=" + "x" * 60_000,
        "x" * 30_000 + "=1\n" + "x" * 30_000 + "=2",
        "a=" + "x" * 30_000 + "\na=" + "y" * 30_000,
        "\ud800=1\n\ud800=\udfff",
        "\U000e0001" * 200,
        "n_files=1\0\ntotal_mb=1",
        "n_files=nan\ntotal_mb=1",
        "n_files=1\ntotal_mb=-0.6",
        "n_files=1\ntotal_mb=1e999",
    ],
)
def test_an_extreme_file_is_refused_in_a_short_sentence(content):
    with pytest.raises(InputError) as caught:
        job_features(JOB, parse_control(content))
    check_message(caught.value)


EXTREMES = st.sampled_from(["deep", "huge"]).map({"deep": deep(), "huge": HUGE}.get)


@given(
    st.dictionaries(st.sampled_from(["n_files", "total_mb", *OPTIONAL_KEYS]), ANYTHING | EXTREMES),
    st.fixed_dictionaries({}, optional={"n_files": st.integers(1, 9), "total_mb": st.floats(0, 9)}),
)
def test_any_json_gives_features_or_the_documented_error(keys, right):
    try:
        features = job_features(JOB, keys | right)
    except InputError as error:
        check_message(error)
    else:
        check_ranges(features)


@given(ANYTHING | EXTREMES)
def test_any_name_is_a_dataset_or_the_documented_error(name):
    try:
        parse_dataset(name)
    except InputError as error:
        check_message(error)
