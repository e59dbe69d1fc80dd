"""Stores in SQLite and PostgreSQL, both real: what is particular to databases."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, PREDICTIONS, QUARANTINE
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.stores.sql_schema import HEAD, METADATA, VERSION_TABLE
from calmlflow.jobs.upsert import Batch, keep
from tests.samples.store_samples import ROWS, contents, frame, record


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/folder/jobs.db"
    return request.getfixturevalue("postgres_uri")


@pytest.fixture
def store(uri):
    opened = open_sql(uri, create=True)
    yield opened
    opened.close()


def database(uri: str) -> sa.Engine:
    return sa.create_engine(uri.replace("postgresql://", "postgresql+psycopg://"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.floats(allow_nan=False),
    st.one_of(st.none(), st.integers(-(2**53), 2**53)),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50),
)
def test_any_value_comes_back_to_the_last_bit(store, number, whole, text):
    rows = frame(HISTORY, [record(text, wallclock=number, crsplit=whole, digest="d", split=text)])
    store.put(HISTORY, rows)
    pd.testing.assert_frame_equal(store.get(HISTORY, [text]), rows, check_exact=True)
    (found,) = [part[part["ipst"] == text] for part in store.read(HISTORY)]
    pd.testing.assert_frame_equal(found.reset_index(drop=True), rows, check_exact=True)


def test_many_rows_are_read_in_parts(store, monkeypatch):
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 100)
    monkeypatch.setattr("calmlflow.jobs.stores.sql._COPY_BYTES", 10_000)
    rows = frame(JOBS, [record(f"j{number:07d}q", n_files=number) for number in range(1, 1001)])
    store.put(JOBS, rows)
    parts = list(store.read(JOBS))
    assert len(parts) > 5
    pd.testing.assert_frame_equal(contents(store, JOBS), rows)
    assert store.count(JOBS) == 1000


def test_a_change_that_raises_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.change():
        store.put(JOBS, frame(JOBS, ROWS[JOBS]))
        assert store.count(JOBS) == 2
        raise ZeroDivisionError
    assert store.count(JOBS) == 0


def test_one_change_waits_for_another(uri, store):
    """Two that add to what they read: without waiting, one addition would be lost."""
    store.put(JOBS, frame(JOBS, [record(n_files=1)]))

    def add() -> None:
        own = open_sql(uri)
        for _ in range(10):
            with own.change():
                row = own.get(JOBS, ["j8c601020"])
                own.put(JOBS, row.assign(n_files=row["n_files"] + 1))
        own.close()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(store, JOBS)["n_files"].tolist() == [41]


def test_a_killed_change_leaves_nothing(uri, store):
    code = f"""
import os, signal
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.stores.base import JOBS
from tests.samples.store_samples import ROWS, frame
store = open_sql({uri!r})
with store.change():
    store.put(JOBS, frame(JOBS, ROWS[JOBS]))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    assert store.count(JOBS) == 0
    assert keep(store, Batch(jobs=frame(JOBS, ROWS[JOBS])), "test").stored == 2


def test_many_names_are_asked_for_at_once(store):
    rows = frame(JOBS, [record(f"j{number:07d}q") for number in range(12_000)])
    store.put(JOBS, rows)
    found = store.get(JOBS, rows["ipst"].tolist()[1:]).sort_values("ipst").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, rows.iloc[1:].reset_index(drop=True))


# -- Schema ---------------------------------------------------------------------------------------------------------


def make_first_schema(uri: str) -> None:
    """A database as the first version of the schema had it, made by Alembic, with rows written in plain SQL."""
    from alembic import command
    from alembic.config import Config

    from calmlflow.jobs.stores import sql_schema

    config = Config()
    config.set_main_option("script_location", os.path.join(os.path.dirname(sql_schema.__file__), "migrations"))  # noqa: PTH118, PTH120
    with database(uri).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql(
            "INSERT INTO calcloud_jobs (ipst, timestamp, n_files, total_mb, drizcorr, pctecorr, crsplit, subarray, "
            "detector, dtype, instr, wallclock, memory, mem_bin) VALUES "
            "('j8c601020', 1620740441, 5, 94, 1, 1, 2, 0, 1, 1, 0, 126, 1.17, 0)"
        )
        connection.exec_driver_sql(
            "INSERT INTO calcloud_quarantine (ipst, digest, kind, reason, first_seen) VALUES ('x', '', 'k', 'r', 1)"
        )


def test_the_first_schema_is_brought_up_to_date(uri, tmp_path):
    (tmp_path / "folder").mkdir()
    make_first_schema(uri)
    tables = set(sa.inspect(database(uri)).get_table_names())
    assert "calcloud_mosaics" not in tables
    store = open_sql(uri)
    pd.testing.assert_frame_equal(contents(store, JOBS), frame(JOBS, [record()]))
    assert contents(store, QUARANTINE)["reason"].tolist() == ["r"]
    store.put(MOSAICS, frame(MOSAICS, ROWS[MOSAICS]))
    store.put(PREDICTIONS, frame(PREDICTIONS, ROWS[PREDICTIONS]))
    assert keep(store, Batch(jobs=pd.DataFrame([record(timestamp=1_700_000_000)])), "test").updated == 1
    store.close()
    with database(uri).connect() as connection:
        assert connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")) == HEAD


def test_the_newest_migration_is_what_the_tables_say(uri, store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database(uri).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_the_newest_schema_is_the_last_migration():
    from alembic.script import ScriptDirectory

    from calmlflow.jobs.stores import sql_schema

    script = ScriptDirectory(os.path.join(os.path.dirname(sql_schema.__file__), "migrations"))  # noqa: PTH118, PTH120
    assert script.get_heads() == [HEAD]


def test_a_schema_of_the_future_is_told(uri, store):
    with database(uri).begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for create in (True, False):
        with pytest.raises(InputError, match="has schema '9999'; expected 0002 at most"):
            open_sql(uri, create)


def test_many_who_start_at_once_make_one_schema(uri):
    code = f"from calmlflow.jobs.stores.sql import open_sql; open_sql({uri!r}, create=True).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(6)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [(b"", 0)] * 6
    assert open_sql(uri).count(JOBS) == 0


def test_it_lives_beside_the_tables_of_others(uri, tmp_path):
    (tmp_path / "folder").mkdir()
    with database(uri).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE jobs (id INTEGER)")
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    with pytest.raises(InputError, match="holds no job records; expected a store that"):
        open_sql(uri)
    assert open_sql(uri, create=True).count(JOBS) == 0
    assert {"jobs", "alembic_version", "calcloud_jobs"} <= set(sa.inspect(database(uri)).get_table_names())


# -- What can go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite://", "in memory holds nothing"),
        ("sqlite:///:memory:", "in memory holds nothing"),
        ("mysql://u:secret@h/d", "begins with 'mysql'"),
        ("postgresql://u:secret@h:port/d", "cannot be read"),
        ("postgresql://u:secret@127.0.0.1:1/d", r"cannot be opened \(no answer\)"),
        ("postgresql://u@127.0.0.1:1/d?password=secret", r"cannot be opened \(no answer\)"),
    ],
)
def test_addresses_that_lead_nowhere(uri, message):
    with pytest.raises(CalmlflowError, match=f"{message}.*; expected") as error:
        open_sql(uri, create=True)
    assert "secret" not in str(error.value)


def test_a_missing_file_is_not_made_by_looking(tmp_path):
    with pytest.raises(InputError, match="does not exist; expected a SQLite file"):
        open_sql(f"sqlite:///{tmp_path}/folder/none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "jobs.db").write_text("ipst,n_files\n" * 100)
    for create in (True, False):
        with pytest.raises(CalmlflowError, match=r"cannot be opened \(it is no SQLite database\); expected"):
            open_sql(f"sqlite:///{tmp_path}/jobs.db", create)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        store = open_sql(f"sqlite:///{disk}/jobs.db", create=True)
        store.put(JOBS, frame(JOBS, [record()]))
        many = frame(JOBS, [record(f"j{number:07d}q") for number in range(20_000)])
        with pytest.raises(CalmlflowError, match=r"cannot be written \(no space left on device\)"):
            store.put(JOBS, many)
        assert contents(store, JOBS)["ipst"].tolist() == ["j8c601020"]
        store.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_is_being_written_by_somebody_who_never_ends(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    open_sql(f"sqlite:///{path}", create=True).close()
    monkeypatch.setattr("calmlflow.jobs.stores.sql.BUSY_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = open_sql(f"sqlite:///{path}")
    with pytest.raises(CalmlflowError, match="somebody else has been writing"):
        store.put(JOBS, frame(JOBS, [record()]))
    other.execute("ROLLBACK")
    store.put(JOBS, frame(JOBS, [record()]))
    assert store.count(JOBS) == 1


def test_a_wrong_password_is_told_without_it(postgres, postgres_uri, tmp_path):
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        folder = connection.execute("SHOW data_directory").fetchone()[0]
    rules = os.path.join(folder, "pg_hba.conf")  # noqa: PTH118
    shutil.copy(rules, tmp_path / "rules")
    try:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'right'")
            with open(rules, "w") as file:  # noqa: PTH123
                file.write("local all stranger scram-sha-256\n" + (tmp_path / "rules").read_text())
            connection.execute("SELECT pg_reload_conf()")
            wrong = postgres_uri.replace("postgres@", "stranger:hunter2@")
            with pytest.raises(CalmlflowError, match=r"stranger.*cannot be opened") as error:
                open_sql(wrong)
            assert "hunter2" not in str(error.value)
    finally:
        shutil.copy(tmp_path / "rules", rules)
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("DROP ROLE stranger")


def test_text_with_nul_is_told_by_postgres(postgres_uri):
    store = open_sql(postgres_uri, create=True)
    with pytest.raises(CalmlflowError, match="cannot be written"):
        store.put(QUARANTINE, frame(QUARANTINE, [{"ipst": "a\0b", "digest": ""}]))
    store.close()
