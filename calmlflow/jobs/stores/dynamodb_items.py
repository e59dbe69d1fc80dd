"""Rows of a store's tables as items of DynamoDB, and back.

Numbers keep every bit: a float is written with as many digits as tell it from its neighbours (17 at most, DynamoDB
keeps 38). Of a zero the sign is lost.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.jobs.stores.base import JOBS, Kind, Table, conform

Item = dict[str, dict[str, Any]]
"""Attribute -> type (``S`` for text, ``N`` for numbers, ...) -> value."""

MIN_NUMBER = 1e-130
MAX_NUMBER = 1e126
"""DynamoDB's own limits of the size of a number that is not 0; the first one is kept, the second one is not."""

MAX_PARTITION_KEY_BYTES = 2048
MAX_SORT_KEY_BYTES = 1024
"""DynamoDB's own limits of a key that is text."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# How others write that a number is missing, where they write text.
_MISSING = {"", "nan", "none", "null"}
_MAX_SHOWN = 200


def parse_number(text: str, kind: Kind) -> int | float | None:
    """A number as it is written in plain ASCII, or None where it is none of that kind."""
    if not _NUMBER.fullmatch(text):
        return None
    if kind == "number":
        return float(text)
    number = Decimal(text)
    return int(number) if abs(number) < 2**63 and number == number.to_integral_value() else None


# -- From items -----------------------------------------------------------------------------------------------------


def read_items(items: Sequence[Item], table: Table, names: Sequence[str], raw: bool = False) -> pd.DataFrame:
    """Columns of some items, as `calmlflow.jobs.stores.base.conform` makes them.

    Parameters
    ----------
    items : sequence of Item
        With any attributes; numbers may be text.
    table : Table
    names : sequence of str
        Columns.
    raw : bool
        A number that cannot be read is its text, for `calmlflow.jobs.records` to tell; else it is missing.
    """
    columns: dict[str, Any] = {}
    for name in names:
        kind = table.columns[name]
        cells = [_read_cell(item.get(name), kind) for item in items]
        if name in table.key and kind == "text":
            cells = [_read_key(cell) for cell in cells]
        # In a column of numbers, what is text could not be read.
        is_sound = kind == "text" or not any(isinstance(cell, str) for cell in cells)
        if not is_sound and not raw:
            cells = [None if isinstance(cell, str) else cell for cell in cells]
        columns[name] = pd.Series(cells, dtype=object)
        if is_sound or not raw:
            columns[name] = conform(columns[name].to_frame(name), table, [name])[name]
    return pd.DataFrame(columns, index=range(len(items)))


def _read_cell(attribute: Mapping[str, Any] | None, kind: Kind) -> Any:
    """The value of an attribute; text where a number cannot be read."""
    if attribute is None or "NULL" in attribute:
        return None
    ((type_, value),) = attribute.items()
    if kind == "text":
        return value if type_ == "S" else str(value)[:_MAX_SHOWN]
    # Also where it is True or a list: its text is no number.
    text = str(value).strip() if type_ in ("S", "N") else repr(value)[:_MAX_SHOWN]
    number = parse_number(text, kind)
    return text if number is None and text.lower() not in _MISSING else number


# -- To items -------------------------------------------------------------------------------------------------------


def write_items(rows: pd.DataFrame, table: Table) -> list[Item]:
    """Rows as items; a missing cell is no attribute.

    Raises
    ------
    InputError
        A number is beyond what DynamoDB keeps, or a key is.
    """
    rows = conform(rows, table)
    items: list[Item] = [{} for _ in range(len(rows))]
    for name, kind in table.columns.items():
        there = rows[name].dropna()
        if kind == "text":
            texts = list(map(write_key, there)) if name in table.key else there.tolist()
            _check_keys(texts, table, name)
            attributes = [{"S": text} for text in texts]
        else:
            _check_range(there, table, name)
            attributes = [{"N": repr(number)} for number in there.tolist()]
        for number, attribute in zip(there.index.tolist(), attributes, strict=True):
            items[number][name] = attribute
    return items


def _check_range(numbers: pd.Series, table: Table, name: str) -> None:
    sizes = numbers.abs()
    wrong = numbers[~(sizes.between(MIN_NUMBER, MAX_NUMBER, "left") | sizes.eq(0))]
    if len(wrong):
        raise InputError(
            f"table {table.name}, column {name}: DynamoDB keeps no {wrong.iloc[0]!s}; expected 0, or a number between "
            f"{MIN_NUMBER:g} and {MAX_NUMBER:g} in size"
        )


def _check_keys(texts: Sequence[str], table: Table, name: str) -> None:
    if name not in table.key:
        return
    limit = MAX_PARTITION_KEY_BYTES if name == table.key[0] else MAX_SORT_KEY_BYTES
    wrong = [text for text in texts if len(text.encode(errors="surrogatepass")) > limit]
    if wrong:
        raise InputError(
            f"table {table.name}, column {name}: {wrong[0][:60]!r}... is too long for a key of DynamoDB; expected "
            f"{limit} bytes at most"
        )


# A key of DynamoDB cannot be empty, and ours can: texts of hyphens alone, and of nothing, are written with one more.


def write_key(text: str) -> str:
    """A key as it is written."""
    return text if text.strip("-") else text + "-"


def _read_key(text: str) -> str:
    return text if text.strip("-") else text[:-1]


# -- Keys of tables -------------------------------------------------------------------------------------------------


def key_types(table: Table) -> list[tuple[str, str, str]]:
    """Name, type (``S`` or ``N``) and role (``HASH`` or ``RANGE``) of each key of a table in DynamoDB."""
    roles = ("HASH", "RANGE")
    return [
        (name, "S" if table.columns[name] == "text" else "N", role)
        for name, role in zip(table.key, roles, strict=False)
    ]


def table_suffix(table: Table) -> str:
    """What the name of a table ends with, after that of the records' own."""
    return "" if table is JOBS else f"-{table.name}"
