"""Stores of job records: one in SQLite, and addresses of each kind of database."""

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest

from calmlflow.jobs.stores.base import Store
from calmlflow.jobs.stores.sql import open_sql


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    with closing(open_sql(f"sqlite:///{tmp_path}/jobs.db", create=True)) as opened:
        yield opened


@pytest.fixture
def place(request, tmp_path):
    """Gives the address of a new database of a kind: ``sqlite``, ``postgres`` or ``dynamodb``."""
    return lambda kind: (
        f"sqlite:///{tmp_path}/folder/{kind}.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_uri")
    )


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request, place) -> str:
    """The address of a new SQL database."""
    return place(request.param)


@pytest.fixture
def bucket(s3) -> str:
    """A new bucket."""
    name = f"jobs-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name
