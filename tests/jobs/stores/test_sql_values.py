"""What is put into a SQL store comes back, however it is asked for, from SQLite and from PostgreSQL."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.stores.base import JOBS, QUARANTINE
from calmlflow.jobs.stores.sql import open_sql
from tests.samples.store_samples import ROWS, contents, frame, record


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    is_sqlite = request.param == "sqlite"
    opened = open_sql(
        f"sqlite:///{tmp_path}/jobs.db" if is_sqlite else request.getfixturevalue("postgres_uri"), create=True
    )
    yield opened
    opened.close()


@pytest.fixture
def many(store, monkeypatch) -> int:
    """More rows than a part holds, and than a connection takes in before it is read."""
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 5_000)
    monkeypatch.setattr("calmlflow.jobs.stores.sql._COPY_BYTES", 100_000)
    rows = frame(JOBS, [record(f"j{number:07d}q") for number in range(15_000)])
    store.put(JOBS, rows.assign(split="x" * 100))
    return len(rows)


def test_a_column_of_missing_cells_has_all_its_rows(store):
    store.put(JOBS, frame(JOBS, [record(f"j{number}") for number in range(5)]))
    found = pd.concat(store.read(JOBS, columns=["split"]))
    assert found["split"].isna().tolist() == [True] * 5
    assert pd.concat(store.read(JOBS, columns=["trained_at"])).dtypes.astype(str).to_dict() == {"trained_at": "Int64"}


def test_whole_numbers_keep_their_last_digit_beside_missing_cells(store):
    rows = frame(JOBS, [record("a"), record("b"), record("c")])
    rows["crsplit"] = pd.array([2**53 + 1, None, -(2**63)], dtype="Int64")
    store.put(JOBS, rows)
    pd.testing.assert_frame_equal(contents(store, JOBS), rows)


def test_a_text_may_be_longer_than_what_is_parsed_at_once(store):
    texts = [letter + '\n"' * 2_000_000 for letter in "abc"]
    store.put(QUARANTINE, frame(QUARANTINE, [{"ipst": text[0], "digest": "", "record": text} for text in texts]))
    assert contents(store, QUARANTINE)["record"].tolist() == texts


@pytest.mark.parametrize("value", [1, np.int64(1), np.float64(1)])
def test_numbers_of_numpy_are_numbers(store, value):
    store.put(JOBS, frame(JOBS, [record("a", mem_bin=1), record("b", mem_bin=0)]))
    assert [list(part["ipst"]) for part in store.read(JOBS, where={"mem_bin": value})] == [["a"]]


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
            store.close()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_nul_is_told_by_name(postgres_uri):
    store = open_sql(postgres_uri, create=True)
    with pytest.raises(CalmlflowError, match=r"cannot be read \(a text holds a NUL character\)"):
        store.get(JOBS, ["a\0b"])
    store.close()


def test_a_database_that_is_not_there_is_told_apart_from_a_server_that_is_not(postgres):
    with pytest.raises(CalmlflowError, match="the server refuses this user, password or database"):
        open_sql(postgres.replace("/postgres?", "/none?"))


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_file_that_one_may_only_read():
    code = """
import os
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.stores.base import JOBS
from tests.samples.store_samples import ROWS, frame
open_sql("sqlite:///jobs.db", create=True).close()
os.chmod("jobs.db", 0o444)
os.seteuid(65534)
try:
    open_sql("sqlite:///jobs.db").put(JOBS, frame(JOBS, ROWS[JOBS]))
except Exception as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("CalmlflowError sqlite:///jobs.db cannot be "), (done.stdout, done.stderr)
    assert "its folder can be read only" in done.stdout
