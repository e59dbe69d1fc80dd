"""Tables of a store of job records, and the operations that every store has."""

# A store keeps six tables and no rules: `calmlflow.jobs.upsert` decides which record wins, what goes to the history
# and what to the quarantine, for all stores.

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER

Kind = Literal["text", "whole", "number"]

CHUNK_ROWS = 50_000
"""Rows that are read or written at once."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a store; a cell outside the key may be missing."""

    name: str
    # Columns that identify a row; ``ipst``, the dataset, is the first.
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
_ANSWER: dict[str, Kind] = {"bin_pred": "whole", "mem_pred": "number", "wall_pred": "number"}
TRAINING_COLUMNS: dict[str, Kind] = {
    **_ANSWER,
    "wc_mean": "number",
    "wc_std": "number",
    "wc_err": "number",
    "split": "text",
    "trained_at": "whole",
}
"""Columns that a training adds to a job record; ``trained_at`` is its time in epoch seconds."""

JOBS = Table("jobs", ("ipst",), {**_RECORD, **TRAINING_COLUMNS, "stored_at": "whole"})
"""Finished jobs, one record per dataset. ``stored_at``: epoch seconds at which the record was stored."""

HISTORY = Table("history", ("ipst", "digest"), {**JOBS.columns, "digest": "text", "replaced_at": "whole"})
"""Records that were replaced by another one of the same dataset, and records that arrived after a newer one."""

MOSAICS = Table(
    "mosaics",
    ("ipst",),
    {
        "ipst": "text",
        "timestamp": "whole",
        **dict.fromkeys(("wallclock", "memory", "disk"), "number"),
        "stored_at": "whole",
    },
)
"""Resources of HAP jobs: seconds, GB of memory, and GB of output where known."""

KILLED = Table(
    "killed_jobs",
    ("ipst", "timestamp"),
    {
        "ipst": "text",
        "timestamp": "whole",
        **dict.fromkeys(FEATURES, "whole"),
        "total_mb": "number",
        "kind": "text",
        **dict.fromkeys(("wallclock", "memory"), "number"),
        "reason": "text",
        "stored_at": "whole",
    },
)
"""Killed jobs: when and by what (``time``, ``memory``, ``machine``, ``failed``), the seconds and the GB that they had
reached where known, which are lower bounds of what they need, and ``reason``, the words that tell of it."""

QUARANTINE = Table(
    "quarantine",
    ("ipst", "digest"),
    {
        "ipst": "text",
        "digest": "text",
        "timestamp": "whole",
        **dict.fromkeys(("kind", "reason", "source", "record"), "text"),
        **dict.fromkeys(("first_seen", "last_seen", "tries", "resolved_at"), "whole"),
    },
)
"""Jobs that could not be stored. ``digest`` distinguishes rows of a table with the same name, and is empty for a
dataset in a bucket; ``timestamp`` is that of the newest file; ``kind`` groups reasons; ``record`` is the input as JSON;
``resolved_at`` is missing as long as the entry is open."""

PREDICTIONS = Table(
    "predictions",
    ("ipst", "timestamp"),
    {
        "ipst": "text",
        "timestamp": "number",
        **dict.fromkeys(FEATURES, "number"),
        **_ANSWER,
        "kill_time": "whole",
        **{f"prob_{rung.name}": "number" for rung in LADDER.rungs},
        "unseen": "whole",
        "version": "text",
        "source": "text",
    },
)
"""Predictions that were recorded when they were given."""

TABLES = (JOBS, HISTORY, MOSAICS, KILLED, QUARANTINE, PREDICTIONS)


class Source(Protocol):
    """Job records that can be read; see `calmlflow.jobs.stores.open.open_source`.

    Methods raise a CalmlflowError that names the source where it cannot be reached or read, and an InputError where it
    holds no job records.
    """

    # URI without password, for logs and errors.
    name: str

    def read(self, table: Table, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yield all rows in parts, in no order, so that no more than one part need be in memory.

        Parts have the types of `conform`, except job records of a file: they are unchecked. ``columns`` defaults to
        all. A table that is not there has no rows.
        """

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """The rows of some datasets, as `conform` makes them."""

    def count(self, table: Table) -> int:
        """Number of rows."""

    def close(self) -> None:
        """Release connections and temporary files."""


class Store(Source, Protocol):
    """A database of job records; see `calmlflow.jobs.stores.open.open_store`."""

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """Insert rows, or replace those of the same key; keys are unique, absent columns become missing cells."""

    def replace(self, table: Table, seen: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """Write rows of JOBS or MOSAICS where the store still holds what was seen.

        ``seen`` and ``rows`` have the same order. ``seen`` is as `get` gave it, with all cells missing where the store
        had no row; columns that are absent from ``rows`` keep what was seen. Returns which rows were written: the
        others were changed by another process since.
        """

    def change(self) -> AbstractContextManager[None]:
        """Make what the block writes one transaction that keeps other writers waiting.

        DynamoDB has none that is large enough: there every `put` is seen at once and `replace` detects other writers.
        """


def conform(rows: pd.DataFrame, table: Table, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The columns of a table in their order and types: text ``str``, whole numbers ``Int64``, numbers float64.

    An absent column has missing cells, unknown columns are left out, rows are numbered from 0.

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
        except (ValueError, TypeError, OverflowError) as error:
            numbers = pd.to_numeric(cells.astype("str"), errors="coerce")
            wrong = cells[cells.notna() & (numbers.isna() | (numbers.mod(1).ne(0) & (kind == "whole")))]
            shown = repr(str(wrong.iloc[0]))[:60] if len(wrong) else "of another kind"
            expected = "a whole number" if kind == "whole" else "a number"
            raise InputError(f"table {table.name}, column {name}: a cell is {shown}; expected {expected}") from error
    return pd.DataFrame(made, index=rows.index).reset_index(drop=True)


def in_order(there: pd.DataFrame, rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Rows with the keys of ``rows`` in their order; the other cells of a key that is not there are missing."""
    key = list(table.key)
    return conform(rows[key].merge(there, on=key, how="left"), table)
