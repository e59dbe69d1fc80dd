"""A store in a SQL database: a SQLite file, or PostgreSQL for a team."""

import sqlite3
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import sqlalchemy as sa
from numpy.typing import NDArray
from pyarrow import csv
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import DEFAULT, LADDER
from calmlflow.jobs.stores.base import CHUNK_ROWS, JOBS, PREDICTIONS, TABLES, Table, conform

HEAD = "0003"
"""The newest schema: the last file of ``migrations/versions``."""

# Alembic's table here; MLflow, which may share the database, has its own and a table ``jobs``.
VERSION_TABLE = "calcloud_schema"

# Time that a process waits for the change of another one.
BUSY_S = 30
# Time that PostgreSQL may take to answer, where the URI does not say.
CONNECT_S = 10

_NAMES_AT_ONCE = 5_000
_COPY_BYTES = 8 << 20
_PARSED_AT_ONCE_BYTES = 1 << 20
# Key of the advisory lock that every change takes.
_LOCK = 7_244_901_230

_SCHEMAS = ("0001", "0002", HEAD)
_SQL_TYPES = {"text": sa.Text, "whole": sa.BigInteger, "number": sa.Double}
_ARROW = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64()}
# Missing cells do not make floats of whole numbers.
_DTYPES = {pa.string(): pd.StringDtype(na_value=np.nan), pa.int64(): pd.Int64Dtype()}

METADATA = sa.MetaData()


def _define(table: Table) -> sa.Table:
    columns: list[sa.Column] = [
        sa.Column(name, _SQL_TYPES[kind], primary_key=name in table.key) for name, kind in table.columns.items()
    ]
    return sa.Table(f"calcloud_{table.name}", METADATA, *columns)


SQL_TABLES = {table.name: _define(table) for table in TABLES}
sa.Index("calcloud_jobs_timestamp", SQL_TABLES[JOBS.name].c.timestamp)


def open_sql(uri: str, create: bool = False) -> "SqlStore":
    """Open ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.

    With ``create``, make file and tables where there are none; an older schema is always upgraded.
    """
    url = _read_url(uri)
    # Other words of a query may hold passwords.
    shown = {key: url.query[key] for key in ("host", "port") if key in url.query}
    name = str(url.set(password=None, query=shown).render_as_string())
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if not create and not path.is_file():
            raise InputError(f"{name} does not exist; expected a SQLite file of job records")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CalmlflowError(f"{name} cannot be made ({error.strerror}); expected a folder of yours") from error
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
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InputError(f"the address of a {scheme} database cannot be read; {expected}") from error
    if scheme == "sqlite" and url.database in (None, "", ":memory:"):
        raise InputError(f"a SQLite database in memory holds nothing; {expected}")
    return url


def _engine(url: URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        patience = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
        # Arrow reads UTF-8, whatever the database is kept in.
        arguments = {**patience, "client_encoding": "utf8"}
        # A Lambda sleeps between its calls and may find its connection closed.
        return sa.create_engine(url, connect_args=arguments, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_S})

    @sa.event.listens_for(engine, "connect")
    def _own_transactions(connection: sqlite3.Connection, record: object) -> None:
        # Python's driver would begin transactions on its own, and none for changes of the schema.
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads before it writes would fail if another process wrote in between.
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
        """Make the tables, or upgrade them, if need be."""
        with self._connected("opened") as connection:
            version = _schema_version(connection)
        if version is None and not create:
            raise InputError(f"{self.name} holds no job records; expected a store that `ingest` or `copy` made")
        if version is not None and version not in _SCHEMAS:
            raise InputError(
                f"{self.name} has schema {version[:20]!r}; expected {HEAD} at most: it was written by a newer calmlflow"
            )
        if version == HEAD:
            self._add_rungs()
            return
        if not self._is_postgres:
            with _translated(self.name, "opened"), self._engine.connect() as connection:
                # Readers do not keep writers out then. Lasts, and cannot be set within a transaction.
                connection.connection.cursor().execute("PRAGMA journal_mode=WAL")
        with self.change(), _translated(self.name, "upgraded"):
            assert self._changing is not None  # noqa: S101 - `change` has set it
            # Another process may have been first.
            if _schema_version(self._changing) != HEAD:
                # Alembic takes a quarter of a second to import, once in the life of a store.
                from alembic import command
                from alembic.config import Config

                config = Config()
                config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
                config.attributes["connection"] = self._changing
                command.upgrade(config, HEAD)
        self._add_rungs()

    def _add_rungs(self) -> None:
        """Add the columns of rungs that the ladder in force has beside those of the default one."""
        if set(LADDER.names) <= set(DEFAULT.names):
            return
        table = SQL_TABLES[PREDICTIONS.name]
        with self.change(), _translated(self.name, "upgraded"):
            assert self._changing is not None  # noqa: S101 - `change` has set it
            there = {column["name"] for column in sa.inspect(self._changing).get_columns(table.name)}
            for name in sorted({column.name for column in table.c} - there):
                self._changing.execute(sa.text(f'ALTER TABLE {table.name} ADD COLUMN "{name}" DOUBLE PRECISION'))

    def read(self, table: Table, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """See `Source.read`; one statement, so later changes are not seen."""
        names = list(columns or table.columns)
        listed = ", ".join(f'"{name}"' for name in names)
        text = f"SELECT {listed} FROM {SQL_TABLES[table.name].name}"  # noqa: S608 - names are ours
        with self._connected("read") as connection:
            driver = connection.connection.driver_connection
            parts = (_copied if self._is_postgres else _fetched)(driver, text, table, names)
            # Closed before the connection, which a COPY occupies.
            with closing(parts):
                # Within a change the block may use the same connection for each part: read all first.
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
        with _translated(self.name, "written"):
            for start in range(0, len(rows), CHUNK_ROWS):
                part = conform(rows.iloc[start : start + CHUNK_ROWS], table).astype(object)
                write(self._changing, table, part.where(part.notna(), None).itertuples(index=False, name=None))

    def replace(self, table: Table, seen: pd.DataFrame, rows: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Store.replace`: within a change nobody else writes, so all rows are written."""
        self.put(table, seen.assign(**{str(name): rows[name] for name in rows}))
        return np.ones(len(rows), dtype=bool)

    def count(self, table: Table) -> int:
        """See `Source.count`."""
        with self._connected("read") as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(SQL_TABLES[table.name])) or 0

    @contextmanager
    def change(self) -> Iterator[None]:
        """See `Store.change`: one transaction; other writers wait for its end."""
        with (
            _translated(self.name, "written"),
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
        """See `Source.close`."""
        self._engine.dispose()

    @contextmanager
    def _connected(self, act: str) -> Iterator[sa.Connection]:
        """The connection of the current change, or one of its own."""
        with _translated(self.name, act):
            if self._changing is not None:
                yield self._changing
            else:
                with self._engine.connect() as connection:
                    yield connection


# -- SQLite ---------------------------------------------------------------------------------------------------------


def _fetched(driver: Any, text: str, table: Table, names: Sequence[str]) -> Generator[pa.Table, None, None]:
    types = [_ARROW[table.columns[name]] for name in names]
    cursor = driver.cursor()
    try:
        cursor.execute(text)
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


def _copied(driver: Any, text: str, table: Table, names: Sequence[str]) -> Generator[pa.Table, None, None]:
    """Rows by COPY, parsed by Arrow: a fifth of the time of a cursor."""
    with driver.cursor() as cursor, cursor.copy(f"COPY ({text}) TO STDOUT (FORMAT csv)") as rows:
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
        # Blocks are parsed in parallel; each must hold a whole row.
        read_options=csv.ReadOptions(column_names=list(names), block_size=max(_PARSED_AT_ONCE_BYTES, 2 * longest)),
        # A row of one missing cell is an empty line.
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            column_types={name: _ARROW[table.columns[name]] for name in names},
            # COPY writes a missing cell as nothing, and an empty text as two quotes.
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def _put_postgres(connection: sa.Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    """By COPY into a temporary table first: a tenth of the time of single statements."""
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


# -- Schema and errors ----------------------------------------------------------------------------------------------


def _schema_version(connection: sa.Connection) -> str | None:
    """The schema of a database; None where it has none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant


_LIBRARIES = ("sqlalchemy", "sqlite3", "psycopg", "pyarrow")
_REASONS = {
    "SQLITE_NOTADB": "it is no SQLite database",
    "SQLITE_FULL": "no space left on device",
    "SQLITE_BUSY": "another process has been writing for too long",
    "SQLITE_READONLY": "it can be read only",
    "SQLITE_READONLY_DIRECTORY": "its folder can be read only, and readers need to write there too",
    "SQLITE_CANTOPEN": "no such file, or no permission",
    "42501": "permission denied",
    "53100": "its disk is full",
    "22021": "a text holds a NUL character",
    "22P05": "a text holds a character that its encoding has not",
    # Psycopg raises it for no other text.
    "DataError": "a text holds a NUL character",
    "OperationalError": "no answer",
    "ArrowInvalid": "a cell is of another kind than its column",
    "ArrowTypeError": "a cell is of another kind than its column",
}


@contextmanager
def _translated(name: str, act: str) -> Iterator[None]:
    """Translate exceptions of a driver into a CalmlflowError without their text, which may quote a password."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        if type(cause).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or type(cause).__name__
        # SQLite has finer codes, such as SQLITE_BUSY_SNAPSHOT.
        reason = _REASONS.get(code) or _REASONS.get("_".join(code.split("_")[:2]), code)
        # A refused connection has no code.
        refusals = ("FATAL", "no password", "does not exist")
        if code == "OperationalError" and any(word in str(cause) for word in refusals):
            reason = "the server refuses this user, password or database"
        raise CalmlflowError(
            f"{name} cannot be {act} ({reason}); expected a database of job records that answers"
        ) from error
