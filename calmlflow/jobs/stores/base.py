"""What a store of job records holds and can do, whatever it is made of.

A store keeps five tables and knows nothing of what they mean: `calmlflow.jobs.upsert` says which record wins, what
goes to the history, and what to the quarantine, once for all stores.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER

Kind = Literal["text", "whole", "number"]

CHUNK_ROWS = 50_000
"""Rows that are read or written at once, where a store has no measure of its own."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a store; each is equal to itself only.

    Attributes
    ----------
    name : str
    key : tuple of str
        Columns that together name a row; ``ipst``, the dataset, is the first of them.
    columns : mapping of str to {"text", "whole", "number"}
        In order. A cell outside the key may be missing.
    """

    name: str
    key: tuple[str, ...]
    columns: Mapping[str, Kind]


_RECORD: dict[str, Kind] = {
    "ipst": "text",
    "timestamp": "whole",
    **dict.fromkeys(FEATURES, "whole"),
    "total_mb": "number",
    "wallclock": "number",
    "memory": "number",
    "mem_bin": "whole",
}
_ANSWER: dict[str, Kind] = {
    "bin_pred": "whole",
    "mem_pred": "number",
    "wall_pred": "number",
}
TRAINING_COLUMNS: dict[str, Kind] = {
    **_ANSWER,
    "wc_mean": "number",
    "wc_std": "number",
    "wc_err": "number",
    "split": "text",
    "trained_at": "whole",
}
"""What a training adds to a job record; ``trained_at`` is its time in epoch seconds."""

JOBS = Table("jobs", ("ipst",), {**_RECORD, **TRAINING_COLUMNS, "stored_at": "whole"})
"""Finished jobs, one record a dataset. ``stored_at``: epoch seconds at which this record came into the store."""

HISTORY = Table("history", ("ipst", "digest"), {**JOBS.columns, "digest": "text", "replaced_at": "whole"})
"""Records that another one of the same dataset took the place of, and those that came after a newer one."""

MOSAICS = Table(
    "mosaics",
    ("ipst",),
    {
        "ipst": "text",
        "timestamp": "whole",
        "wallclock": "number",
        "memory": "number",
        "disk": "number",
        "stored_at": "whole",
    },
)
"""What HAP jobs used: seconds, GB of memory, and GB that their outputs take up, where that is known."""

QUARANTINE = Table(
    "quarantine",
    ("ipst", "digest"),
    {
        "ipst": "text",
        "digest": "text",
        "timestamp": "whole",
        "kind": "text",
        "reason": "text",
        "source": "text",
        "record": "text",
        "first_seen": "whole",
        "last_seen": "whole",
        "tries": "whole",
        "resolved_at": "whole",
    },
)
"""What could not be stored, and why. ``digest`` tells apart rows of a table that bear the same name, and is empty for a
dataset in a bucket; ``timestamp`` is that of the newest file seen; ``kind`` groups reasons; ``record`` is what was
there, as JSON; ``resolved_at`` is missing as long as the entry is open."""

PREDICTIONS = Table(
    "predictions",
    ("ipst", "timestamp"),
    {
        "ipst": "text",
        "timestamp": "number",
        **dict.fromkeys(FEATURES, "number"),
        **_ANSWER,
        "kill_time": "whole",
        **{f"prob_{rung.name}": "number" for rung in LADDER},
        "unseen": "whole",
        "version": "text",
        "source": "text",
    },
)
"""What was answered before a job ran, see `calmlflow.predictor.emit.prediction_record`."""

TABLES = (JOBS, HISTORY, MOSAICS, QUARANTINE, PREDICTIONS)


class Store(Protocol):
    """A store, opened; see `calmlflow.jobs.stores.open.open_store`.

    Every method raises a CalmlflowError that names the store where it cannot be reached, read or written, and an
    InputError where what it holds is no store, or where it can be read only.

    Attributes
    ----------
    name : str
        Its URI without password, for logs and errors.
    """

    name: str

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """All rows in parts, in no order; ``columns`` (default: all) and rows whose cells equal those of ``where``.

        Each part is as `conform` makes it, so that no more than one need be in memory. A table that the store does not
        have yet has no rows.
        """

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """The rows of some datasets, as `conform` makes them."""

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """Insert rows, or replace those of the same key; keys are unique in ``rows``, columns may be absent."""

    def count(self, table: Table) -> int:
        """Number of rows."""

    def change(self) -> AbstractContextManager[None]:
        """What is put in the block is there as a whole or, where the block raises, not at all.

        As far as the store can: DynamoDB writes at once, and S3 an object at a time, so what is put must make sense in
        its order. Others who change the store wait meanwhile.
        """

    def close(self) -> None:
        """Give connections back; the store cannot be used after that."""


def conform(rows: pd.DataFrame, table: Table, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns of a table in their order and types: text ``str``, whole numbers ``Int64``, numbers float64.

    A column that is absent has missing cells; others are left out. Rows are numbered from 0.

    Raises
    ------
    InputError
        A cell is not of its column's kind; names table, column and value.
    """
    dtypes: dict[Kind, Any] = {"text": "str", "whole": "Int64", "number": "float64"}
    made = {}
    for name in columns or table.columns:
        kind = table.columns[name]
        cells = rows[name] if name in rows else pd.Series(None, index=rows.index, dtype=dtypes[kind])
        try:
            made[name] = cells.astype(dtypes[kind])
        except (ValueError, TypeError, OverflowError):
            raise InputError(_wrong_cell(cells, table.name, name, kind)) from None
    return pd.DataFrame(made, index=rows.index).reset_index(drop=True)


def _wrong_cell(cells: pd.Series, table: str, column: str, kind: Kind) -> str:
    numbers = pd.to_numeric(cells.astype("str"), errors="coerce")
    wrong = cells[cells.notna() & (numbers.isna() | (numbers.mod(1).ne(0) & (kind == "whole")))]
    shown = repr(str(wrong.iloc[0]))[:60] if len(wrong) else "of another kind"
    expected = "a whole number" if kind == "whole" else "a number"
    return f"table {table}, column {column}: a cell is {shown}; expected {expected}"
