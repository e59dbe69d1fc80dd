"""The tables of a store in a SQL database, and how they are made and brought up to date (Alembic)."""

from pathlib import Path

import sqlalchemy as sa

from calmlflow.errors import InputError
from calmlflow.jobs.stores.base import JOBS, TABLES, Table

HEAD = "0002"
"""The newest schema; the last file of ``migrations/versions``."""

VERSION_TABLE = "calcloud_schema"
"""Its own: MLflow, whose database it may be too, has another, and a table ``jobs``."""

METADATA = sa.MetaData()

_TYPES = {"text": sa.Text, "whole": sa.BigInteger, "number": sa.Double}
_KNOWN = ("0001", HEAD)


def _define(table: Table) -> sa.Table:
    columns: list[sa.Column] = [
        sa.Column(name, _TYPES[kind], primary_key=name in table.key) for name, kind in table.columns.items()
    ]
    return sa.Table(f"calcloud_{table.name}", METADATA, *columns)


SQL_TABLES = {table.name: _define(table) for table in TABLES}
"""Name of a table -> the same in SQL."""

sa.Index("calcloud_jobs_timestamp", SQL_TABLES[JOBS.name].c.timestamp)


def schema_version(connection: sa.Connection) -> str | None:
    """The schema that a database has; None where it has none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant


def check_version(version: str | None, name: str, create: bool) -> None:
    """Raise an InputError where a database has no schema that can be used or brought up to date."""
    if version is None and not create:
        raise InputError(f"{name} holds no job records; expected a store that `ingest` or `copy` made")
    if version is not None and version not in _KNOWN:
        raise InputError(
            f"{name} has schema {version[:20]!r}; expected {HEAD} at most: it was written by a newer calmlflow"
        )


def upgrade(connection: sa.Connection) -> None:
    """Make the tables, or bring them up to date, in the transaction of a connection."""
    # Alembic takes a quarter of a second to import, once in the life of a store.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
