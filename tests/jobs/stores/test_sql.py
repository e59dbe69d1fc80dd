"""SQLite and PostgreSQL: exact values, changes, schema and errors, on real databases."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.stores import sql
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, PREDICTIONS, QUARANTINE
from calmlflow.jobs.stores.sql import HEAD, METADATA, VERSION_TABLE, open_sql
from calmlflow.jobs.upsert import Batch, upsert
from tests.samples.store_samples import ROWS, contents, frame, record


@pytest.fixture
def store(uri):
    with closing(open_sql(uri, create=True)) as opened:
        yield opened


def database(uri: str) -> sa.Engine:
    # Without a pool: nothing is left open for the garbage collector to complain about.
    return sa.create_engine(uri.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
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
    assert len(list(store.read(JOBS))) > 5
    monkeypatch.setattr("calmlflow.jobs.stores.sql._NAMES_AT_ONCE", 300)
    assert len(store.get(JOBS, rows["ipst"])) == 1000
    pd.testing.assert_frame_equal(contents(store, JOBS), rows)
    assert store.count(JOBS) == 1000


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
    assert upsert(store, Batch(jobs=frame(JOBS, ROWS[JOBS])), "test").stored == 2


@pytest.fixture
def many(store, monkeypatch) -> int:
    """More rows than a part holds, and than a connection takes in before it is read."""
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 2_000)
    monkeypatch.setattr("calmlflow.jobs.stores.sql._COPY_BYTES", 100_000)
    rows = frame(JOBS, [record(f"j{number:07d}q") for number in range(6_000)])
    store.put(JOBS, rows.assign(split="x" * 100))
    return len(rows)


def test_a_column_of_missing_cells_has_all_its_rows(store):
    store.put(JOBS, frame(JOBS, [record(f"j{number}") for number in range(5)]))
    found = pd.concat(store.read(JOBS, columns=["split"]))
    assert found["split"].isna().tolist() == [True] * 5
    assert pd.concat(store.read(JOBS, columns=["trained_at"])).dtypes.astype(str).to_dict() == {"trained_at": "Int64"}
    # Missing cells do not make floats of whole numbers.
    rows = frame(JOBS, [record(f"j{number}") for number in range(3)])
    rows["crsplit"] = pd.array([2**53 + 1, None, -(2**63)], dtype="Int64")
    store.put(JOBS, rows)
    assert contents(store, JOBS)["crsplit"][:3].tolist() == rows["crsplit"].tolist()


def test_a_text_may_be_longer_than_what_is_parsed_at_once(store):
    texts = [letter + '\n"' * 2_000_000 for letter in "abc"]
    store.put(QUARANTINE, frame(QUARANTINE, [{"ipst": text[0], "digest": "", "record": text} for text in texts]))
    assert contents(store, QUARANTINE)["record"].tolist() == texts


def test_reading_may_end_early(store, many):
    for _ in range(3):
        assert len(next(iter(store.read(JOBS))))
    with store.change():
        assert len(next(iter(store.read(JOBS))))
        assert store.count(JOBS) == many


def test_what_is_read_may_be_written_meanwhile_and_is_read_once(store, many):
    read = 0
    for part in store.read(JOBS):
        store.put(JOBS, part.assign(ipst="x" + part["ipst"]))
        read += len(part)
    with store.change():
        for part in store.read(JOBS):
            store.put(JOBS, part.assign(ipst="y" + part["ipst"]))
            read += len(part)
    assert read == many + 2 * many
    # Each, x of each, and y of both.
    assert store.count(JOBS) == 4 * many


# -- Schema ---------------------------------------------------------------------------------------------------------


def make_first_schema(uri: str) -> None:
    """A database as the first version of the schema had it, made by Alembic, with rows written in plain SQL."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(sql.__file__).parent / "migrations"))
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
    assert upsert(store, Batch(jobs=pd.DataFrame([record(timestamp=1_700_000_000)])), "test").updated == 1
    store.close()
    with database(uri).connect() as connection:
        assert connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")) == HEAD
    store.close()


def test_the_newest_migration_is_what_the_tables_say(uri, store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(Path(sql.__file__).parent / "migrations")).get_heads() == [HEAD]

    with database(uri).connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_schema_of_the_future_is_told(uri, store):
    with database(uri).begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for create in (True, False):
        with pytest.raises(InputError, match="has schema '9999'; expected 0003 at most"):
            open_sql(uri, create)


@pytest.mark.slow
def test_many_who_start_at_once_make_one_schema(uri):
    code = f"from calmlflow.jobs.stores.sql import open_sql; open_sql({uri!r}, create=True).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(6)]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in started] == [(b"", 0)] * 6
    with closing(open_sql(uri)) as store:
        assert store.count(JOBS) == 0


def test_it_lives_beside_the_tables_of_others(uri, tmp_path):
    (tmp_path / "folder").mkdir()
    with database(uri).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE jobs (id INTEGER)")
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    with pytest.raises(InputError, match="holds no job records; expected a store that"):
        open_sql(uri)
    with closing(open_sql(uri, create=True)) as store:
        assert store.count(JOBS) == 0
    assert {"jobs", "alembic_version", "calcloud_jobs"} <= set(sa.inspect(database(uri)).get_table_names())


# -- What can go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
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


def test_a_file_that_is_missing_or_no_database(tmp_path):
    with pytest.raises(InputError, match="does not exist; expected a SQLite file"):
        open_sql(f"sqlite:///{tmp_path}/folder/none.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "jobs.db").write_text("ipst,n_files\n" * 100)
    for create in (True, False):
        with pytest.raises(CalmlflowError, match=r"cannot be opened \(it is no SQLite database\); expected"):
            open_sql(f"sqlite:///{tmp_path}/jobs.db", create)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    with closing(open_sql(f"sqlite:///{tmp_path}/jobs.db", create=True)) as store:
        store.put(JOBS, frame(JOBS, [record()]))
        # From now on as if no page more had room.
        store._engine.dispose()
        sa.event.listen(store._engine, "connect", lambda driver, _: driver.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(CalmlflowError, match=r"cannot be written \(no space left on device\)"):
            store.put(JOBS, frame(JOBS, [record(f"j{number:07d}q") for number in range(1_000)]))
        assert contents(store, JOBS)["ipst"].tolist() == ["j8c601020"]


def test_a_file_that_is_being_written_by_somebody_who_never_ends(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    open_sql(f"sqlite:///{path}", create=True).close()
    monkeypatch.setattr("calmlflow.jobs.stores.sql.BUSY_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = open_sql(f"sqlite:///{path}")
    with pytest.raises(CalmlflowError, match="another process has been writing"):
        store.put(JOBS, frame(JOBS, [record()]))
    other.execute("ROLLBACK")
    store.put(JOBS, frame(JOBS, [record()]))
    assert store.count(JOBS) == 1


def test_a_cell_of_another_kind_is_told(tmp_path):
    store = open_sql(f"sqlite:///{tmp_path}/jobs.db", create=True)
    store.put(JOBS, frame(JOBS, ROWS[JOBS]))
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("UPDATE calcloud_jobs SET n_files = 'many'")
    with pytest.raises(CalmlflowError, match=r"cannot be read \(a cell is of another kind than its column\)"):
        list(store.read(JOBS))
    store.close()


def test_a_database_of_another_encoding(postgres, postgres_uri):
    name = "latin_" + os.urandom(4).hex()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        try:
            store = open_sql(postgres.replace("/postgres?", f"/{name}?"), create=True)
            rows = frame(QUARANTINE, [{"ipst": "a", "digest": "", "reason": "café"}])
            store.put(QUARANTINE, rows)
            pd.testing.assert_frame_equal(contents(store, QUARANTINE), rows)
            with pytest.raises(CalmlflowError, match="a character that its encoding has not"):
                store.put(QUARANTINE, rows.assign(reason="✓"))
            with pytest.raises(CalmlflowError, match=r"cannot be read \(a text holds a NUL character\)"):
                store.get(JOBS, ["a\0b"])
            store.close()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(("part", "wrong"), [("/postgres?", "/none?"), ("postgres@", "stranger:hunter2@")])
def test_a_server_that_refuses_is_told_apart_from_one_that_is_not_there(postgres, part, wrong):
    with pytest.raises(CalmlflowError, match="the server refuses this user, password or database") as error:
        open_sql(postgres.replace(part, wrong))
    assert "hunter2" not in str(error.value)


def test_a_store_that_one_may_only_read(postgres_uri):
    owner = open_sql(postgres_uri, create=True)
    owner.put(JOBS, frame(JOBS, [record()]))
    role = "reader_" + os.urandom(4).hex()
    with psycopg.connect(postgres_uri, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            store = open_sql(postgres_uri.replace("postgres@", f"{role}@"))
            assert contents(store, JOBS)["ipst"].tolist() == ["j8c601020"]
            with pytest.raises(CalmlflowError, match=r"cannot be written \(permission denied\)"):
                store.put(JOBS, frame(JOBS, [record()]))
            store.close()
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    owner.close()
