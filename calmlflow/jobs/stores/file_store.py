"""A store in files: one file a table, changed in memory and written as a whole."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import is_any_real_numeric_dtype

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.records import OPTIONAL_COLUMNS, check_columns, record_cells
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Table, conform
from calmlflow.jobs.stores.formats import MISSING_NUMBERS, csv_cells, merged, read_parts, read_whole, write_whole

_TRIES = 10

# A process that is killed between two files has written what the next one stands on: an entry of the quarantine is
# closed after its record is there, and a record is replaced after it is in the history.
_ORDER = (HISTORY, JOBS, MOSAICS, PREDICTIONS, QUARANTINE)


class Place(Protocol):
    """Where the files of a store lie.

    Attributes
    ----------
    is_parquet : bool
        Else CSV.
    """

    is_parquet: bool

    def shown(self, table: Table) -> str:
        """Name of a table's file, for errors."""

    def fetch(self, table: Table) -> Path | None:
        """A local file with the table as it is now; None where there is none."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep others out, as far as the place can."""

    def stage(self, table: Table, write: Callable[[Path], None]) -> Path:
        """Write a new file beside the table's."""

    def replace(self, table: Table, staged: Path) -> bool:
        """Put it into the table's place; False where that is not as it was fetched last."""

    def close(self) -> None:
        """Give back what is held."""


@dataclass
class _Change:
    """A table that is being changed: its rows, and what was asked and put, in order, with the answers."""

    rows: pa.Table | None
    asked: list[tuple[list[str], pd.DataFrame]] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)
    put: list[pd.DataFrame] = field(default_factory=list)


class FileStore:
    """See `calmlflow.jobs.stores.base.Store`. Table JOBS is the file itself, and may have columns of its own.

    Records that somebody else wrote there are as unchecked as the file: `read` gives them as they are, `get` only those
    whose cells have the kinds of their columns, and `put` leaves the others alone.
    """

    def __init__(self, name: str, place: Place):
        self.name = name
        self._place = place
        self._changing: dict[str, _Change] | None = None
        self.close = place.close

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """See `Store.read`; records (JOBS) as they are."""
        if self._changing is not None:
            rows = self._current(table).rows
            parts = iter([] if rows is None else [rows.to_pandas(ignore_metadata=True)])
        else:
            path = self._place.fetch(table)
            parts = iter([]) if path is None else read_parts(path, self._place.shown(table))
        for part in parts:
            yield select(part, table, columns, where)

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Store.get`; of records of the same name, the newest."""
        if self._changing is None:
            path = self._place.fetch(table)
            rows = None if path is None else read_whole(path, self._place.shown(table))
            return self._rows_of(rows, table, names)[0]
        change = self._current(table)
        found, _ = self._rows_of(change.rows, table, names)
        change.steps.append(("get", len(change.asked)))
        change.asked.append((list(names), found))
        return found

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """See `Store.put`."""
        if self._changing is None:
            with self.change():
                self.put(table, rows)
            return
        rows = conform(rows, table)
        if rows.empty:
            return
        texts = [name for name, kind in table.columns.items() if kind == "text"]
        if any(rows[name].str.contains("\0", regex=False, na=False).any() for name in texts):
            raise InputError(f"{self.name} cannot be written (a text holds a NUL character); expected text without")
        self._put(table, rows)

    def count(self, table: Table) -> int:
        """See `Store.count`."""
        return sum(map(len, self.read(table, table.key)))

    @contextmanager
    def change(self) -> Iterator[None]:
        """See `Store.change`: what is put is written at the end."""
        with self._place.locked():
            self._changing = {}
            try:
                yield
                if JOBS.name not in self._changing and self._place.fetch(JOBS) is None:
                    # A store that holds nothing but quarantined records is one.
                    self._current(JOBS)
                none = self._changing.get(JOBS.name)
                if none and none.rows is None:
                    self._put(JOBS, conform(pd.DataFrame(), JOBS))
                changed = [table for table in _ORDER if table.name in self._changing and self._current(table).put]
                # All are written before the first takes its place: a full disk changes nothing.
                staged = [(table, self._staged(table)) for table in changed]
                for table, path in staged:
                    self._replace(table, path)
            finally:
                self._changing = None

    # -- Changes ----------------------------------------------------------------------------------------------------

    def _put(self, table: Table, rows: pd.DataFrame) -> None:
        change = self._current(table)
        change.rows = self._with(change.rows, table, rows)
        change.steps.append(("put", len(change.put)))
        change.put.append(rows)

    def _current(self, table: Table) -> _Change:
        assert self._changing is not None  # noqa: S101 - only asked within a change
        if table.name not in self._changing:
            self._changing[table.name] = _Change(self._load(table))
        return self._changing[table.name]

    def _load(self, table: Table) -> pa.Table | None:
        path = self._place.fetch(table)
        return None if path is None else read_whole(path, self._place.shown(table))

    def _staged(self, table: Table) -> Path:
        rows = self._current(table).rows
        return self._place.stage(table, lambda path: write_whole(rows, path, self._place.is_parquet))

    def _replace(self, table: Table, path: Path) -> None:
        for _ in range(_TRIES):
            if self._place.replace(table, path):
                return
            self._again(table)
            path = self._staged(table)
        raise CalmlflowError(f"{self.name} is changed by others all the time; expected one that can be written")

    def _again(self, table: Table) -> None:
        """Do what was done to a table again, with what others have made of it; the answers must be the same."""
        change = self._current(table)
        rows = self._load(table)
        for step, number in change.steps:
            if step == "put":
                rows = self._with(rows, table, change.put[number])
            else:
                names, answer = change.asked[number]
                if not self._rows_of(rows, table, names)[0].equals(answer):
                    raise CalmlflowError(
                        f"{self.name} got other records of the same datasets meanwhile; expected nobody else to write "
                        "them: run it again"
                    )
        change.rows = rows

    # -- Rows -------------------------------------------------------------------------------------------------------

    def _rows_of(self, rows: pa.Table | None, table: Table, names: Collection[str]) -> tuple[pd.DataFrame, np.ndarray]:
        """`rows_of`, and the numbers of these rows."""
        if rows is None:
            return conform(pd.DataFrame(), table), np.zeros(0, dtype=np.int64)
        return rows_of(rows.to_pandas(ignore_metadata=True), table, names, self._place.shown(table))

    def _with(self, old: pa.Table | None, table: Table, rows: pd.DataFrame) -> pa.Table:
        """A table with rows that replace those of the same key, or are added."""
        cells = rows if self._place.is_parquet else csv_cells(rows)
        if old is None:
            return pa.Table.from_pandas(cells, preserve_index=False).replace_schema_metadata()
        there, numbers = self._rows_of(old, table, rows["ipst"].tolist())
        at = pd.Series(numbers, index=pd.MultiIndex.from_frame(there[list(table.key)]))
        places = at.reindex(pd.MultiIndex.from_frame(rows[list(table.key)])).fillna(-1).to_numpy(dtype=np.int64)
        if table is JOBS:
            old = self._completed(old)
        # A table of somebody's own does not get columns that hold nothing.
        new = pa.Table.from_pandas(
            cells[[name for name in cells if name in old.column_names or rows[name].notna().any()]],
            preserve_index=False,
        ).replace_schema_metadata()
        return merged(old, new, places, table)

    def _completed(self, old: pa.Table) -> pa.Table:
        """Records with the columns that may be left out: the rest of them must mean the same as before."""
        absent = [name for name in OPTIONAL_COLUMNS if name not in old.column_names]
        if absent:
            cells = record_cells(old.to_pandas(ignore_metadata=True))[absent].astype("Int64")
            cells = cells if self._place.is_parquet else csv_cells(cells)
            for name in absent:
                old = old.append_column(name, pa.array(cells[name]))
        return old


def select(
    part: pd.DataFrame, table: Table, columns: Sequence[str] | None, where: Mapping[str, object] | None
) -> pd.DataFrame:
    """Some columns and rows of a part; records stay as they are, other tables are as `conform` makes them."""
    if table is not JOBS:
        part = conform(_parsed(part, table)[0], table)
    for name, value in (where or {}).items():
        cells = part[name] if name in part else pd.Series(np.nan, index=part.index)
        if table.columns[name] == "text":
            part = part[cells.astype("str").eq(str(value)).fillna(False)]
        else:
            part = part[pd.to_numeric(cells, errors="coerce").eq(float(str(value))).fillna(False)]
    return part if columns is None else part.reindex(columns=list(columns))


def rows_of(rows: pd.DataFrame, table: Table, names: Collection[str], shown: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of some datasets whose cells have the kinds of their columns, as `conform` makes them, and their numbers.

    Of rows of the same key it is the newest, the last of equals, as in `calmlflow.jobs.records.sort_records`.
    """
    folded = rows["ipst"].astype("str") if "ipst" in rows else pd.Series(dtype="str")
    if table is JOBS:
        check_columns(rows, shown)
        folded = folded.str.strip().str.lower()
    is_named = folded.isin(list(names)).to_numpy()
    numbers = np.flatnonzero(is_named)
    rows = rows[is_named].reset_index(drop=True)
    if table is JOBS and len(rows):
        completed = record_cells(rows)
        rows = rows.assign(**{name: completed[name] for name in OPTIONAL_COLUMNS if name not in rows})
        rows = rows.assign(ipst=completed["ipst"])
    parsed, is_sound = _parsed(rows, table)
    found = conform(parsed[is_sound], table)
    numbers = numbers[is_sound]
    if "timestamp" in table.columns:
        order = np.argsort(found["timestamp"].fillna(0).to_numpy(dtype=float), kind="stable")
        found, numbers = found.iloc[order], numbers[order]
    is_last = ~found.duplicated(list(table.key), keep="last").to_numpy()
    return found[is_last].reset_index(drop=True), numbers[is_last]


def _parsed(rows: pd.DataFrame, table: Table) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells of the kinds of their columns, and which rows have no other cells; those others are missing here."""
    is_sound = np.ones(len(rows), dtype=bool)
    made = {}
    for name, kind in table.columns.items():
        if name not in rows:
            continue
        cells = rows[name]
        if kind == "text":
            texts = cells.astype("str")
            # An empty text cannot be told from a missing one in a CSV, and a key is never missing.
            made[name] = texts.fillna("") if name in table.key else texts.where(texts.ne("").fillna(False))
            continue
        numbers = cells if is_any_real_numeric_dtype(cells) else _numbers(cells.astype("str"))
        is_wrong = numbers.isna() & ~cells.isna() & ~cells.astype("str").isin(MISSING_NUMBERS)
        if kind == "whole":
            whole = numbers.astype("float64")
            is_wrong |= numbers.notna() & ~((whole.mod(1) == 0) & whole.between(-(2.0**63), 2.0**63, "left"))
        made[name] = numbers.where(~is_wrong)
        is_sound &= ~is_wrong.to_numpy(dtype=bool)
    return pd.DataFrame(made, index=rows.index), is_sound


def _numbers(texts: pd.Series) -> pd.Series:
    """Numbers of text, to the last bit, which pandas does not promise; NaN where there is none."""
    is_number = pd.to_numeric(texts, errors="coerce").notna().to_numpy()
    numbers = np.full(len(texts), np.nan)
    numbers[is_number] = texts[is_number].to_numpy(dtype=object).astype("U").astype(np.float64)
    return pd.Series(numbers, index=texts.index)
