"""What a store asks of DynamoDB: tables, items by many at once, and again for what is left undone."""

import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.stores.base import JOBS, Table
from calmlflow.jobs.stores.dynamodb_items import Item, key_types, table_suffix, write_key
from calmlflow.storage.s3 import s3_reason

THREADS = 8

TRIES = 10
"""How often in a row DynamoDB may leave all of a batch undone before the batch is given up."""

BACKOFF_S = 0.05
MAX_BACKOFF_S = 5.0

# DynamoDB's own limits.
_WRITTEN_AT_ONCE = 25
_READ_AT_ONCE = 100

_MISSING = "ResourceNotFoundException"
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
    _MISSING: "a table of that name in that region",
}


class Requests:
    """Requests to the tables of a store; each is a sentence where it fails.

    Parameters
    ----------
    name : str
        Of the store, for errors.
    table : str
        Of job records, in DynamoDB.
    client
        Of boto3.
    """

    def __init__(self, name: str, table: str, client: Any):
        self._name = name
        self._table = table
        self._client = client
        self._pool = ThreadPoolExecutor(THREADS, "dynamodb")

    def close(self) -> None:
        """Give connections and threads back."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def keys(self, table: Table) -> dict[str, str] | None:
        """The keys that a table has, with ``HASH`` or ``RANGE``; None where it is not there."""
        with telling(self._name, "opened"):
            try:
                found = self._client.describe_table(TableName=self._named(table))["Table"]
            except ClientError as error:
                if s3_reason(error) != _MISSING:
                    raise
                return None
        return {key["AttributeName"]: key["KeyType"] for key in found["KeySchema"]}

    def make(self, tables: Collection[Table]) -> None:
        """Make tables that are not there, billed on demand, and wait until they can be used."""
        with telling(self._name, "made"):
            list(self._pool.map(self._make, tables))

    def _make(self, table: Table) -> None:
        # Who may not make tables may use those that are there.
        if self.keys(table) is None:
            keys = key_types(table)
            try:
                self._client.create_table(
                    TableName=self._named(table),
                    AttributeDefinitions=[{"AttributeName": name, "AttributeType": type_} for name, type_, _ in keys],
                    KeySchema=[{"AttributeName": name, "KeyType": role} for name, _, role in keys],
                    BillingMode="PAY_PER_REQUEST",
                )
            except ClientError as error:
                # Another one was first.
                if s3_reason(error) != "ResourceInUseException":
                    raise
        waiter = self._client.get_waiter("table_exists")
        waiter.wait(TableName=self._named(table), WaiterConfig={"Delay": 1, "MaxAttempts": 120})

    # -- Reading ----------------------------------------------------------------------------------------------------

    def scan(self, table: Table, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Pages, each asked for when it is wanted."""
        following: dict[str, Any] = {}
        while True:
            with telling(self._name, "read"):
                try:
                    page = self._client.scan(TableName=self._named(table), ConsistentRead=True, **request, **following)
                except ClientError as error:
                    _let_missing(error, table)
                    return
            yield page
            if "LastEvaluatedKey" not in page:
                return
            following = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def get(self, table: Table, names: Collection[str]) -> list[Item]:
        """All items of some datasets."""
        keys: list[Item] = [{table.key[0]: {"S": write_key(name)}} for name in dict.fromkeys(names)]
        with telling(self._name, "read"):
            try:
                return self._by_name(table, keys) if len(table.key) > 1 else self._by_key(table, keys)
            except ClientError as error:
                _let_missing(error, table)
                return []

    def _by_name(self, table: Table, keys: list[Item]) -> list[Item]:
        def ask(key: Item) -> list[Item]:
            pages = self._client.get_paginator("query").paginate(
                TableName=self._named(table),
                ConsistentRead=True,
                KeyConditionExpression=f"{table.key[0]} = :name",
                ExpressionAttributeValues={":name": key[table.key[0]]},
            )
            return [item for page in pages for item in page["Items"]]

        return [item for items in self._pool.map(ask, keys) for item in items]

    def _by_key(self, table: Table, keys: list[Item]) -> list[Item]:
        found: list[Item] = []
        name = self._named(table)

        def ask(some: list[Item]) -> list[Item]:
            answer = self._client.batch_get_item(RequestItems={name: {"Keys": some, "ConsistentRead": True}})
            found.extend(answer["Responses"].get(name, []))
            left: list[Item] = answer.get("UnprocessedKeys", {}).get(name, {}).get("Keys", [])
            return left

        if left := self._all_of(ask, keys, _READ_AT_ONCE):
            raise CalmlflowError(
                f"{self._name} left {left} of {len(keys)} rows of {table.name} unread (throttled); expected "
                f"{_HINTS['ThrottlingException']}"
            )
        return found

    # -- Writing ----------------------------------------------------------------------------------------------------

    def put(self, table: Table, items: list[Item]) -> None:
        """Put items of distinct keys, in no order; a table other than that of the records is made if need be."""
        with telling(self._name, "written"):
            try:
                left = self._write(table, items)
            except ClientError as error:
                _let_missing(error, table)
                self.make([table])
                left = self._write(table, items)
        if left:
            raise CalmlflowError(
                f"{self._name} took {len(items) - left} of {len(items)} rows of {table.name} and left {left} undone "
                f"(throttled); expected {_HINTS['ThrottlingException']}"
            )

    def _write(self, table: Table, items: list[Item]) -> int:
        """Gives the number of items that are left."""
        name = self._named(table)

        def ask(some: list[Item]) -> list[Item]:
            answer = self._client.batch_write_item(RequestItems={name: some})
            left: list[Item] = answer.get("UnprocessedItems", {}).get(name, [])
            return left

        return self._all_of(ask, [{"PutRequest": {"Item": item}} for item in items], _WRITTEN_AT_ONCE)

    def _all_of(self, ask: Callable[[list[Any]], list[Any]], things: list[Any], at_once: int) -> int:
        """Ask for things in batches, several at once, and again for what is left; gives how many are left at last."""
        stopped = threading.Event()

        def insist(batch: list[Any]) -> int:
            tries = 0
            while batch and not stopped.is_set():
                left = ask(batch)
                tries = tries + 1 if len(left) == len(batch) else 1
                batch = left
                if batch and tries >= TRIES:
                    # The others would wait as long, one after the other, and find the same.
                    stopped.set()
                elif batch:
                    stopped.wait(random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2**tries)))  # noqa: S311 - no secret
            return len(batch)

        batches = [things[start : start + at_once] for start in range(0, len(things), at_once)]
        return sum(self._pool.map(insist, batches))

    def _named(self, table: Table) -> str:
        return self._table + table_suffix(table)


def _let_missing(error: ClientError, table: Table) -> None:
    """Raise an error again, unless it says that a table is not there that need not be."""
    if table is JOBS or s3_reason(error) != _MISSING:
        raise error


@contextmanager
def telling(name: str, act: str) -> Iterator[None]:
    """Turn what boto3 raises into a sentence without its text, which may quote an address."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("boto3", "botocore", "urllib3"):
            raise
        reason = s3_reason(error)
        hint = _HINTS.get(reason, "a table of DynamoDB that answers")
        if reason == "AccessDeniedException":
            hint = f"the permission dynamodb:{getattr(error, 'operation_name', '*')}"
        raise CalmlflowError(f"{name} cannot be {act} ({reason}); expected {hint}") from None
