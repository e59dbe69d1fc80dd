"""Check, back up, restore and upgrade the database of the MLflow server."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.storage.files import replacing

# Alembic's table -> its migrations in MLflow's package.
_MIGRATIONS = {
    "alembic_version": "store/db_migrations/versions",
    "alembic_version_auth": "server/auth/db/migrations/versions",
}
# Their rows are the same before and after an upgrade.
_COUNTED = ("experiments", "runs", "params", "registered_models", "model_versions", "users")
_EXPECTED = "expected sqlite:////FILE or postgresql+psycopg://USER@HOST/DATABASE"


def read_backend(uri: str) -> str:
    """The address of a database as SQLAlchemy reads it; an InputError where it is none or holds a password."""
    if settings.hide_password(uri) != uri:
        raise InputError(
            f"the address {settings.hide_password(uri)} holds a password, which everybody on this machine can see; "
            "expected none: set PGPASSWORD or write ~/.pgpass"
        )
    scheme, _, rest = uri.partition("://")
    scheme = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}.get(scheme, scheme)
    if scheme not in ("postgresql+psycopg", "sqlite") or (scheme == "sqlite" and not rest.startswith("//")):
        raise InputError(f"the backend store {uri!r} cannot be used; {_EXPECTED}")
    try:
        return make_url(f"{scheme}://{rest}").render_as_string(hide_password=False)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise InputError(f"the backend store {uri!r} is no address; {_EXPECTED}") from error


def outdated(uri: str) -> dict[str, str]:
    """Alembic's tables with an older schema than the installed MLflow's, and their revisions; none in a new one."""
    found = {}
    with _connected(uri) as connection:
        for table in sa.inspect(connection).get_table_names():
            if table in _MIGRATIONS:
                revision = connection.execute(sa.text(f"SELECT version_num FROM {table}")).scalar()  # noqa: S608
                heads, known = _revisions(_MIGRATIONS[table])
                if revision and revision not in known:
                    raise CalmlflowError(
                        f"the database {_shown(uri)} was made by a newer MLflow than the installed {_installed()} "
                        f"(schema {revision}); expected the MLflow that made it, or a newer one: install that"
                    )
                if revision and revision not in heads:
                    found[table] = revision
    return found


def check_schema(uri: str) -> None:
    """Raise a CalmlflowError, with the command that helps, where the database has an older MLflow's schema."""
    if found := outdated(uri):
        raise CalmlflowError(
            f"the database {_shown(uri)} has the schema of another MLflow ({', '.join(found.values())}); expected that "
            f"of the installed {_installed()}: run `calmlflow server upgrade`, with the same --backend-store-uri if "
            "any, which makes a backup first"
        )


def upgrade(uri: str, backups: Path) -> Path | None:
    """Back up a database, bring it to the installed MLflow's schema, and verify it; gives the backup.

    None where there is nothing to do. Raises a CalmlflowError where somebody is connected to it.
    """
    before = outdated(uri)
    if not before:
        return None
    _refuse_others(uri)
    backup = backups / f"mlflow-{'-'.join(before.values())}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    back_up(uri, backup)
    rows = _count_rows(uri)
    try:
        _migrate(uri, before)
        if (left := outdated(uri)) or rows.items() - _count_rows(uri).items():
            raise RuntimeError(f"it has the schema {left or 'expected'} and {_count_rows(uri)} rows, before {rows}")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CalmlflowError(
            f"the upgrade of {_shown(uri)} failed ({type(error).__name__}: {reason}); expected a database of MLflow's: "
            f"restore the backup {backup}"
        ) from error
    return backup


def back_up(uri: str, destination: Path) -> None:
    """Write a consistent copy of the database: a SQLite file, or a dump of PostgreSQL for `pg_restore`.

    Readable by its owner alone; it is whole or not there.
    """
    url = make_url(uri)
    with replacing(destination, "wb", private=True) as file:
        if url.get_backend_name() == "sqlite":
            with closing(sqlite3.connect(str(url.database))) as source, closing(sqlite3.connect(file.name)) as copy:
                source.backup(copy)
            return
        _run_postgres("pg_dump", uri, "--format=custom", stdout=file)


def restore(uri: str, dump: Path) -> None:
    """Fill a database without tables with what `back_up` wrote of one of its kind; all of it or nothing."""
    url = make_url(uri)
    if url.get_backend_name() == "sqlite":
        with replacing(Path(str(url.database)), "wb", private=True) as file, dump.open("rb") as source:
            shutil.copyfileobj(source, file)
    else:
        _run_postgres("pg_restore", uri, "--no-owner", "--exit-on-error", "--single-transaction", str(dump))


def tables(uri: str) -> set[str]:
    """Names of all tables of a database; an empty one has none."""
    with _connected(uri) as connection:
        return set(sa.inspect(connection).get_table_names())


def _run_postgres(name: str, uri: str, *words: str, stdout: IO[bytes] | None = None) -> None:
    program = shutil.which(name)
    if program is None:
        raise CalmlflowError(f"{name} is not installed; expected that of the PostgreSQL server's version in PATH")
    address = make_url(uri).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [program, "--no-password", f"--dbname={address}", *words]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = settings.hide_password(" ".join(done.stderr.split()))
        raise CalmlflowError(
            f"{name} of {_shown(uri)} failed ({reason}); expected a whole dump, and the right to use it"
        )


def _migrate(uri: str, tables: dict[str, str]) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.store.db.utils import _upgrade_db

    engine = sa.create_engine(uri)
    try:
        if "alembic_version" in tables:
            _upgrade_db(engine)
        if "alembic_version_auth" in tables:
            from mlflow.server.auth.db.utils import migrate

            migrate(engine, "head")
    finally:
        engine.dispose()


def _refuse_others(uri: str) -> None:
    """Raise a CalmlflowError where other connections to the database of PostgreSQL exist."""
    if make_url(uri).get_backend_name() == "sqlite":
        return
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    with _connected(uri) as connection:
        if others := connection.execute(sa.text(query)).scalar():
            raise CalmlflowError(
                f"the database {_shown(uri)} is in use by {others} other connections; expected none: stop every server "
                "that uses it"
            )


def _count_rows(uri: str) -> dict[str, int]:
    with _connected(uri) as connection:
        tables = set(sa.inspect(connection).get_table_names()).intersection(_COUNTED)
        return {t: connection.execute(sa.text(f"SELECT count(*) FROM {t}")).scalar_one() for t in tables}  # noqa: S608


def _revisions(folder: str) -> tuple[set[str], set[str]]:
    """The newest revisions, and all, of MLflow's migrations; read as text, since Alembic would import MLflow."""
    spec = importlib.util.find_spec("mlflow")
    place = Path(str(spec.origin if spec else None)).parent / folder
    text = "\n".join(path.read_text(encoding="utf-8") for path in place.glob("*.py"))
    known = set(re.findall(r'(?m)^revision\b.*= "(\w+)"', text))
    return known - set(re.findall(r'(?m)^down_revision\b.*= "(\w+)"', text)), known


def _installed() -> str:
    return f"MLflow {importlib.metadata.version('mlflow')}"


def _shown(uri: str) -> str:
    url = make_url(uri)
    return url.set(query={}).render_as_string()


@contextmanager
def _connected(uri: str) -> Iterator[sa.Connection]:
    url = make_url(uri)
    options = {} if url.get_backend_name() == "sqlite" or "connect_timeout" in url.query else {"connect_timeout": 10}
    engine = sa.create_engine(url, connect_args=options, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise CalmlflowError(
            f"the database {_shown(uri)} does not answer ({settings.hide_password(reason)}); expected a database of "
            "MLflow's, or an empty one"
        ) from error
    finally:
        engine.dispose()
