"""Compute the nine features of a job from its control file."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError
from calmlflow.hst.dataset import INSTRUMENTS, Dataset, parse_dataset

MAX_CONTROL_FILE_BYTES = 65_536
"""A real control file has about 100 bytes."""

_STEP = {"PERFORM": 1, "OMIT": 0, "COMPLETE": 0, "SKIPPED": 0}
_DETECTORS = ("IR", "HRC", "SBC", "FUV", "NUV", "CCD", "FUV-MAMA", "NUV-MAMA")

SWITCHES: dict[str, dict[str, int]] = {
    "DETECTOR": {"WFC": 1, "UVIS": 1, **dict.fromkeys(_DETECTORS, 0)},
    "SUBARRAY": {"T": 1, "TRUE": 1, "1": 1, "F": 0, "FALSE": 0, "0": 0},
    "DRIZCORR": _STEP,
    "PCTECORR": _STEP,
    "CRSPLIT": {"1": 1},
}
"""Words that HST's headers use for each switch -> value of its feature; CRSPLIT is any whole number from 1 on."""

OPTIONAL_KEYS = tuple(SWITCHES)
"""Keys of a control file that some instruments do not have; absent, empty and NaN mean the same."""

# What a word that no header uses counts as.
_UNKNOWN = {"CRSPLIT": 2}
# Switches that every control file has: all, those of ACS and WFC3, and those of WFC and UVIS.
_ALWAYS, _ALWAYS_OF_CAMERAS, _ALWAYS_OF_CCDS = ("DETECTOR", "SUBARRAY"), ("DRIZCORR",), ("PCTECORR", "CRSPLIT")
_WHOLE = re.compile(r"0*([0-9]{1,9})(?:\.0*)?")

MAX_FILES = 1_000_000
MAX_TOTAL_MB = 1_000_000_000
"""A petabyte. Larger values are errors of unit, and leave the range of float32 in the networks."""


class Features(NamedTuple):
    """The feature vector of one job, in the order the networks were trained on."""

    n_files: int
    total_mb: int
    drizcorr: int
    pctecorr: int
    crsplit: int
    subarray: int
    detector: int
    dtype: int
    instr: int


FEATURES = Features._fields
"""Names of the nine features, in order."""

# Number of values of each feature: their product lies below 2**63.
_COUNTS = (MAX_FILES + 1, MAX_TOTAL_MB + 1, 2, 2, 3, 2, 2, 2, 4)
_STRIDES = np.array([math.prod(_COUNTS[place + 1 :]) for place in range(len(_COUNTS))], dtype=np.int64)


def parse_control(text: str | bytes) -> dict[str, str]:
    """Read the ``key=value`` lines of a control file.

    Blank lines, ``#`` comments, CRLF, a byte order mark and blanks around key and value are accepted, and so is a
    key that is there twice with the same value.

    Raises
    ------
    InputError
        Not text, too large, a line without ``=``, or a key with two different values.
    """
    if len(text) > MAX_CONTROL_FILE_BYTES:
        raise InputError(f"control file has {len(text)} bytes; expected at most {MAX_CONTROL_FILE_BYTES}")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"control file is not UTF-8 text (byte {error.start}); expected key=value lines"
            ) from error
    if "\0" in text:
        raise InputError("control file holds a NUL character; expected key=value lines of text")
    keys: dict[str, str] = {}
    # Not str.splitlines: it also breaks lines at characters that may stand inside a value.
    for number, line in enumerate(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise InputError(f"control file, line {number}: {line[:60]!r} is not key=value")
        if keys.setdefault(key, value) != value:
            raise InputError(
                f"control file, line {number}: key {key[:60]!r} has two values, {keys[key][:60]!r} and {value[:60]!r}"
            )
    return keys


def job_features(name: str, keys: Mapping[str, object], strict: bool = False) -> Features:
    """Compute the nine features of one job.

    Parameters
    ----------
    name : str
        Dataset, an ipppssoot.
    keys : mapping
        The control file's own keys. Values may be text or numbers; ``n_files`` and ``total_mb`` (megabytes) must be
        there, any other key may be absent, None, empty or NaN, and unknown keys are ignored.
    strict : bool
        Refuse a switch that holds a word which no header uses; by default see `switch_warnings`.

    Returns
    -------
    Features
        Whole numbers; ``total_mb`` is rounded.

    Raises
    ------
    InputError
        Names dataset, key and value.
    """
    dataset = parse_dataset(name)
    instr = dataset.instrument_code
    switches = {key: switch_feature(key, keys.get(key)) for key in SWITCHES}
    for key, value in switches.items():
        if strict and value is None:
            raise InputError(f"{dataset.name}: {key} is {_shown(keys[key])}; expected {_expected(key)}")
    return Features(
        n_files=_whole_number(dataset.name, keys.get("n_files")),
        total_mb=_megabytes(dataset.name, keys.get("total_mb")),
        dtype=int(dataset.is_association),
        instr=instr,
        **{key.lower(): _UNKNOWN.get(key, 0) if value is None else value for key, value in switches.items()},
    )


def control_features(name: str, content: str | bytes) -> Features:
    """The nine features by a control file; an InputError also where a switch holds a word that no header uses."""
    return job_features(name, parse_control(content), strict=True)


def switch_feature(key: str, value: object) -> int | None:
    """The feature of a value of a switch: 0 where it is missing, None for a word that no header uses."""
    word = _text(value)
    if not word:
        return 0
    words = SWITCHES[key]
    if word not in words and (whole := _WHOLE.fullmatch(word)):
        word = whole[1]
        if key == "CRSPLIT" and int(word) > 1:
            return 2
    return words.get(word)


def switch_warnings(name: str, keys: Mapping[str, object]) -> list[str]:
    """Sentences on the switches of an ipppssoot that hold a word which no header uses, or that are missing."""
    warnings, detector = [], _text(keys.get("DETECTOR"))
    always = _ALWAYS + _ALWAYS_OF_CAMERAS * (name[0] in "ij") + _ALWAYS_OF_CCDS * (detector in ("WFC", "UVIS"))
    for key in SWITCHES:
        if switch_feature(key, value := keys.get(key)) is None:
            counts_as = _UNKNOWN.get(key, 0)
            warnings.append(f"{key} is {_shown(value)} and counts as {counts_as}; expected {_expected(key)}.")
        elif key in always and not _text(value):
            whose = detector if key in _ALWAYS_OF_CCDS else INSTRUMENTS[name[0]]
            warnings.append(f"{key} is missing and counts as 0; expected it, since every job of {whose} has it.")
    return warnings


def _expected(key: str) -> str:
    return "a whole number, 1 or more" if key == "CRSPLIT" else f"one of {', '.join(SWITCHES[key])}"


def row_codes(features: ArrayLike) -> NDArray[np.int64]:
    """One number for each different row of features, shape (n, 9); sizes are rounded."""
    return np.rint(np.asarray(features, dtype=float)).astype(np.int64) @ _STRIDES


def rows_of_codes(codes: ArrayLike) -> NDArray[np.int64]:
    """The rows of features, shape (n, 9), of n codes of `row_codes`."""
    return np.asarray(codes, dtype=np.int64)[:, None] // _STRIDES % _COUNTS


def check_features(dataset: Dataset, features: Sequence[float]) -> None:
    """Raise an InputError where the nine features of a record cannot be those of the dataset."""
    highest = Features(MAX_FILES, MAX_TOTAL_MB, 1, 1, 2, 1, 1, int(dataset.is_association), dataset.instrument_code)
    lowest = Features(1, 0, 0, 0, 0, 0, 0, int(dataset.is_association), dataset.instrument_code)
    for name, value, low, high in zip(FEATURES, features, lowest, highest, strict=True):
        if not low <= value <= high or (name != "total_mb" and value != int(value)):
            kind = "number" if name == "total_mb" else "whole number"
            expected = f"a {kind} from {low} to {high}" if low < high else f"{low}, by the dataset's name"
            raise InputError(f"{dataset.name}: {name} is {value:g}; expected {expected}")


def _plain(value: object) -> str:
    try:
        return str(value).strip()
    except ValueError:  # Python refuses to print a whole number of more than 4300 digits.
        return "a number of thousands of digits"
    except RecursionError:
        return "lists within lists"


def _shown(value: object) -> str:
    return repr(_plain(value)[:40])


def _text(value: object) -> str:
    """Fold a value of an optional key to upper case; absent, empty and NaN give an empty string."""
    text = "" if value is None else _plain(value).upper()
    return "" if text in ("NAN", "NONE", "<NA>") else text


def _number(name: str, key: str, value: object, expected: str) -> float:
    if value is None or _text(value) == "":
        raise InputError(f"{name}: {key} is missing; expected {expected}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value) or not math.isfinite(number):
        raise InputError(f"{name}: {key} is {_shown(value)}; expected {expected}")
    return number


def _whole_number(name: str, value: object) -> int:
    expected = f"a whole number of raw files, 1 to {MAX_FILES}"
    number = _number(name, "n_files", value, expected)
    if not 1 <= number <= MAX_FILES or number != int(number):
        raise InputError(f"{name}: n_files is {_shown(value)}; expected {expected}")
    return int(number)


def _megabytes(name: str, value: object) -> int:
    expected = f"a number of megabytes, 0 to {MAX_TOTAL_MB}"
    number = _number(name, "total_mb", value, expected)
    if not 0 <= number <= MAX_TOTAL_MB:
        raise InputError(f"{name}: total_mb is {_shown(value)}; expected {expected}")
    return round(number)
