"""Compute the features of many jobs by columns, with the rules of `calmlflow.hst` for one job."""

# Each different value of a column goes through the rule once. A row that is not plainly right goes through the strict
# rules for one job, which accept it or give the reason.

from collections.abc import Iterable, Mapping, Sequence
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
    switch_warnings,
)

# Columns that may name the dataset; the first one present counts.
NAMES = ("ipst", "ipppssoot")

_SIZES = FEATURES[:2]
_KEYS = (*_SIZES, *OPTIONAL_KEYS)
_PROBE = "j00000000"

_LETTERS = sorted(INSTRUMENT_CODES, key=INSTRUMENT_CODES.__getitem__)
_IPPPSSOOT = rf"\A[{''.join(_LETTERS)}][0-9a-z]{{8}}\z"
# Arrow and Python read this as the same number.
_PLAIN_NUMBER = r"\A[0-9]{1,9}(\.[0-9]{0,15})?\z"


class Form(NamedTuple):
    """The columns of a table that count: the dataset's name, and nine features or the keys of a control file."""

    name: str
    keys: tuple[str, ...]
    has_features: bool


class Jobs(NamedTuple):
    """The right rows of a batch in order, with zeros as the features of a mosaic; position and error of the others.

    ``warnings`` has sentences on switches, the rows that each is true of, and the first of their names.
    """

    names: pa.Array
    features: NDArray[np.int64]
    is_mosaic: NDArray[np.bool_]
    reasons: dict[int, str]
    warnings: dict[str, tuple[int, str]]


def form_of(columns: Iterable[str], table: str) -> Form:
    """Find the columns that count; an InputError names the table, and the column that is missing or there twice."""
    columns = list(columns)
    name = next((column for column in NAMES if column in columns), None)
    if name is None:
        raise InputError(f"{table} has no column ipst or ipppssoot; expected one that names the dataset")
    lacking = [feature for feature in FEATURES if feature not in columns]
    keys = FEATURES if not lacking else tuple(key for key in _KEYS if key in columns)
    # Jobs with some of the features must not be answered as if they had no flags.
    is_mixed = len(lacking) < len(FEATURES) - sum(size in columns for size in _SIZES)
    missing = lacking if is_mixed else [size for size in _SIZES if size not in columns]
    if missing:
        raise InputError(
            f"{table} lacks column {', '.join(missing)}; expected the nine features, or the keys of a control file: "
            f"{', '.join(_KEYS)}"
        )
    twice = [column for column in (name, *keys) if columns.count(column) > 1]
    if twice:
        raise InputError(f"{table} has column {twice[0]} twice; expected it once")
    return Form(name, keys, not lacking)


def row_features(form: Form, row: Mapping[str, Any]) -> Features | None:
    """Features of one row by the strict rules; None for a mosaic."""
    dataset = parse_dataset(row[form.name])
    if dataset.is_hap:
        return None
    if not form.has_features:
        return job_features(dataset.name, row)
    values = [_cell_number(dataset.name, feature, row[feature]) for feature in FEATURES]
    check_features(dataset, values)
    return Features(*(round(value) for value in values))


def read_jobs(batch: pa.RecordBatch, form: Form) -> Jobs:
    """Features of every right row of a batch, and the error of every other."""
    names, of_name, is_mosaic, reasons = _read_names(batch.column(form.name))
    values = np.zeros((batch.num_rows, len(FEATURES)))
    for key in form.keys:
        values[:, FEATURES.index(key.lower())] = _column_values(batch.column(key), key, form.has_features)
    if not form.has_features:
        values[:, -2:] = of_name
    lowest, highest = np.zeros_like(values), np.array([MAX_FILES, MAX_TOTAL_MB, 1, 1, 2, 1, 1, 0, 0], dtype=float)
    lowest[:, 0] = 1
    lowest[:, -2:] = of_name
    highest = np.maximum(lowest, highest)
    with np.errstate(invalid="ignore"):
        right = (lowest <= values) & (values <= highest) & ((values == np.floor(values)) | (np.arange(9) == 1))
    features = np.zeros(values.shape, dtype=np.int64)
    is_right = right.all(axis=1) & ~is_mosaic
    features[is_right] = np.rint(values[is_right])
    doubtful = np.flatnonzero(~is_right & ~is_mosaic)
    doubtful = doubtful[~np.isin(doubtful, list(reasons))]
    cells = [cells_at(batch.column(name), doubtful) for name in (form.name, *form.keys)]
    for position, row in zip(doubtful.tolist(), zip(*cells, strict=True), strict=True):
        try:
            features[position] = row_features(form, dict(zip((form.name, *form.keys), row, strict=True))) or 0
        except InputError as error:
            reasons[position] = str(error)
    good = np.ones(batch.num_rows, dtype=bool)
    good[list(reasons)] = False
    warnings = {} if form.has_features else _warnings(batch, form, names, np.flatnonzero(good & ~is_mosaic))
    return Jobs(names.filter(pa.array(good)), features[good], is_mosaic[good], reasons, warnings)


def _warnings(
    batch: pa.RecordBatch, form: Form, names: pa.Array, rows: NDArray[np.int64]
) -> dict[str, tuple[int, str]]:
    """The warnings of `Jobs`; of rows with the same instrument and switches one goes through the rule."""
    switches = form.keys[len(_SIZES) :]
    kinds = np.zeros(len(rows), dtype=np.int64)
    for column in (pc.utf8_slice_codeunits(names, 0, 1), *(_plain(batch.column(key)) for key in switches)):
        try:
            encoded = column.dictionary_encode()
            codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)[rows]
        except pa.ArrowException:
            codes = rows
        # Numbered anew at each column, so that the numbers stay small.
        kinds = np.unique(kinds * (batch.num_rows + 1) + codes, return_inverse=True)[1]
    _, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    found: dict[str, tuple[int, str]] = {}
    cells = [cells_at(column, rows[first]) for column in (names, *(batch.column(key) for key in switches))]
    for (name, *values), count in zip(zip(*cells, strict=True), counts.tolist(), strict=True):
        for sentence in switch_warnings(name, dict(zip(switches, values, strict=True))):
            known, example = found.get(sentence, (0, name))
            found[sentence] = known + count, example
    return found


def cells_at(column: pa.Array, positions: Sequence[int] | NDArray[np.int64]) -> list[Any]:
    """Some cells of a column as Python values, or as text if Python has no such value."""
    chosen = _plain(column).take(pa.array(positions, pa.int64()))
    try:
        return chosen.to_pylist()
    except (ValueError, OverflowError):
        # A date outside of Python's range, or finer than a microsecond.
        return chosen.cast(pa.string()).to_pylist()


def _read_names(column: pa.Array) -> tuple[pa.Array, NDArray[np.float64], NDArray[np.bool_], dict[int, str]]:
    """Names in lower case; of each row the features dtype and instr, whether it is a mosaic, or its error."""
    column = _plain(column)
    text = column if _is_text(column.type) else pa.nulls(len(column), pa.string())
    names = pc.ascii_lower(text).cast(pa.string())
    is_plain = pc.fill_null(pc.match_substring_regex(names, _IPPPSSOOT), False)
    of_name = np.zeros((len(column), 2))
    of_name[:, 0] = pc.fill_null(pc.ends_with(names, "0"), False).to_numpy(zero_copy_only=False)
    first = pc.index_in(pc.utf8_slice_codeunits(names, 0, 1), pa.array(_LETTERS))
    of_name[:, 1] = pc.fill_null(first, 0).to_numpy(zero_copy_only=False)
    is_mosaic = np.zeros(len(column), dtype=bool)
    reasons: dict[int, str] = {}
    # Mosaics, names with blanks around them, and what is not a name.
    others = np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False))
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
    names = pc.replace_with_mask(names, pc.invert(is_plain), pa.array(spelled, pa.string()))
    return names, of_name, is_mosaic, reasons


def _column_values(column: pa.Array, key: str, is_feature: bool) -> NDArray[np.float64]:
    """The feature that a column of keys or features gives, shape (n,); NaN where the strict rules must decide."""
    column = _plain(column)
    kind = column.type
    is_number = is_feature or key in _SIZES
    if is_number and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

    def rule(value: object) -> float:
        try:
            if is_feature:
                return _cell_number("", key, value)
            return getattr(job_features(_PROBE, {"n_files": 1, "total_mb": 0, key: value}), key.lower())
        except InputError:
            return np.nan

    try:
        encoded = column.dictionary_encode()
    except pa.ArrowException:
        # Lists and other cells that are neither words nor numbers.
        return np.full(len(column), np.nan)
    different = encoded.dictionary
    values = np.full(len(different) + 1, np.nan)
    values[-1] = rule(None)
    left = np.ones(len(different), dtype=bool)
    if is_number and _is_text(kind):
        plain = pc.match_substring_regex(different, _PLAIN_NUMBER)
        left = ~pc.fill_null(plain, False).to_numpy(zero_copy_only=False)
        values[:-1][~left] = different.filter(pa.array(~left)).cast(pa.float64()).to_numpy()
    words = different.filter(pa.array(left)).to_pylist()
    values[np.flatnonzero(left)] = [rule(word) for word in words]
    return values[encoded.indices.fill_null(len(different)).to_numpy(zero_copy_only=False)]


def _plain(column: pa.Array) -> pa.Array:
    """A column without dictionary or views; bytes become text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return column.cast(pa.string()) if is_bytes or pa.types.is_string_view(kind) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _cell_number(name: str, feature: str, value: Any) -> float:
    """A cell of a column of features as a number."""
    is_odd = "_" in str(value) if isinstance(value, str | bytes) else isinstance(value, bool) and feature in _SIZES
    try:
        return float("" if is_odd else value)
    except (TypeError, ValueError, OverflowError) as error:
        is_missing = value is None or (isinstance(value, str) and not value.strip())
        shown = "missing" if is_missing else repr(value)[:40]
        raise InputError(f"{name}: {feature} is {shown}; expected a number") from error
