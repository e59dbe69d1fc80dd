"""A store in DynamoDB: the table that calcloud has, and four beside it.

``calcloud-model-sb`` holds the records, by ``ipst`` alone; ``calcloud-model-sb-history``, ``-quarantine``, ``-mosaics``
and ``-predictions`` hold the rest. Address, region, credentials and retries are boto3's own variables. Permissions:
DescribeTable, Scan, Query, BatchGetItem; to write BatchWriteItem; to make tables CreateTable.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode

import boto3
import pandas as pd
from botocore.config import Config

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import CHUNK_ROWS, JOBS, TABLES, Table
from calmlflow.jobs.stores.dynamodb_items import parse_number, read_items, table_suffix, write_items, write_key
from calmlflow.jobs.stores.dynamodb_requests import THREADS, TRIES, Requests, telling

EXPECTED = "expected dynamodb://TABLE?region=REGION, with columns of job records to filter by (&instr=0)"

_TABLE_NAME = re.compile(rf"[A-Za-z0-9_.-]{{3,{255 - max(len(table_suffix(table)) for table in TABLES)}}}")


def open_dynamodb(uri: str, create: bool = False) -> "DynamoStore":
    """Open a store in DynamoDB.

    Parameters
    ----------
    uri : str
        ``dynamodb://TABLE?region=REGION``. Any other word of the query is a column of job records, and leaves only
        those records to be read and counted whose cell is equal to its value: ``&instr=0``.
    create : bool
        Make tables that are not there, billed on demand. Many may do so at once.

    Raises
    ------
    InputError
        The URI is none, there is no such table, or its key is not ``ipst``.
    CalmlflowError
        It cannot be reached or made.
    """
    table, region, filters = _read_uri(uri)
    if filters and create:
        raise InputError(f"the address of a table to write filters by {filters[0][0]}; expected no filter there")
    shown = urlencode([*([("region", region)] if region else []), *filters])
    name = f"dynamodb://{table}" + (f"?{shown}" if shown else "")
    store = DynamoStore(name, filters, Requests(name, table, _new_client(region, name)))
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
        # It may be a password that somebody wrote there.
        raise InputError(f"the address names no table of DynamoDB; {EXPECTED}")
    region, filters = None, []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "region":
            if not re.fullmatch("[a-z0-9-]{1,40}", value) or region not in (None, value):
                raise InputError(f"region {value[:40]!r} is none of AWS's, or one of two; {EXPECTED}")
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


def _new_client(region: str | None, name: str) -> Any:
    retries: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = TRIES
    config = Config(connect_timeout=10, read_timeout=30, retries=retries, max_pool_connections=THREADS)
    try:
        with telling(name, "opened"):
            return boto3.session.Session().client("dynamodb", region_name=region, config=config)
    except ValueError as error:
        # Its text may quote an address with a password in it.
        raise CalmlflowError(
            f"{name} cannot be opened ({type(error).__name__}); expected AWS_* variables that fit together"
        ) from None


class DynamoStore:
    """See `calmlflow.jobs.stores.base.Store`. Made by `open_dynamodb`.

    Everything is read consistently: what was put is read, also by others. An item of the records' table may have
    attributes that are no columns; they stay when the item is replaced.
    """

    def __init__(self, name: str, filters: list[tuple[str, Any]], requests: Requests):
        self.name = name
        self._filters = filters
        self._requests = requests

    def prepare(self, create: bool) -> None:
        """See that the table of records is there, and has the key that it should have; make what may be made."""
        keys = self._requests.keys(JOBS)
        if keys not in (None, {"ipst": "HASH"}):
            raise InputError(f"{self.name} holds no job records; expected a table with the key ipst and no other")
        if create:
            self._requests.make(TABLES)
        elif keys is None:
            raise InputError(f"{self.name} does not exist; expected a table of DynamoDB with the key ipst")

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """See `Store.read`: one scan, a part for every page (1 MB), and the next page is asked for
        when the next part is.

        A number of a job record that cannot be read is its text, so that the record is quarantined when it is checked;
        those of other tables are missing.
        """
        names = list(columns or table.columns)
        wanted = [*(self._filters if table is JOBS else []), *(where or {}).items()]
        asked = list(dict.fromkeys([*names, *(name for name, _ in wanted)]))
        for page in self._requests.scan(table, _expressions(table, asked, wanted)):
            part = read_items(page["Items"], table, asked, raw=table is JOBS)
            for name, value in wanted:
                part = part[part[name].eq(value).fillna(False).astype(bool)]
            if len(part):
                yield part[names].reset_index(drop=True)

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Store.get`; numbers that cannot be read are missing."""
        return read_items(self._requests.get(table, names), table, list(table.columns))

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """See `Store.put`: in no order, many at once; what was put stays where the rest fails."""
        rows = rows.drop_duplicates(list(table.key), keep="last")
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows.iloc[start : start + CHUNK_ROWS]
            items = write_items(part, table)
            if table is JOBS:
                there = {item["ipst"]["S"]: item for item in self._requests.get(table, part["ipst"])}
                others = [there.get(item["ipst"]["S"], {}) for item in items]
                items = [
                    {name: value for name, value in other.items() if name not in table.columns} | item
                    for other, item in zip(others, items, strict=True)
                ]
            self._requests.put(table, items)

    def count(self, table: Table) -> int:
        """See `Store.count`; of job records those that pass the filters of the URI."""
        if table is JOBS and self._filters:
            return sum(map(len, self.read(table, ["ipst"])))
        return sum(page["Count"] for page in self._requests.scan(table, {"Select": "COUNT"}))

    @contextmanager
    def change(self) -> Iterator[None]:
        """Nothing to open or to end: each `put` is there at once, also where the block raises, and nobody waits.

        What `calmlflow.jobs.upsert` puts makes sense in its order (history before record before quarantine), and the
        same again completes it. Two who bring different records of one dataset at the same moment may each find the
        other's not there yet: then the last one to write stays.
        """
        yield

    def close(self) -> None:
        """See `Store.close`."""
        self._requests.close()


def _expressions(table: Table, names: Sequence[str], wanted: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What a scan is asked for: some columns, of items whose cells may be those that are wanted.

    Numbers that somebody wrote as text come in any case: only who reads them knows what they are equal to.
    """
    marks = {name: f"#n{number}" for number, name in enumerate(names)}
    request: dict[str, Any] = {
        "ProjectionExpression": ", ".join(marks.values()),
        # Some names are words of DynamoDB's own.
        "ExpressionAttributeNames": {mark: name for name, mark in marks.items()},
    }
    tests, values = [], {}
    for number, (name, value) in enumerate(wanted):
        test = f"{marks[name]} = :v{number}"
        if table.columns[name] == "text":
            values[f":v{number}"] = {"S": write_key(str(value)) if name in table.key else str(value)}
        else:
            values |= {f":v{number}": {"N": str(value)}, ":text": {"S": "S"}}
            test = f"({test} OR attribute_type({marks[name]}, :text))"
        tests.append(test)
    if tests:
        request |= {"FilterExpression": " AND ".join(tests), "ExpressionAttributeValues": values}
    return request
