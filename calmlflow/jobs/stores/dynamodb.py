"""A store in DynamoDB: calcloud's table of job records, and five tables beside it."""

# ``calcloud-model-sb`` holds the records by ``ipst``; ``calcloud-model-sb-history``, ``-quarantine``, ``-mosaics``,
# ``-killed_jobs`` and ``-predictions`` hold the rest. Address, region, credentials and retries are boto3's own
# variables. Permissions: DescribeTable, Scan and Query; to write BatchWriteItem and UpdateItem; to make tables
# CreateTable.

import os
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from decimal import Decimal
from functools import reduce
from operator import and_
from typing import Any
from urllib.parse import parse_qsl, urlencode

import boto3
import numpy as np
import pandas as pd
from boto3.dynamodb.conditions import Attr, ConditionBase, Key
from botocore.config import Config
from numpy.typing import NDArray

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import JOBS, TABLES, Kind, Table, conform
from calmlflow.storage.s3 import s3_reason

THREADS = 16
# Requests per answer, where ``AWS_MAX_ATTEMPTS`` does not say.
ATTEMPTS = 10
# DynamoDB's limits of the size of a number that is not 0; it keeps the first one and refuses the second.
MIN_NUMBER, MAX_NUMBER = 1e-130, 1e126

EXPECTED = "expected dynamodb://TABLE?region=REGION, with columns of job records to filter by (&instr=0)"

_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,243}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
# Texts that other programs write for a missing number.
_MISSING = {"", "nan", "none", "null"}
_MAX_SHOWN = 200
_NO_TABLE = "ResourceNotFoundException"
_HINTS = {
    "NoRegionError": "?region=... in its address, or AWS_DEFAULT_REGION",
    **dict.fromkeys(
        ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
        "AWS credentials as boto3 finds them (AWS_PROFILE, AWS_ACCESS_KEY_ID, a role)",
    ),
    **dict.fromkeys(
        ("UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException"),
        "AWS credentials that are valid",
    ),
    **dict.fromkeys(
        ("ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"),
        "a table with capacity to spare: the same again later, or a table billed on demand",
    ),
    "ValidationException": "values that DynamoDB keeps, with keys of 2,048 bytes at most",
    "ValueError": "AWS_* variables that fit together",
    _NO_TABLE: "a table of that name in that region",
}


def open_dynamodb(uri: str, create: bool = False) -> "DynamoStore":
    """Open ``dynamodb://TABLE?region=REGION``; with ``create``, make tables that are not there, billed on demand.

    Other words of the query are columns of job records: only records with these values are read (``&instr=0``).
    """
    table, region, filters = _read_uri(uri)
    if filters and create:
        raise InputError(f"the address of a table to write filters by {filters[0][0]}; expected no filter there")
    shown = urlencode([*([("region", region)] if region else []), *filters])
    name = f"dynamodb://{table}" + (f"?{shown}" if shown else "")
    retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = ATTEMPTS
    config = Config(connect_timeout=10, read_timeout=30, retries=retries, max_pool_connections=THREADS)
    with _translated(name, "opened", ValueError):
        resource = boto3.session.Session().resource("dynamodb", region_name=region, config=config)
    store = DynamoStore(name, table, filters, resource)
    try:
        store.prepare(create)
    except BaseException:
        store.close()
        raise
    return store


def _read_uri(uri: str) -> tuple[str, str | None, list[tuple[str, Any]]]:
    scheme, _, rest = uri.partition("://")
    table, _, query = rest.partition("?")
    if scheme.lower() != "dynamodb" or not _TABLE_NAME.fullmatch(table):
        # The text may hold a password.
        raise InputError(f"the address names no table of DynamoDB; {EXPECTED}")
    region, filters = None, []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "region":
            if not re.fullmatch("[a-z0-9-]{1,40}", value) or region not in (None, value):
                raise InputError(f"region {value[:40]!r} is not one of AWS's, or the second one; {EXPECTED}")
            region = value
        elif key not in JOBS.columns:
            raise InputError(f"{key[:40]!r} is no column of job records; {EXPECTED}")
        else:
            kind = JOBS.columns[key]
            wanted = value if kind == "text" else parse_number(value, kind)
            if wanted is None:
                raise InputError(f"{key}={value[:40]!r} is no {kind} number to filter by; {EXPECTED}")
            filters.append((key, wanted))
    return table, region, filters


class DynamoStore:
    """See `calmlflow.jobs.stores.base.Store`. Made by `open_dynamodb`; all reads are consistent."""

    def __init__(self, name: str, table: str, filters: list[tuple[str, Any]], resource: Any):
        self.name = name
        self._table = table
        self._filters = filters
        self._resource = resource
        # It takes and gives Python values too, and may be shared between threads, which a resource may not.
        self._client = resource.meta.client
        self._pool = ThreadPoolExecutor(THREADS, "dynamodb")

    def prepare(self, create: bool) -> None:
        """Check that the table of records has the right key; with ``create``, make the tables that are missing."""
        keys = self._keys(JOBS)
        if keys not in (None, {"ipst": "HASH"}):
            raise InputError(f"{self.name} holds no job records; expected a table with the key ipst and no other")
        if create:
            with _translated(self.name, "made"):
                list(self._pool.map(self._make, TABLES))
        elif keys is None:
            raise InputError(f"{self.name} does not exist; expected a table of DynamoDB with the key ipst")

    def read(self, table: Table, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """See `Source.read`: one part per page of 1 MB.

        A number of a job record that cannot be parsed stays text, so that the record is quarantined when it is checked;
        in other tables it is missing.
        """
        names = list(columns or table.columns)
        filters = self._filters if table is JOBS else []
        wanted = list(dict.fromkeys([*names, *(name for name, _ in filters)]))
        request: dict[str, Any] = {
            "ProjectionExpression": ", ".join(f"#c{at}" for at in range(len(wanted))),
            # Some columns are reserved words.
            "ExpressionAttributeNames": {f"#c{at}": name for at, name in enumerate(wanted)},
        }
        if filters:
            request["FilterExpression"] = reduce(and_, (_equals(name, value) for name, value in filters))
        for page in self._pages("scan", table, **request):
            part = _rows(page["Items"], table, wanted, keep_text=table is JOBS)
            for name, value in filters:
                part = part[part[name].eq(value).fillna(False).astype(bool)]
            if len(part):
                yield part[names].reset_index(drop=True)

    def count(self, table: Table) -> int:
        """See `Source.count`; of job records those that pass the filters of the URI."""
        if table is JOBS and self._filters:
            return sum(map(len, self.read(table, ["ipst"])))
        return sum(page["Count"] for page in self._pages("scan", table, Select="COUNT"))

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Store.get`; numbers that cannot be parsed are missing."""

        def ask(name: str) -> list[dict[str, Any]]:
            pages = self._pages("query", table, KeyConditionExpression=Key("ipst").eq(_key(name)))
            return [item for page in pages for item in page["Items"]]

        items = [item for found in self._pool.map(ask, dict.fromkeys(names)) for item in found]
        return _rows(items, table, list(table.columns))

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """See `Store.put`; a table other than that of the records is made if need be."""
        items = _items(conform(rows, table), table)
        with _translated(self.name, "written"):
            if table is not JOBS and items and self._keys(table) is None:
                self._make(table)
            with self._resource.Table(self._named(table)).batch_writer(overwrite_by_pkeys=list(table.key)) as writer:
                for item in items:
                    writer.put_item(Item=item)

    def replace(self, table: Table, seen: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Store.replace`: one conditional UpdateItem per row, so attributes that are no columns stay."""
        names = [name for name in table.columns if name in rows and name not in table.key]
        items = _items(conform(rows, table), table)
        before = _items(seen, table)
        conflict = self._client.exceptions.ConditionalCheckFailedException

        def write(item: dict[str, Any], was: dict[str, Any]) -> bool:
            marks = {name: f"#c{at}" for at, name in enumerate(names)}
            sets = [f"{mark} = :{mark[1:]}" for name, mark in marks.items() if name in item]
            removes = [mark for name, mark in marks.items() if name not in item]
            clauses = [f"{verb} {', '.join(parts)}" for verb, parts in (("SET", sets), ("REMOVE", removes)) if parts]
            values = {f":{mark[1:]}": item[name] for name, mark in marks.items() if name in item}
            try:
                self._client.update_item(
                    TableName=self._named(table),
                    Key={"ipst": item["ipst"]},
                    UpdateExpression=" ".join(clauses),
                    ExpressionAttributeNames={mark: name for name, mark in marks.items()},
                    ConditionExpression=_is_unchanged(was, table),
                    **({"ExpressionAttributeValues": values} if values else {}),
                )
            except conflict:
                return False
            return True

        with _translated(self.name, "written"):
            return np.array(list(self._pool.map(write, items, before)), dtype=bool)

    @contextmanager
    def change(self) -> Iterator[None]:
        """See `Store.change`: nothing to begin or to end."""
        # `calmlflow.jobs.upsert` writes history, records and quarantine in this order: the same again completes it.
        yield

    def close(self) -> None:
        """See `Source.close`."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    # -- Requests ---------------------------------------------------------------------------------------------------

    def _pages(self, operation: str, table: Table, **request: Any) -> Iterator[dict[str, Any]]:
        """Pages of a scan or a query, requested one by one; none where a table other than JOBS does not exist."""
        with _translated(self.name, "read"):
            try:
                pages = self._client.get_paginator(operation)
                yield from pages.paginate(TableName=self._named(table), ConsistentRead=True, **request)
            except self._client.exceptions.ResourceNotFoundException:
                if table is JOBS:
                    raise

    def _keys(self, table: Table) -> dict[str, str] | None:
        """Key -> ``HASH`` or ``RANGE`` of a table; None where it does not exist."""
        with _translated(self.name, "opened"):
            try:
                found = self._client.describe_table(TableName=self._named(table))["Table"]
            except self._client.exceptions.ResourceNotFoundException:
                return None
        return {key["AttributeName"]: key["KeyType"] for key in found["KeySchema"]}

    def _make(self, table: Table) -> None:
        """Make a table if it is not there, and wait until it can be used."""
        # A user without CreateTable may use tables that exist.
        if self._keys(table) is None:
            types = {name: "S" if table.columns[name] == "text" else "N" for name in table.key}
            roles = zip(table.key, ("HASH", "RANGE"), strict=False)
            # Another process may be first.
            with suppress(self._client.exceptions.ResourceInUseException):
                self._client.create_table(
                    TableName=self._named(table),
                    AttributeDefinitions=[
                        {"AttributeName": name, "AttributeType": kind} for name, kind in types.items()
                    ],
                    KeySchema=[{"AttributeName": name, "KeyType": role} for name, role in roles],
                    BillingMode="PAY_PER_REQUEST",
                )
        waiter = self._client.get_waiter("table_exists")
        waiter.wait(TableName=self._named(table), WaiterConfig={"Delay": 1, "MaxAttempts": 120})

    def _named(self, table: Table) -> str:
        return self._table if table is JOBS else f"{self._table}-{table.name}"


@contextmanager
def _translated(name: str, act: str, *more: type[Exception]) -> Iterator[None]:
    """Translate exceptions of boto3 into a CalmlflowError without their text, which may quote an address."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("boto3", "botocore", "urllib3") and not isinstance(
            error, more
        ):
            raise
        reason = s3_reason(error)
        hint = _HINTS.get(reason, "a table of DynamoDB that answers")
        if reason == "AccessDeniedException":
            hint = f"the permission dynamodb:{getattr(error, 'operation_name', '*')}"
        raise CalmlflowError(f"{name} cannot be {act} ({reason}); expected {hint}") from error


# -- Conditions -----------------------------------------------------------------------------------------------------


def _equals(name: str, value: Any) -> ConditionBase:
    """A filter; numbers that others wrote as text pass, and are compared after they are parsed."""
    if isinstance(value, str):
        return Attr(name).eq(_key(value) if name in JOBS.key else value)
    return Attr(name).eq(Decimal(repr(value))) | Attr(name).attribute_type("S")


def _is_unchanged(was: dict[str, Any], table: Table) -> ConditionBase:
    """The condition that an item still has the times that were seen; those that others wrote as text do not count."""
    tests = []
    for name in ("timestamp", "stored_at", "trained_at"):
        if name in was:
            tests.append(Attr(name).eq(was[name]) | Attr(name).attribute_type("S"))
        elif name in table.columns and (name != "timestamp" or len(was) == 1):
            tests.append(~Attr(name).attribute_type("N"))
    return reduce(and_, tests)


# -- Items ----------------------------------------------------------------------------------------------------------


def parse_number(text: str, kind: Kind) -> int | float | None:
    """A number in plain ASCII, or None where the text is no number of that kind."""
    if not _NUMBER.fullmatch(text):
        return None
    if kind == "number":
        return float(text)
    number = Decimal(text)
    return int(number) if abs(number) < 2**63 and number == number.to_integral_value() else None


def _rows(items: Sequence[dict[str, Any]], table: Table, names: Sequence[str], keep_text: bool = False) -> pd.DataFrame:
    """Columns of items, as `conform` makes them; ``keep_text``: a number that cannot be parsed stays text."""
    columns: dict[str, Any] = {}
    for name in names:
        kind = table.columns[name]
        cells = [_cell(item.get(name), kind) for item in items]
        if name in table.key and kind == "text":
            cells = [cell if cell.strip("-") else cell[:-1] for cell in cells]
        is_odd = kind != "text" and any(isinstance(cell, str) for cell in cells)
        if is_odd and not keep_text:
            cells = [None if isinstance(cell, str) else cell for cell in cells]
        columns[name] = pd.Series(cells, dtype=object)
        if not (is_odd and keep_text):
            columns[name] = conform(columns[name].to_frame(name), table, [name])[name]
    return pd.DataFrame(columns, index=range(len(items)))


def _cell(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind == "text":
        return value if isinstance(value, str) else str(value)[:_MAX_SHOWN]
    text = str(value).strip() if isinstance(value, str | Decimal) else repr(value)[:_MAX_SHOWN]
    number = parse_number(text, kind)
    return text if number is None and text.lower() not in _MISSING else number


def _items(rows: pd.DataFrame, table: Table) -> list[dict[str, Any]]:
    """Rows as items: missing cells are left out, numbers keep every bit but the sign of a zero."""
    items: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for name, kind in table.columns.items():
        there = rows[name].dropna()
        if kind == "text":
            cells: list[Any] = list(map(_key, there)) if name in table.key else there.tolist()
        else:
            sizes = there.abs()
            refused = there[~(sizes.between(MIN_NUMBER, MAX_NUMBER, "left") | sizes.eq(0))]
            if len(refused):
                raise InputError(
                    f"table {table.name}, column {name}: DynamoDB keeps no {refused.iloc[0]!s}; expected 0, or a "
                    f"number between {MIN_NUMBER:g} and {MAX_NUMBER:g} in size"
                )
            cells = [Decimal(repr(number)) for number in there.tolist()]
        for at, cell in zip(there.index.tolist(), cells, strict=True):
            items[at][name] = cell
    return items


def _key(text: str) -> str:
    """A key as it is written: DynamoDB has no empty ones, so texts of hyphens alone get one more."""
    return text if text.strip("-") else text + "-"
