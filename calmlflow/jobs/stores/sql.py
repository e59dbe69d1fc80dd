"""A store in a SQL database: a SQLite file, or PostgreSQL for a team."""

import sqlite3
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from pyarrow import csv
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import CHUNK_ROWS, Table, conform
from calmlflow.jobs.stores.sql_errors import telling
from calmlflow.jobs.stores.sql_schema import HEAD, SQL_TABLES, check_version, schema_version, upgrade

BUSY_S = 30
"""How long one process waits for another one's change of a SQLite file."""

CONNECT_S = 10
"""How long PostgreSQL may take to answer, where the URI does not say."""

_NAMES_AT_ONCE = 5_000
_COPY_BYTES = 8 << 20
_PARSED_AT_ONCE_BYTES = 1 << 20
# Of no meaning, and the same for all who change a store.
_LOCK = 7_244_901_230

_ARROW = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}
# Missing cells do not make floats of whole numbers.
_DTYPES = {pa.string(): pd.StringDtype(na_value=np.nan), pa.int64(): pd.Int64Dtype()}


def open_sql(uri: str, create: bool = False) -> "SqlStore":
    """Open a store in a SQL database.

    Parameters
    ----------
    uri : str
        ``sqlite:///jobs.db`` (four slashes for an absolute path), ``postgresql://user@host/database`` or
        ``postgresql+psycopg://...``; libpq's own variables and files (``PGPASSWORD``, ``.pgpass``) count.
    create : bool
        Make file and tables where there are none. An older schema is always brought up to date.

    Raises
    ------
    InputError
        The URI names no such database, or it holds no store, or one of a newer calmlflow.
    CalmlflowError
        The database cannot be reached or written.
    """
    url = _read_url(uri)
    # A query may hold passwords too.
    shown = {key: url.query[key] for key in ("host", "port") if key in url.query}
    name = str(url.set(password=None, query=shown).render_as_string())
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if not create and not path.is_file():
            raise InputError(f"{name} does not exist; expected a SQLite file of job records")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CalmlflowError(f"{name} cannot be made ({error.strerror}); expected a folder of yours") from None
    store = SqlStore(name, _engine(url))
    try:
        store.prepare(create)
    except BaseException:
        store.close()
        raise
    return store


def _read_url(uri: str) -> URL:
    expected = "expected sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    scheme, _, rest = uri.partition("://")
    scheme = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}.get(scheme.lower(), scheme.lower())
    if scheme not in ("sqlite", "postgresql+psycopg"):
        raise InputError(f"the address of a database begins with {scheme[:40]!r}; {expected}")
    try:
        url = make_url(f"{scheme}://{rest}")
    except (sa.exc.ArgumentError, ValueError):
        raise InputError(f"the address of a {scheme} database cannot be read; {expected}") from None
    if scheme == "sqlite" and url.database in (None, "", ":memory:"):
        raise InputError(f"a SQLite database in memory holds nothing; {expected}")
    return url


def _engine(url: URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        patience = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
        # Arrow reads UTF-8, whatever the database is kept in.
        arguments = {**patience, "client_encoding": "utf8"}
        # A process of Lambda's sleeps between its calls, and may find its connection gone.
        return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def _own_transactions(connection: sqlite3.Connection, record: object) -> None:
        # Python's driver would begin transactions when it thinks fit, and none for changes of the schema.
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # One that reads first and writes later could find that another has written in between.
        changes = connection.get_execution_options().get("changes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if changes else "BEGIN")

    return engine


class SqlStore:
    """See `calmlflow.jobs.stores.base.Store`. Made by `open_sql`; for one thread at a time."""

    def __init__(self, name: str, engine: sa.Engine):
        self.name = name
        self._engine = engine
        self._is_postgres = engine.dialect.name == "postgresql"
        self._changing: sa.Connection | None = None

    def prepare(self, create: bool) -> None:
        """Make the tables, or bring them up to date, if need be."""
        with self._connected("opened") as connection:
            version = schema_version(connection)
            check_version(version, self.name, create)
        if version == HEAD:
            return
        if not self._is_postgres:
            with telling(self.name, "opened"), self._engine.connect() as connection:
                # Who reads does not keep others from writing. Cannot be set within a transaction, and lasts.
                connection.connection.cursor().execute("PRAGMA journal_mode=WAL")
        with self.change(), telling(self.name, "brought up to date"):
            assert self._changing is not None  # noqa: S101 - `change` has set it
            # Another one may have been first.
            if schema_version(self._changing) != HEAD:
                upgrade(self._changing)

    def read(
        self, table: Table, columns: Sequence[str] | None = None, where: Mapping[str, object] | None = None
    ) -> Iterator[pd.DataFrame]:
        """See `Store.read`; one statement, so a later change is not seen."""
        names = list(columns or table.columns)
        sql = SQL_TABLES[table.name]
        mark = "%s" if self._is_postgres else "?"
        listed = ", ".join(f'"{name}"' for name in names)
        text = f"SELECT {listed} FROM {sql.name}"  # noqa: S608 - names are ours
        # SQLite would take a number of numpy for bytes.
        given = {name: cell.item() if isinstance(cell, np.generic) else cell for name, cell in (where or {}).items()}
        if given:
            text += " WHERE " + " AND ".join(f'"{sql.c[name].name}" = {mark}' for name in given)
        with self._connected("read") as connection:
            driver = connection.connection.driver_connection
            parts = (_copied if self._is_postgres else _fetched)(driver, text, tuple(given.values()), table, names)
            # Closed before the connection is, which a COPY keeps to itself.
            with closing(parts):
                # So in a change all is read at once: what is done with the first part may need the one connection, and
                # must not alter what comes after it. 200 MB a million jobs.
                for part in parts if self._changing is None else list(parts):
                    yield conform(part.to_pandas(types_mapper=_DTYPES.get), table, names)

    def get(self, table: Table, names: Collection[str]) -> pd.DataFrame:
        """See `Store.get`."""
        wanted = list(names)
        sql = SQL_TABLES[table.name]
        found: list[Any] = []
        with self._connected("read") as connection:
            for start in range(0, len(wanted), _NAMES_AT_ONCE):
                some = wanted[start : start + _NAMES_AT_ONCE]
                # Plain tuples: pandas takes a row with a column ``dtype`` for an array.
                found += map(tuple, connection.execute(sa.select(sql).where(sql.c.ipst.in_(some))))
        return conform(pd.DataFrame(found, columns=list(table.columns), dtype=object), table)

    def put(self, table: Table, rows: pd.DataFrame) -> None:
        """See `Store.put`."""
        if self._changing is None:
            with self.change():
                self.put(table, rows)
            return
        write = _put_postgres if self._is_postgres else _put_sqlite
        with telling(self.name, "written"):
            for start in range(0, len(rows), CHUNK_ROWS):
                part = conform(rows.iloc[start : start + CHUNK_ROWS], table).astype(object)
                write(self._changing, table, part.where(part.notna(), None).itertuples(index=False, name=None))

    def count(self, table: Table) -> int:
        """See `Store.count`."""
        with self._connected("read") as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(SQL_TABLES[table.name])) or 0

    @contextmanager
    def change(self) -> Iterator[None]:
        """See `Store.change`: one transaction; others who change the store wait for its end."""
        with (
            telling(self.name, "written"),
            self._engine.connect().execution_options(changes=True) as connection,
            connection.begin(),
        ):
            if self._is_postgres:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_S}s'")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            self._changing = connection
            try:
                yield
            finally:
                self._changing = None

    def close(self) -> None:
        """See `Store.close`."""
        self._engine.dispose()

    @contextmanager
    def _connected(self, act: str) -> Iterator[sa.Connection]:
        """The connection of the change that is going on, or one of its own."""
        with telling(self.name, act):
            if self._changing is not None:
                yield self._changing
            else:
                with self._engine.connect() as connection:
                    yield connection


# -- SQLite ---------------------------------------------------------------------------------------------------------


def _fetched(
    driver: Any, text: str, given: tuple[object, ...], table: Table, names: Sequence[str]
) -> Generator[pa.Table, None, None]:
    types = [_ARROW[table.columns[name]] for name in names]
    cursor = driver.cursor()
    try:
        cursor.execute(text, given)
        while rows := cursor.fetchmany(CHUNK_ROWS):
            yield pa.table(list(map(pa.array, zip(*rows, strict=True), types)), names=list(names))
    finally:
        cursor.close()


def _put_sqlite(connection: sa.Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    insert = sqlite.insert(SQL_TABLES[table.name])
    rest = {name: insert.excluded[name] for name in table.columns if name not in table.key}
    statement = insert.on_conflict_do_update(index_elements=list(table.key), set_=rest)
    compiled = statement.compile(dialect=sqlite.dialect(), column_keys=list(table.columns))
    cursor = connection.connection.cursor()
    cursor.executemany(str(compiled), list(rows))
    cursor.close()


# -- PostgreSQL -----------------------------------------------------------------------------------------------------


def _copied(
    driver: Any, text: str, given: tuple[object, ...], table: Table, names: Sequence[str]
) -> Generator[pa.Table, None, None]:
    """Rows by COPY, which takes a fifth of the time of a cursor, parsed by Arrow."""
    with driver.cursor() as cursor, cursor.copy(f"COPY ({text}) TO STDOUT (FORMAT csv)", given) as rows:
        block, longest = bytearray(), 0
        for row in rows:
            block += row
            longest = max(longest, len(row))
            if len(block) >= _COPY_BYTES:
                yield _parse(bytes(block), longest, table, names)
                block, longest = bytearray(), 0
        if block:
            yield _parse(bytes(block), longest, table, names)


def _parse(block: bytes, longest: int, table: Table, names: Sequence[str]) -> pa.Table:
    return csv.read_csv(
        pa.BufferReader(block),
        # Pieces are parsed side by side; each must hold a row as a whole.
        read_options=csv.ReadOptions(column_names=list(names), block_size=max(_PARSED_AT_ONCE_BYTES, 2 * longest)),
        # A row of one missing cell is an empty line.
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            column_types={name: _ARROW[table.columns[name]] for name in names},
            # COPY writes a missing cell as nothing, and an empty text in quotes.
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _put_postgres(connection: sa.Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    """By COPY into a table of its own first: a tenth of the time of single statements."""
    sql = SQL_TABLES[table.name]
    new = f"new_{sql.name}"
    connection.exec_driver_sql(f"CREATE TEMP TABLE IF NOT EXISTS {new} (LIKE {sql.name}) ON COMMIT DROP")
    connection.exec_driver_sql(f"TRUNCATE {new}")
    listed = ", ".join(f'"{name}"' for name in table.columns)
    with (
        connection.connection.driver_connection.cursor() as cursor,  # type: ignore[union-attr]
        cursor.copy(f"COPY {new} ({listed}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)
    given = sa.table(new, *(sa.column(name) for name in table.columns))
    insert = postgresql.insert(sql).from_select(list(table.columns), sa.select(given))
    rest = {name: insert.excluded[name] for name in table.columns if name not in table.key}
    connection.execute(insert.on_conflict_do_update(index_elements=list(table.key), set_=rest))
