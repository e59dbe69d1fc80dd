"""Features of many jobs, by columns: the rules of `calmlflow.hst` for one job, applied to each different value once.

A row that does not look right at once goes through the strict rules for one job, which either find it right after all
or say what is wrong with it, in the same words as everywhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.dataset import INSTRUMENT_CODES, parse_dataset
from calmlflow.hst.features import (
    FEATURES,
    MAX_FILES,
    MAX_TOTAL_MB,
    OPTIONAL_KEYS,
    Features,
    check_features,
    job_features,
)

NAMES = ("ipst", "ipppssoot")
"""Columns that may name the dataset; the first one that is there counts."""

_SIZES = FEATURES[:2]
_KEYS = (*_SIZES, *OPTIONAL_KEYS)
CELLS = frozenset((*_KEYS, *FEATURES))
"""Columns that features come from."""
_PROBE = "j00000000"

_NAME_BYTES = 9
# Byte of a name -> byte in lower case, or 0 where no ipppssoot has it.
_FOLDED = np.zeros(256, dtype=np.uint8)
for _byte in b"0123456789abcdefghijklmnopqrstuvwxyz":
    _FOLDED[[_byte, ord(chr(_byte).upper())]] = _byte
_UNKNOWN = 255
_CODES = np.full(256, _UNKNOWN, dtype=np.uint8)
for _letter, _code in INSTRUMENT_CODES.items():
    _CODES[ord(_letter)] = _code

# What Arrow and Python read as the same number, without a doubt.
_PLAIN_NUMBER = r"\A[0-9]{1,9}(\.[0-9]{0,15})?\z"
_MANY = 500


class Form(NamedTuple):
    """What the columns of a table hold.

    Attributes
    ----------
    name : str
        Column that names the dataset.
    keys : tuple of str
        Columns from which the features come: all nine features, or those of a control file's keys that are there.
    has_features : bool
    """

    name: str
    keys: tuple[str, ...]
    has_features: bool


class Jobs(NamedTuple):
    """What was found in n rows, of which g are right.

    Attributes
    ----------
    names : Array of string, length g
    features : ndarray of int64, shape (g, 9)
        Zeros for a mosaic.
    is_mosaic : ndarray of bool, shape (g,)
    reasons : dict
        Position of each row that is not right -> what is wrong; all others follow one another above, in order.
    """

    names: pa.Array
    features: NDArray[np.int64]
    is_mosaic: NDArray[np.bool_]
    reasons: dict[int, str]


def form_of(columns: Iterable[str], table: str) -> Form:
    """Tell what the columns of a table hold; an InputError names the table, and what it lacks or has twice."""
    columns = list(columns)
    name = next((column for column in NAMES if column in columns), None)
    if name is None:
        raise InputError(f"{table} has no column ipst or ipppssoot; expected one that names the dataset")
    lacking = [feature for feature in FEATURES if feature not in columns]
    keys = FEATURES if not lacking else tuple(key for key in _KEYS if key in columns)
    if not {*_SIZES} <= {*keys}:
        raise InputError(
            f"{table} lacks column n_files or total_mb; expected the nine features, or a control file's keys"
        )
    # Without this, jobs whose flags are all there but one would be answered as if they had no flags.
    if lacking and len(keys) == len(_SIZES) and len(lacking) < len(FEATURES) - len(_SIZES):
        raise InputError(f"{table} lacks column {lacking[0]}; expected the nine features, or a control file's keys")
    twice = [column for column in (name, *keys) if columns.count(column) > 1]
    if twice:
        raise InputError(f"{table} has column {twice[0]} twice; expected it once")
    return Form(name, keys, not lacking)


def row_features(form: Form, row: Mapping[str, Any]) -> Features | None:
    """The features of one row, by the strict rules; None for a mosaic, and an InputError says what is wrong."""
    dataset = parse_dataset(row[form.name])
    if dataset.is_hap:
        return None
    if not form.has_features:
        return job_features(dataset.name, row)
    values = [_cell_number(dataset.name, feature, row[feature]) for feature in FEATURES]
    check_features(dataset, values)
    return Features(*(round(value) for value in values))


def read_jobs(batch: pa.RecordBatch, form: Form) -> Jobs:
    """The features of every row of a batch, or what is wrong with it."""
    names = _read_names(batch.column(form.name))
    values = np.zeros((batch.num_rows, len(FEATURES)))
    for key in form.keys:
        values[:, FEATURES.index(key.lower())] = _column_values(batch.column(key), key, form.has_features)
    if not form.has_features:
        values[:, -2:] = names.of_name
    lowest, highest = np.zeros_like(values), np.array([MAX_FILES, MAX_TOTAL_MB, 1, 1, 2, 1, 1, 0, 0], dtype=float)
    lowest[:, 0] = 1
    lowest[:, -2:] = names.of_name
    highest = np.maximum(lowest, highest)
    with np.errstate(invalid="ignore"):
        right = (lowest <= values) & (values <= highest) & ((values == np.floor(values)) | (np.arange(9) == 1))
    reasons = names.reasons
    features = np.zeros(values.shape, dtype=np.int64)
    is_right = right.all(axis=1) & ~names.is_mosaic
    features[is_right] = np.rint(values[is_right])
    doubtful = np.flatnonzero(~is_right & ~names.is_mosaic)
    doubtful = doubtful[~np.isin(doubtful, list(reasons))]
    cells = [cells_at(_decoded(batch.column(name)), doubtful) for name in (form.name, *form.keys)]
    for position, row in zip(doubtful.tolist(), zip(*cells, strict=True), strict=True):
        try:
            features[position] = row_features(form, dict(zip((form.name, *form.keys), row, strict=True))) or 0
        except InputError as error:
            reasons[position] = str(error)
    good = np.ones(batch.num_rows, dtype=bool)
    good[list(reasons)] = False
    return Jobs(names.names.filter(pa.array(good)), features[good], names.is_mosaic[good], reasons)


def cells_at(column: pa.Array, positions: Sequence[int] | NDArray[np.int64]) -> list[Any]:
    """Some cells of a column as Python has them, or as text where Python has no such thing."""
    try:
        return [column[int(position)].as_py() for position in positions]
    except UnicodeDecodeError:
        text = cells_as_text(column)
        return [text[int(position)] for position in positions]
    except (ValueError, OverflowError):
        # A day that Python does not know, or one that is finer than that.
        text = column.cast(pa.string())
        return [text[int(position)].as_py() for position in positions]


class _Names(NamedTuple):
    """Names in lower case, and of each row the features dtype and instr, or why its name is none."""

    names: pa.Array
    of_name: NDArray[np.float64]
    is_mosaic: NDArray[np.bool_]
    reasons: dict[int, str]


def _read_names(column: pa.Array) -> _Names:
    count = len(column)
    column = _decoded(column)
    plain = np.zeros(count, dtype=bool)
    if _is_text(column.type):
        plain = pc.fill_null(pc.equal(pc.binary_length(column), _NAME_BYTES), False).to_numpy(zero_copy_only=False)
    folded = _FOLDED[_characters(column.filter(pa.array(plain)))] if plain.any() else np.empty((0, _NAME_BYTES), "u1")
    codes = _CODES[folded[:, 0]]
    is_name = folded.all(axis=1) & (codes != _UNKNOWN)
    plain[np.flatnonzero(plain)[~is_name]] = False
    folded, codes = folded[is_name], codes[is_name]

    of_name = np.zeros((count, 2))
    of_name[plain, 0] = folded[:, -1] == ord("0")
    of_name[plain, 1] = codes
    is_mosaic = np.zeros(count, dtype=bool)
    reasons: dict[int, str] = {}
    # Mosaics, names with blanks around them, and what is no name.
    others = np.flatnonzero(~plain)
    spelled: list[str | None] = []
    for position, name in zip(others.tolist(), cells_at(column, others), strict=True):
        try:
            dataset = parse_dataset(name)
        except InputError as error:
            reasons[position] = str(error)
            spelled.append(None)
            continue
        spelled.append(dataset.name)
        is_mosaic[position] = dataset.is_hap
        if not dataset.is_hap:
            of_name[position] = dataset.is_association, dataset.instrument_code

    offsets = np.arange(len(folded) + 1, dtype=np.int32) * _NAME_BYTES
    plain_names = pa.StringArray.from_buffers(len(folded), pa.py_buffer(offsets), pa.py_buffer(folded.tobytes()))
    place = np.empty(count, dtype=np.int64)
    place[plain], place[others] = np.arange(len(folded)), len(folded) + np.arange(len(others))
    names = pa.concat_arrays([plain_names, pa.array(spelled, pa.string())]).take(pa.array(place))
    return _Names(names, of_name, is_mosaic, reasons)


def _characters(names: pa.Array) -> NDArray[np.uint8]:
    """The bytes of names of nine bytes each, shape (n, 9)."""
    fixed = names.cast(pa.binary(_NAME_BYTES))
    data = np.frombuffer(fixed.buffers()[1], dtype=np.uint8)
    return data[fixed.offset * _NAME_BYTES :][: len(fixed) * _NAME_BYTES].reshape(-1, _NAME_BYTES)


def _column_values(column: pa.Array, key: str, is_feature: bool) -> NDArray[np.float64]:
    """The feature that a column of keys or features gives, shape (n,); NaN where the rules for one job must say."""
    column = _decoded(column)
    kind = column.type
    if (is_feature or key in _SIZES) and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    rule = _feature_rule(key) if is_feature else _key_rule(key)
    try:
        encoded = column.dictionary_encode()
    except pa.ArrowException:
        # Lists and other things that are neither words nor numbers.
        return np.full(len(column), np.nan)
    different = encoded.dictionary
    values = np.full(len(different) + 1, np.nan)
    values[-1] = rule(None)
    left = np.ones(len(different), dtype=bool)
    if _is_text(kind) and len(different) > _MANY and (is_feature or key in _SIZES):
        plain = pc.match_substring_regex(different, _PLAIN_NUMBER)
        left = ~pc.fill_null(plain, False).to_numpy(zero_copy_only=False)
        values[:-1][~left] = different.filter(pa.array(~left)).cast(pa.float64()).to_numpy()
    words = different.filter(pa.array(left)).to_pylist()
    values[np.flatnonzero(left)] = [rule(word) for word in words]
    return values[encoded.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)]


def _decoded(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        # As older writers of Parquet keep text.
        column = pa.array(cells_as_text(column), pa.large_string())
    elif _is_text(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column = pa.array(cells_as_text(column), pa.large_string())
    return column.cast(pa.large_string()) if kind == pa.string_view() else column


def cells_as_text(column: pa.Array) -> list[str | None]:
    """Bytes as text; what is no UTF-8 in them becomes a sign that no name and no number holds."""
    raw = column.cast(pa.large_binary()).to_pylist()
    return [None if cell is None else cell.decode("utf-8", "replace") for cell in raw]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _key_rule(key: str) -> Callable[[object], float]:
    """From a value of a control file's key to its feature; NaN where the rules refuse it."""

    def rule(value: object) -> float:
        try:
            return getattr(job_features(_PROBE, {"n_files": 1, "total_mb": 0, key: value}), key.lower())
        except InputError:
            return np.nan

    return rule


def _feature_rule(feature: str) -> Callable[[object], float]:
    def rule(value: object) -> float:
        try:
            return _cell_number("", feature, value)
        except InputError:
            return np.nan

    return rule


def _cell_number(name: str, feature: str, value: Any) -> float:
    """A cell of a column of features as a number."""
    is_odd = "_" in str(value) if isinstance(value, str | bytes) else isinstance(value, bool) and feature in _SIZES
    try:
        return float("" if is_odd else value)
    except (TypeError, ValueError, OverflowError):
        is_missing = value is None or (isinstance(value, str) and not value.strip())
        shown = "missing" if is_missing else repr(value)[:40]
        raise InputError(f"{name}: {feature} is {shown}; expected a number") from None
