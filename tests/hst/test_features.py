"""Control file -> nine features (design 4.1)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.features import (
    FEATURES,
    MAX_CONTROL_FILE_BYTES,
    MAX_FILES,
    MAX_TOTAL_MB,
    control_features,
    job_features,
    parse_control,
    switch_warnings,
)

# One file per shape that occurs in the archive, with the features worked out by hand.
CONTROL_FILES = {
    "WFC3/UVIS exposure, every key": (
        "izzz11abq",
        "n_files=2\ntotal_mb=6.048\nDETECTOR=UVIS\nSUBARRAY=False\nDRIZCORR=OMIT\nPCTECORR=OMIT\nCRSPLIT=1",
        (2, 6, 0, 0, 1, 0, 1, 0, 3),
    ),
    "WFC3/IR association, no PCTECORR and no CRSPLIT": (
        "izzz01010",
        "n_files=4\ntotal_mb=58.49999999999999\nDETECTOR=IR\nSUBARRAY=False\nDRIZCORR=PERFORM",
        (4, 58, 1, 0, 0, 0, 0, 1, 3),
    ),
    "ACS/SBC association, no CRSPLIT": (
        "jzzz01020",
        "n_files=12\ntotal_mb=7.500001\nDETECTOR=SBC\nSUBARRAY=False\nDRIZCORR=PERFORM\nPCTECORR=OMIT",
        (12, 8, 1, 0, 0, 0, 0, 1, 0),
    ),
    "ACS/WFC association, every key": (
        "jzzz14010",
        "n_files=8\ntotal_mb=268.8\nDETECTOR=WFC\nSUBARRAY=False\nDRIZCORR=PERFORM\nPCTECORR=PERFORM\nCRSPLIT=2",
        (8, 269, 1, 1, 2, 0, 1, 1, 0),
    ),
    "COS association, detector and subarray only": (
        "lzzz01010",
        "n_files=3\ntotal_mb=2.4\nDETECTOR=NUV\nSUBARRAY=True",
        (3, 2, 0, 0, 0, 1, 0, 1, 1),
    ),
    "STIS exposure, detector and subarray only": (
        "ozzz05abq",
        "n_files=1\ntotal_mb=0.4\nDETECTOR=NUV-MAMA\nSUBARRAY=False",
        (1, 0, 0, 0, 0, 0, 0, 0, 2),
    ),
}


@pytest.mark.parametrize(("name", "text", "features"), CONTROL_FILES.values(), ids=CONTROL_FILES.keys())
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encode", [str, str.encode], ids=["str", "bytes"])
def test_features_of_every_shape_of_control_file(name, text, features, line_end, encode):
    assert job_features(name, parse_control(encode(text.replace("\n", line_end)))) == features


# Python refuses to turn a whole number of so many digits into text.
UNPRINTABLE = 10**5000


def features_of(**keys: object):
    return job_features("jzzz01010", {"n_files": 1, "total_mb": 1, **keys})


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *(
            (key, {1: ("PERFORM", "perform", " PERFORM "), 0: ("OMIT", "COMPLETE", "NaN", "", None, math.nan, 1)})
            for key in ("DRIZCORR", "PCTECORR")
        ),
        (
            "CRSPLIT",
            {
                0: (None, "", "NaN", "nan", math.nan, np.float64("nan")),
                1: ("1", "1.0", "1.00", " 01 ", "1.", 1, 1.0, np.float64(1)),
                2: ("2", "2.00", 2.0, "0", "11", "many", "1.5", UNPRINTABLE),
            },
        ),
        (
            "SUBARRAY",
            {
                1: ("True", "TRUE", "T", "t", True, np.True_, "1", 1.0),
                0: ("False", "F", False, "0", 0, "NaN", None, "TRUTH"),
            },
        ),
        ("DETECTOR", {1: ("WFC", "UVIS", "uvis"), 0: ("IR", "SBC", "HRC", "FUV-MAMA", "", None)}),
        ("n_files", {3: ("3", 3, 3.0, "3.0", " 3 ", np.int64(3)), MAX_FILES: (str(MAX_FILES),)}),
        ("total_mb", {0: ("0", 0.49), 1: ("0.51",), 10: (np.float32(9.6),), MAX_TOTAL_MB: (f"{MAX_TOTAL_MB}",)}),
    ],
)
def test_the_number_of_each_value_of_a_key(key, values):
    for number, texts in values.items():
        found = [getattr(features_of(**{key: text}), key.lower()) for text in texts]
        assert found == [number] * len(texts)
        assert {type(value) for value in found} == {int}


WORDS = {
    "DETECTOR": ("wfc", "UVIS ", "IR", "HRC", "SBC", "FUV", "NUV", "CCD", "FUV-MAMA", "NUV-MAMA"),
    "SUBARRAY": ("T", "F", "true", "False", "1", "0", "1.00", True, 0.0),
    "DRIZCORR": ("PERFORM", "OMIT", "COMPLETE", "skipped "),
    "PCTECORR": ("PERFORM", "OMIT", "COMPLETE", "SKIPPED"),
    "CRSPLIT": ("1", "1.00", 2.0, "12"),
}
USUAL = {"DETECTOR": "UVIS", "SUBARRAY": "F", "DRIZCORR": "PERFORM", "PCTECORR": "OMIT", "CRSPLIT": "1"}


@pytest.mark.parametrize("key", WORDS)
def test_a_word_that_no_header_uses_is_told_or_refused_by_name(key):
    for word in WORDS[key]:
        assert switch_warnings("izzz01010", {**USUAL, key: word}) == []
    for word in ("PERFROM", "T F", "yes", "-1", "1.5"):
        keys = {"n_files": 1, "total_mb": 1, **USUAL, key: word}
        counts_as = getattr(job_features("izzz01010", keys), key.lower())
        (sentence,) = switch_warnings("izzz01010", keys)
        assert sentence.startswith(f"{key} is '{word}' and counts as {counts_as}; expected ")
        with pytest.raises(InputError, match=f"^izzz01010: {key} is '{word}'; expected "):
            control_features("izzz01010", "\n".join(f"{name}={value}" for name, value in keys.items()))


@pytest.mark.parametrize(
    ("name", "detector", "always"),
    [
        ("jzzz01010", "WFC", {"SUBARRAY", "DRIZCORR", "PCTECORR", "CRSPLIT"}),
        ("jzzz01010", "SBC", {"SUBARRAY", "DRIZCORR"}),
        ("izzz01010", "UVIS", {"SUBARRAY", "DRIZCORR", "PCTECORR", "CRSPLIT"}),
        ("izzz01010", "IR", {"SUBARRAY", "DRIZCORR"}),
        ("lzzz01010", "NUV", {"SUBARRAY"}),
        ("ozzz01010", "CCD", {"SUBARRAY"}),
    ],
)
def test_a_switch_that_the_instrument_always_has_is_told_where_it_is_missing(name, detector, always):
    for key in USUAL:
        for nothing in ({}, {key: "NaN"}):
            keys = {other: word for other, word in {**USUAL, "DETECTOR": detector}.items() if other != key} | nothing
            told = [f"{key} is missing and counts as 0"] if key in always | {"DETECTOR"} else []
            assert [sentence.partition(";")[0] for sentence in switch_warnings(name, keys)] == told


def test_control_files_of_the_archive_give_no_warning():
    for name, text, features in CONTROL_FILES.values():
        assert switch_warnings(name, parse_control(text)) == []
        assert control_features(name, text) == features


def test_absent_keys_give_zeros_and_unknown_keys_are_ignored():
    alone = features_of()
    with pytest.raises(InputError, match="jzzz01010: n_files is missing"):
        job_features("jzzz01010", {"total_mb": 1})
    assert alone[2:7] == (0, 0, 0, 0, 0)
    assert features_of(GAIN="2", detector="WFC", **{"DRIZCORR ": "PERFORM"}) == alone
    assert [*alone._asdict()] == list(FEATURES)


BAD_NUMBERS = ["", None, "NaN", math.nan, "x", "inf", math.inf, "-1", -1, "1_000", "1,5", "0x10", True, [], {}, 1j]
BAD_NUMBERS += [10**400, 1e300, "1e300", "9" * 5000, pytest.param(UNPRINTABLE, id="unprintable")]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", ["n_files", "total_mb"])
def test_a_bad_size_names_dataset_and_key(key, value):
    with pytest.raises(InputError, match=f"^jzzz01010: {key} is .*; expected") as error:
        features_of(**{key: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", ["0", 0, 1.5, "2.5", MAX_FILES + 1])
def test_a_bad_count_of_files_is_shown(value):
    with pytest.raises(
        InputError, match=f"n_files is '{value}'; expected a whole number of raw files, 1 to {MAX_FILES}"
    ):
        features_of(n_files=value)


@pytest.mark.parametrize("name", ["acs_8ph_01", "skycell-p0797x14y06", "xzzz01010", "nonsense"])
def test_only_datasets_of_the_four_instruments_have_features(name):
    with pytest.raises(InputError, match=name):
        job_features(name, {"n_files": 1, "total_mb": 1})


ODD_VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary()),
    st.integers(290, 320).map(lambda digits: 10**digits),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["PERFORM", "T", "1.0", "nan", "WFC", "1e400"]),
)
KEYS = st.sampled_from(["n_files", "total_mb", "DETECTOR", "SUBARRAY", "DRIZCORR", "PCTECORR", "CRSPLIT", "OTHER"])


def check_features(name, keys):
    """Whatever the keys, the answer is nine whole numbers in their ranges or an InputError."""
    try:
        features = job_features(name, keys)
    except InputError:
        return
    assert all(type(value) is int for value in features)
    assert 1 <= features.n_files <= MAX_FILES
    assert 0 <= features.total_mb <= MAX_TOTAL_MB
    assert set(features[2:4] + features[5:8]) <= {0, 1}
    assert features.crsplit in (0, 1, 2)
    assert features.instr in range(4)


@given(st.one_of(st.just("jzzz01010"), st.text()), st.dictionaries(KEYS, ODD_VALUES))
def test_any_mapping_gives_features_or_an_input_error(name, keys):
    check_features(name, keys)
    # No optional key is a reason to refuse.
    assert job_features("jzzz01010", keys | {"n_files": 7, "total_mb": 5.4})[:2] == (7, 5)


LINES = st.lists(st.sampled_from([b"n_files=2", b"total_mb=3", b"CRSPLIT=1.0", b"=", b"\xff", b"", b"#"]))


@given(st.one_of(st.binary(), LINES.map(b"\n".join)))
def test_any_bytes_give_features_or_an_input_error(content):
    try:
        keys = parse_control(content)
    except InputError as error:
        assert "\n" not in str(error)
        return
    check_features("jzzz01010", keys)


TEXTS = st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8"), max_size=20)
NAMES = TEXTS.filter(lambda key: key == key.strip() != "" and "=" not in key and not key.startswith(("#", "\ufeff")))
VALUES = TEXTS.filter(lambda value: value == value.strip())


@given(st.dictionaries(NAMES, VALUES), st.sampled_from(["\n", "\r\n", "\n\n", "\n# a note\n"]), st.booleans())
def test_any_keys_come_back(keys, line_end, byte_order_mark):
    text = "\ufeff" * byte_order_mark + line_end.join(f"{key}={value}" for key, value in keys.items())
    assert parse_control(text) == parse_control(text.encode()) == keys
    assert parse_control(line_end.join(f" {key} =\t{value} " for key, value in keys.items())) == keys


def test_a_value_may_hold_equals_signs_and_be_empty():
    assert parse_control("a=b=c\nd=") == {"a": "b=c", "d": ""}
    largest = "x" * (MAX_CONTROL_FILE_BYTES - 2)
    assert parse_control(f"a={largest}") == {"a": largest}
    assert parse_control(b"") == {}


def test_a_key_said_twice_must_say_the_same():
    assert parse_control("a=1\na=1") == {"a": "1"}
    with pytest.raises(InputError, match="line 3: key 'a' has two values, '1' and '2'"):
        parse_control("a=1\n\na=2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n_files", "line 1: 'n_files' is not key=value"),
        ("a=1\n=2", "line 2: '=2' is not key=value"),
        (b"a=\xff", r"not UTF-8 text \(byte 2\)"),
        ("a=1".encode("utf-16"), "not UTF-8"),
        ("a=\0", "NUL"),
        (b"a=" + b"x" * MAX_CONTROL_FILE_BYTES, f"has {MAX_CONTROL_FILE_BYTES + 2} bytes; expected at most"),
    ],
)
def test_what_is_no_control_file(content, message):
    with pytest.raises(InputError, match=message):
        parse_control(content)


def test_errors_do_not_repeat_a_whole_file():
    half = "x" * 30_000
    for content in (half, f"{half}=1\n{half}=2", f"a={half}\na=2"):
        with pytest.raises(InputError) as error:
            parse_control(content)
        assert len(str(error.value)) < 400
