"""Check job records: the schema of a table of finished jobs, and the reasons of rows that break it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandas.api.types import is_any_real_numeric_dtype

from calmlflow.errors import InputError
from calmlflow.hst.dataset import INSTRUMENT_CODES, INSTRUMENTS
from calmlflow.hst.features import FEATURES, MAX_FILES, MAX_TOTAL_MB
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.hst.resources import KILLS

COLUMNS = ("ipst", "timestamp", *FEATURES, "wallclock", "memory", "mem_bin")
"""Columns of every table of job records, in order."""

OPTIONAL_COLUMNS = ("timestamp", "mem_bin")

SUPERSEDED = "ipst is superseded by another record of the same name"
"""Reason of a record that is valid and not the newest of its dataset."""

# The container alone needs this much.
MIN_MEMORY_GB = 0.2
# Beyond these a figure has a wrong unit: no instance has a terabyte, no job runs for four months, and milliseconds
# since 1970 passed the last bound in 1973.
MAX_MEMORY_GB, MAX_WALLCLOCK_S, MAX_TIMESTAMP = 1_000, 10_000_000, 100_000_000_000

_FLOATS = ("total_mb", "wallclock", "memory")
# Digits from 0 to 3: a byte each, where there are many records.
_FLAGS = dict.fromkeys(FEATURES[2:], "int8")


def _whole(low: int, high: int) -> pa.Check:
    return pa.Check(
        lambda cells: cells.between(low, high) & cells.mod(1).eq(0),
        error=f"is not a whole number, {low} to {high}",
        ignore_na=False,
    )


def _number(low: float, high: float, error: str, ignore_na: bool = False) -> pa.Check:
    return pa.Check(lambda cells: cells.between(low, high), error=error, ignore_na=ignore_na)


_CHECKS: dict[str, list[pa.Check]] = {
    "ipst": [
        pa.Check(
            lambda cells: cells.str.fullmatch(f"[{''.join(INSTRUMENTS)}][a-z0-9]{{8}}"),
            error=f"is no nine-character dataset name of {', '.join(INSTRUMENTS.values())}",
            ignore_na=False,
        )
    ],
    "timestamp": [_whole(0, MAX_TIMESTAMP)],
    "n_files": [_whole(1, MAX_FILES)],
    "total_mb": [_number(0, MAX_TOTAL_MB, f"is not a number of megabytes, 0 to {MAX_TOTAL_MB}")],
    **{flag: [_whole(0, 1)] for flag in ("drizcorr", "pctecorr")},
    "crsplit": [_whole(0, 2)],
    **{flag: [_whole(0, 1)] for flag in ("subarray", "detector", "dtype")},
    "instr": [_whole(0, len(INSTRUMENTS) - 1)],
    "wallclock": [
        # From the smallest number above 0.
        _number(np.nextafter(0, 1), MAX_WALLCLOCK_S, f"is not a number of seconds above 0, {MAX_WALLCLOCK_S} at most")
    ],
    "memory": [
        _number(0, MAX_MEMORY_GB, f"is not a number of GB, 0 to {MAX_MEMORY_GB}"),
        pa.Check(
            lambda cells: ~cells.between(0, MIN_MEMORY_GB, "left"),
            error=f"is under {MIN_MEMORY_GB} GB, which the container alone needs",
        ),
    ],
    "mem_bin": [_whole(0, len(LADDER) - 1)],
}

# A cell that holds no number is NaN here and breaks its rule like any other, hence ``nullable`` and ``ignore_na``.
RECORDS = pa.DataFrameSchema(
    {column: pa.Column(checks=checks, nullable=True) for column, checks in _CHECKS.items()}, strict=True, ordered=True
)
_MOSAICS = RECORDS.select_columns(["timestamp", "wallclock", "memory"])

# What a killed job had reached may be little, and may be unknown.
_KILLED_CHECKS = {
    "kind": pa.Check.isin(KILLS, error=f"is none of {', '.join(KILLS)}", ignore_na=False),
    "wallclock": _number(0, MAX_WALLCLOCK_S, f"is not a number of seconds, 0 to {MAX_WALLCLOCK_S}", ignore_na=True),
    "memory": _number(0, MAX_MEMORY_GB, f"is not a number of GB, 0 to {MAX_MEMORY_GB}", ignore_na=True),
}
_KILLED = RECORDS.select_columns(["ipst", "timestamp", *FEATURES]).add_columns(
    {name: pa.Column(checks=check, nullable=True) for name, check in _KILLED_CHECKS.items()}
)


@dataclass(frozen=True)
class Checked:
    """Valid job records, and the others with reasons.

    Attributes
    ----------
    valid : DataFrame of n records
        The columns `COLUMNS`: ``ipst`` in lower case, ``total_mb`` (whole megabytes), ``wallclock`` (seconds) and
        ``memory`` (GB) float64, all others int64. Rows stand in their original order, numbered from 0.
    quarantine : DataFrame
        All other rows as they came, plus ``reason``: text, several reasons joined with ``"; "``.
    mended : int
        Other records whose ``mem_bin`` was not the one that ``memory`` needs, which it is now.
    """

    valid: pd.DataFrame
    quarantine: pd.DataFrame
    mended: int = 0

    def reasons(self) -> dict[str, int]:
        """Reason -> number of quarantined rows it was found in, the most frequent first."""
        counts = self.quarantine["reason"].str.split("; ").explode().value_counts()
        return {str(reason): int(count) for reason, count in counts.items()}

    @property
    def earlier(self) -> pd.DataFrame:
        """Valid records of earlier runs of the same datasets, with the columns `COLUMNS`.

        A record that says the same as the newest one is that run once more.
        """
        if self.quarantine.empty:
            return self.valid[:0]
        earlier = record_cells(self.quarantine[self.quarantine["reason"] == SUPERSEDED])
        newest = self.valid.set_index("ipst").loc[earlier["ipst"], ["memory", "wallclock"]].to_numpy()
        return earlier[(earlier[["memory", "wallclock"]].to_numpy() != newest).any(axis=1)].reset_index(drop=True)


def check_records(frame: pd.DataFrame, source: str) -> Checked:
    """Check job records as `sort_records` does; raise an InputError where none is valid."""
    checked = sort_records(frame, source)
    if checked.valid.empty:
        found = "; ".join(f"{count} x {reason}" for reason, count in list(checked.reasons().items())[:3])
        held = f"{len(frame)} records, all quarantined: {found}" if len(frame) else "no records at all"
        raise InputError(f"{source} holds {held}; expected at least one valid job record")
    return checked


def check_parts(parts: Iterable[pd.DataFrame], source: str) -> Checked:
    """Check job records as `check_records` does, one part after the other, so that no more than one is held as it came.

    The features after the sizes are int8. Of a record that one of another part supersedes, the quarantine has the cells
    as they were checked. Quarantined rows are numbered from the first row of all.
    """
    valid, quarantine, keys = [], [], []
    mended = rows = 0
    for part in parts:
        checked = sort_records(part.set_axis(range(rows, rows + len(part))), source)
        # Copied, for a column may be a view of all those of its part.
        valid.append(checked.valid.astype(_FLAGS).copy())
        quarantine.append(checked.quarantine)
        # Comparing numbers takes a third of the memory that comparing names does: nine ASCII characters are 63 bits.
        letters = np.asarray(checked.valid["ipst"], dtype="S9").view(np.uint8).reshape(-1, 9).astype(np.int64)
        keys.append(pd.DataFrame({"ipst": letters @ (1 << 7 * np.arange(9)), "timestamp": checked.valid["timestamp"]}))
        mended, rows = mended + checked.mended, rows + len(part)
    if not any(map(len, valid)):
        return check_records(pd.concat(quarantine) if quarantine else pd.DataFrame(columns=list(COLUMNS)), source)
    left_out = pd.concat(quarantine)
    older = _superseded(pd.concat(keys, ignore_index=True))
    # Row of a valid record: its place among the valid ones, and the rows before it that were left out.
    row_of_older = older + np.searchsorted(left_out.index - np.arange(len(left_out)), older, side="right")
    is_older = np.zeros(sum(map(len, valid)), dtype=bool)
    is_older[older] = True
    late = []
    for number, is_late in enumerate(np.split(is_older, np.cumsum([*map(len, valid)])[:-1])):
        late.append(valid[number][is_late])
        valid[number] = valid[number][~is_late]
    left_out = pd.concat([left_out, pd.concat(late).assign(reason=SUPERSEDED).set_axis(row_of_older)]).sort_index()
    return Checked(pd.concat(valid, ignore_index=True), left_out, mended)


def sort_records(frame: pd.DataFrame, source: str, carry: Sequence[str] = ()) -> Checked:
    """Separate valid job records from those that break the schema or cannot be true.

    Cells may be numbers or text. ``total_mb`` is rounded, as the networks need it. Of rows with the same name, the
    newest valid one is kept, the last one of equals.

    Parameters
    ----------
    frame : DataFrame
        With the columns `COLUMNS`. A missing ``timestamp`` stands for 0. ``mem_bin`` is always the bin that ``memory``
        needs, whatever the table says: old tables have the bin of the nominal sizes.
    source : str
        Origin of the records, for errors.
    carry : sequence of str
        Other columns that valid records keep, unchecked.

    Raises
    ------
    InputError
        A column is missing or there twice.
    """
    expected = f"expected the columns {', '.join(COLUMNS)} ({' and '.join(OPTIONAL_COLUMNS)} may be left out)"
    missing = [column for column in COLUMNS if column not in frame.columns and column not in OPTIONAL_COLUMNS]
    if missing:
        raise InputError(f"{source} has no column {', '.join(missing)}; {expected}")
    twice = [column for column in COLUMNS if list(frame.columns).count(column) > 1]
    if twice:
        raise InputError(f"{source} has more than one column {', '.join(twice)}; {expected}")
    cells = record_cells(frame)
    reasons = _reasons(RECORDS, cells)
    sound = cells[reasons == ""]
    for disagrees, reason in _disagreements(sound):
        reasons.loc[sound.index[disagrees]] += f"; {reason}"
    valid = cells[reasons == ""]
    told = _numbers(frame["mem_bin"]).to_numpy()[valid.index] if "mem_bin" in frame else valid["mem_bin"]
    mended = int((~np.isnan(told) & (told != valid["mem_bin"])).sum())
    reasons.loc[_superseded(valid)] += f"; {SUPERSEDED}"

    checked = _split(frame, cells, reasons)
    valid = checked.valid.astype({c: "int64" for c in COLUMNS if c not in ("ipst", *_FLOATS)})
    kept = {name: frame[name].to_numpy()[reasons == ""] for name in carry}
    return Checked(valid.assign(total_mb=valid["total_mb"].round(), **kept), checked.quarantine, mended)


def sort_mosaics(frame: pd.DataFrame) -> Checked:
    """Check the time and the resources of mosaics; other columns are kept as they are."""
    names = list(_MOSAICS.columns)
    cells = frame.reset_index(drop=True)
    cells = cells.assign(**{name: _numbers(cells[name]) for name in names})
    return _split(frame, cells, _reasons(_MOSAICS, cells[names]))


def sort_killed(frame: pd.DataFrame) -> Checked:
    """Check killed jobs as job records, where the rules apply; other columns are kept as they are."""
    names = list(_KILLED.columns)
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *names])))
    cells = frame.reset_index(drop=True)
    numbers = {name: _numbers(cells[name]) for name in names if name not in ("ipst", "kind")}
    cells = cells.assign(ipst=_texts(cells["ipst"]).str.strip().str.lower(), **numbers)
    reasons = _reasons(_KILLED, cells[names])
    sound = cells[reasons == ""]
    for disagrees, reason in _disagreements(sound):
        reasons.loc[sound.index[disagrees]] += f"; {reason}"
    checked = _split(frame, cells, reasons)
    return Checked(checked.valid.assign(total_mb=checked.valid["total_mb"].round()), checked.quarantine)


def _disagreements(sound: pd.DataFrame) -> Iterator[tuple[pd.Series, str]]:
    """Which rows have features that are not their name's, and the reason."""
    starts = [sound["ipst"].str.startswith(letter) & (sound["instr"] == at) for letter, at in INSTRUMENT_CODES.items()]
    yield ~np.logical_or.reduce(starts), "instr is not that of the first letter of ipst"
    yield sound["dtype"] != sound["ipst"].str.endswith("0"), "dtype is not that of the last character of ipst"


def _superseded(valid: pd.DataFrame) -> pd.Index:
    """Rows, ascending, of which another one has the same name and is newer, or as new and later in the table."""
    # Few names are there twice, and sorting all records would take most of the time.
    shared = valid[valid["ipst"].duplicated(keep=False)]
    older = shared.sort_values("timestamp", kind="stable").duplicated("ipst", keep="last")
    return older.index[older].sort_values()


def _split(frame: pd.DataFrame, cells: pd.DataFrame, reasons: pd.Series) -> Checked:
    bad = (reasons != "").to_numpy()
    quarantine = frame[bad].assign(reason=reasons[bad].str.removeprefix("; ").to_numpy())
    return Checked(cells[~bad].reset_index(drop=True), quarantine)


def _reasons(schema: pa.DataFrameSchema, cells: pd.DataFrame) -> pd.Series:
    """Reasons of each row, ``"; "`` before every one; rows are numbered from 0."""
    reasons = pd.Series("", index=cells.index, dtype=object)
    try:
        schema.validate(cells, lazy=True)
    except pa.errors.SchemaErrors as errors:
        for (column, error), cases in errors.failure_cases.groupby(["column", "check"], sort=False):
            reasons.loc[cases["index"].to_numpy(dtype=np.int64)] += f"; {column} {error}"
    return reasons


def digest_of(records: pd.DataFrame) -> str:
    """Digest of the rows of a table, in their order."""
    return sha256(pd.util.hash_pandas_object(records, index=False).to_numpy().tobytes()).hexdigest()


def record_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns `COLUMNS`, rows numbered from 0: names folded, everything else float64, NaN where it is no number.

    ``mem_bin`` follows from ``memory``.
    """
    frame = frame.reset_index(drop=True)
    if "timestamp" not in frame:
        frame = frame.assign(timestamp=0)
    told = [column for column in COLUMNS if column in frame and column not in ("ipst", "mem_bin")]
    cells = {column: _numbers(frame[column]) for column in told}
    cells["ipst"] = _texts(frame["ipst"]).str.strip().str.lower()
    # Invalid memory breaks its own rule, and gets some bin so that it breaks no second one.
    if "memory" in cells:
        memory = cells["memory"].where(cells["memory"].between(0, MAX_MEMORY_GB), 0)
        cells["mem_bin"] = pd.Series(needed_bin(memory), dtype=float)
    return pd.DataFrame(cells, columns=list(COLUMNS))


def _numbers(values: pd.Series) -> pd.Series:
    numbers = values
    if not is_any_real_numeric_dtype(values):
        # As text, so that True, dates and whole numbers too large for a float are judged like the cells of a CSV.
        numbers = pd.to_numeric(_texts(values), errors="coerce")
    return numbers.astype(float)


def _texts(values: pd.Series) -> pd.Series:
    try:
        return values.astype("str")
    except UnicodeDecodeError:
        # Bytes, as a Parquet file may hold.
        return values.map(str, na_action="ignore").astype("str")
