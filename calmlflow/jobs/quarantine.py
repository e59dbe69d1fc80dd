"""Open, close, list, dismiss and merge the quarantine entries of a store."""

import hashlib
import json
import math
import time
from typing import Any

import pandas as pd

from calmlflow.jobs.records import MAX_TIMESTAMP, record_cells
from calmlflow.jobs.stores.base import JOBS, MOSAICS, QUARANTINE, Store, conform, in_order

IMPOSSIBLE = "no valid record"
"""Kind of an entry whose record breaks the schema or cannot be true."""

_MAX_RECORD = 10_000
# As long as a key of S3 may be.
_MAX_NAME = 1024


def as_entries(refused: pd.DataFrame, source: str, now: int) -> pd.DataFrame:
    """Refused rows as rows of the quarantine, each key once."""
    rows = conform(refused.assign(source=source, first_seen=now, last_seen=now, tries=1), QUARANTINE)
    for name, kind in QUARANTINE.columns.items():
        if kind == "text":
            # Keys of S3 may hold NUL, texts of databases may not.
            rows[name] = rows[name].str.replace("\0", "\\0", regex=False)
    rows["ipst"] = rows["ipst"].fillna("").str.slice(0, _MAX_NAME)
    rows["digest"] = rows["digest"].fillna("")
    return rows.drop_duplicates(list(QUARANTINE.key), keep="last").reset_index(drop=True)


def open_entries(store: Store, rows: pd.DataFrame) -> None:
    """Open entries, or count another try on those that are open already."""
    if rows.empty:
        return
    there = store.get(QUARANTINE, rows["ipst"].tolist())
    known = in_order(there[there["resolved_at"].isna()], rows, QUARANTINE)
    first_seen = known["first_seen"].fillna(rows["first_seen"])
    store.put(QUARANTINE, rows.assign(first_seen=first_seen, tries=known["tries"].fillna(0) + 1))


def close_entries(store: Store, stored: pd.DataFrame, source: str, now: int, refused: pd.DataFrame) -> None:
    """Close the entries of datasets that were stored, except those that the same batch opens.

    An entry stays open if its job ended after the stored one and came from elsewhere, or if it was seen after ``now``.
    """
    entries = store.get(QUARANTINE, stored["ipst"].tolist())
    entries = entries[entries["resolved_at"].isna()].reset_index(drop=True)
    times = entries["ipst"].map(stored.set_index("ipst")["timestamp"])
    is_settled = (entries["timestamp"] <= times).fillna(True).astype(bool)
    is_settled |= entries["digest"].eq("") & entries["source"].eq(source)
    is_settled &= (entries["last_seen"] <= now).fillna(True).astype(bool)
    key = list(QUARANTINE.key)
    is_settled &= ~pd.MultiIndex.from_frame(entries[key]).isin(pd.MultiIndex.from_frame(refused[key]))
    if is_settled.any():
        store.put(QUARANTINE, entries[is_settled].assign(resolved_at=now))


def list_open(store: Store, kind: str = "") -> list[dict[str, Any]]:
    """Open entries, the newest first; with ``kind``, those of this kind."""
    parts = [part[part["resolved_at"].isna()] for part in store.read(QUARANTINE)]
    entries = pd.concat(parts) if parts else conform(pd.DataFrame(), QUARANTINE)
    entries = entries[entries["kind"].eq(kind)] if kind else entries
    entries = entries.sort_values(["last_seen", "ipst"], ascending=[False, True]).drop(columns="resolved_at")
    plain = entries.astype(object).where(entries.notna(), None)
    return [{str(name): cell for name, cell in row.items()} for row in plain.to_dict("records")]


def dismiss_open(store: Store, kind: str = "", now: float | None = None) -> list[dict[str, Any]]:
    """Close the entries that `list_open` gives, and return them."""
    with store.change():
        entries = list_open(store, kind)
        rows = pd.DataFrame(entries, columns=[name for name in QUARANTINE.columns if name != "resolved_at"])
        store.put(QUARANTINE, conform(rows.assign(resolved_at=int(time.time() if now is None else now)), QUARANTINE))
    return entries


def merge_entries(store: Store, rows: pd.DataFrame) -> None:
    """Add entries of another store; of an entry that both have, the one that was changed last is kept.

    An open entry of a job that is older than the record here is closed.
    """
    names = rows["ipst"].tolist()
    there = in_order(store.get(QUARANTINE, names), rows, QUARANTINE)
    rows = rows[(_changed(rows) > _changed(there)).fillna(True).astype(bool)].reset_index(drop=True)
    stored = pd.concat([store.get(table, names)[["ipst", "timestamp", "stored_at"]] for table in (JOBS, MOSAICS)])
    stored = rows[["ipst"]].merge(stored, on="ipst", how="left")
    is_settled = rows["resolved_at"].isna() & (rows["timestamp"] < stored["timestamp"]).fillna(False)
    store.put(QUARANTINE, rows.assign(resolved_at=rows["resolved_at"].mask(is_settled, stored["stored_at"])))


def _changed(entries: pd.DataFrame) -> pd.Series:
    """When entries were last changed."""
    return entries[["last_seen", "resolved_at"]].max(axis=1)


def as_refused(rows: pd.DataFrame, alone: bool) -> pd.DataFrame:
    """Invalid records as refused rows; without ``alone``, a digest distinguishes rows with the same name."""
    told = rows.drop(columns="reason").astype(object)
    # JSON has no NaN and no infinity.
    told = told.where(told.notna(), None).map(
        lambda cell: str(cell) if isinstance(cell, float) and math.isinf(cell) else cell
    )
    records = [json.dumps(row, default=str) for row in told.to_dict("records")]
    cells = record_cells(rows)
    return pd.DataFrame(
        {
            "ipst": cells["ipst"],
            "digest": "" if alone else [digest_of(record) for record in records],
            # An invalid time is in the record.
            "timestamp": cells["timestamp"].where(cells["timestamp"].between(0, MAX_TIMESTAMP)).round(),
            "kind": IMPOSSIBLE,
            "reason": rows["reason"].to_numpy(),
            "record": [record[:_MAX_RECORD] for record in records],
        }
    )


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
