"""Copy records between databases and files: counted, and safe to repeat and to interrupt."""

from contextlib import closing

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.copy import copy
from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.stores.base import HISTORY, JOBS, KILLED, MOSAICS, PREDICTIONS, QUARANTINE, TABLES, conform
from calmlflow.jobs.stores.open import open_store, read_table
from calmlflow.jobs.upsert import Counts
from tests.samples.store_samples import ANSWER as SMALLEST
from tests.samples.store_samples import ROWS, contents, frame, plain, record

# DynamoDB keeps nothing as small as 1e-300.
ANSWER = {**SMALLEST, "wc_err": 1e-100}


def name_of(number: int) -> str:
    return f"j{number:07d}q"


def of(number: int, **cells: object) -> dict:
    return record(name_of(number), dtype=0, **{"timestamp": 1000, **cells})


def entry(name: str, **cells: object) -> dict:
    return {"ipst": name, "digest": "", "kind": "k", "reason": "r", "source": "s3://b", "tries": 1, **cells}


def mosaic(name: str, timestamp: int) -> dict:
    return {**ROWS[MOSAICS][0], "ipst": name, "timestamp": timestamp}


HERE = {
    JOBS: [*(of(number, **(ANSWER if number % 2 else {})) for number in range(40)), of(99, memory=0.1)],
    HISTORY: [{**of(0, timestamp=1), "digest": "a", "replaced_at": 5}],
    MOSAICS: [mosaic("acs_8ph_01", 7), mosaic("acs_8ph_02", 7)],
    QUARANTINE: [
        entry("resolved", last_seen=10),
        entry("known", last_seen=30, tries=3),
        entry("settled", last_seen=30, resolved_at=40),
        entry(name_of(1), last_seen=30, timestamp=2000),
        entry(name_of(2), last_seen=30, timestamp=900),
    ],
    KILLED: ROWS[KILLED],
    PREDICTIONS: ROWS[PREDICTIONS],
}
THERE = {
    JOBS: [of(0, timestamp=3000, memory=1.2), of(1, timestamp=500), of(77, **ANSWER)],
    HISTORY: [{**of(0, timestamp=1), **ANSWER, "digest": "a", "replaced_at": 3}],
    MOSAICS: [mosaic("acs_8ph_01", 9)],
    QUARANTINE: [
        entry("resolved", last_seen=10, resolved_at=20),
        entry("known", last_seen=20),
        entry("settled", last_seen=5),
    ],
}


def fill(store, tables: dict) -> None:
    for table, rows in tables.items():
        store.put(table, frame(table, rows))


def by_name(store, table, *columns: str) -> dict:
    """Name -> cells, a missing one as None."""
    return {row["ipst"]: tuple(row[name] for name in columns) for row in plain(contents(store, table))}


def test_a_file_is_written_where_its_uri_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert copy("sample:20", f"file://{tmp_path}/jobs.csv").there == 20
    assert len(read_table("jobs.csv")) == 20
    for target in ("https://user:word@host/jobs.csv", "gs://bucket/jobs.csv", "file://host/jobs.csv"):
        with pytest.raises(InputError, match=r"unknown scheme|no local file") as caught:
            copy("sample:20", target)
        assert "word" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.csv"]


def test_no_column_of_a_folder_is_lost(tmp_path):
    table = read_table("sample:20")
    (tmp_path / "in").mkdir()
    table.to_parquet(tmp_path / "in" / "1.parquet")
    table.assign(ipst=table["ipst"].str[:-1] + "x", wall_pred=7.0).to_parquet(tmp_path / "in" / "2.parquet")
    copy(str(tmp_path / "in"), str(tmp_path / "out.csv"))
    assert read_table(str(tmp_path / "out.csv"))["wall_pred"].value_counts(dropna=False).tolist() == [20, 20]


@pytest.mark.parametrize("there", ["sqlite", "postgres", "dynamodb"])
def test_every_table_is_copied_from_one_database_into_another(place, tmp_path, there):
    here = f"sqlite:///{tmp_path}/source.db"
    source, target = open_store(here, create=True), open_store(place(there), create=True)
    fill(source, HERE)
    fill(target, THERE)
    before = {table: contents(source, table) for table in TABLES}
    seen: list[tuple] = []
    copied = copy(here, place(there), lambda done, total: seen.append((done, total)))
    assert copied.counts == Counts(stored=38, updated=1, older=1, quarantined=1)
    assert (copied.read, copied.there, seen[-1]) == (41, 41, (41, 41))
    assert copied.others == {"history": 1, "mosaics": 2, "killed_jobs": 2, "quarantine": 5, "predictions": 2}
    pd.testing.assert_frame_equal(contents(source, JOBS), before[JOBS])

    # Records: the newer one of each dataset, with what trainings found out.
    found = by_name(target, JOBS, "timestamp", "bin_pred", "wc_err")
    expected = {
        name_of(number): (1000, *((ANSWER["bin_pred"], ANSWER["wc_err"]) if number % 2 else (None, None)))
        for number in range(1, 40)
    }
    answered = (1000, ANSWER["bin_pred"], ANSWER["wc_err"])
    assert found == {**expected, name_of(0): (3000, None, None), name_of(77): answered}
    # History: what was replaced, what came too late, and what either had, with its answers.
    remembered = conform(contents(target, HISTORY), HISTORY)
    times = list(zip(remembered["ipst"], remembered["timestamp"], strict=True))
    assert sorted(times) == [(name_of(0), 1), (name_of(0), 1000), (name_of(1), 500)]
    kept = remembered[remembered["timestamp"] == 1].iloc[0]
    assert (kept["bin_pred"], kept["replaced_at"]) == (ANSWER["bin_pred"], 3)
    assert by_name(target, MOSAICS, "timestamp") == {"acs_8ph_01": (9,), "acs_8ph_02": (7,)}
    # Quarantine: what was said last; a run that failed before the one that is stored is settled.
    entries = by_name(target, QUARANTINE, "tries", "resolved_at")
    stored_at = by_name(target, JOBS, "stored_at")[name_of(2)][0]
    assert entries == {
        "resolved": (1, 20),
        "known": (3, None),
        "settled": (1, 40),
        name_of(1): (1, None),
        name_of(2): (1, stored_at),
        name_of(99): (1, None),
    }
    pd.testing.assert_frame_equal(conform(contents(target, PREDICTIONS), PREDICTIONS), before[PREDICTIONS])
    # When a kill was stored is told by the store.
    kills = contents(target, KILLED)
    pd.testing.assert_frame_equal(kills.drop(columns="stored_at"), before[KILLED].drop(columns="stored_at"))

    # Twice is once.
    after = {table: contents(target, table) for table in TABLES}
    again = copy(here, place(there))
    assert again.counts == Counts(unchanged=39, older=1, quarantined=1)
    assert again.there == 41
    for table in (JOBS, HISTORY, MOSAICS, KILLED, PREDICTIONS):
        pd.testing.assert_frame_equal(contents(target, table), after[table])
    assert by_name(target, QUARANTINE, "tries", "resolved_at") == {**entries, name_of(99): (2, None)}
    source.close()
    target.close()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_gets_the_records_and_says_what_it_does_not_get(tmp_path, suffix):
    uri, file = f"sqlite:///{tmp_path}/jobs.db", f"{tmp_path}/jobs.{suffix}"
    with closing(open_store(uri, create=True)) as store:
        fill(store, HERE)
        before = contents(store, JOBS)
    for _ in range(2):
        copied = copy(uri, file)
        assert (copied.read, copied.counts, copied.there) == (41, Counts(stored=41), 41)
        assert copied.others == {"killed_jobs": 2}
    left = {"history": 1, "mosaics": 2, "quarantine": 5, "predictions": 2}
    told = "".join(f"; {rows} rows of {name} are not copied" for name, rows in left.items())
    assert str(copied) == f"41 records read: 41 stored; the target holds 41; 2 rows of killed_jobs{told}"
    found = conform(read_table(file), JOBS).sort_values("ipst", ignore_index=True)
    pd.testing.assert_frame_equal(found, before, check_exact=True)
    # And back again.
    other = f"sqlite:///{tmp_path}/other.db"
    assert copy(file, other).counts == Counts(stored=40, quarantined=1)
    with closing(open_store(other)) as store:
        kills = contents(store, KILLED)
    pd.testing.assert_frame_equal(kills.assign(stored_at=None), frame(KILLED, ROWS[KILLED]), check_dtype=False)


def test_a_file_gets_the_kills_that_only_the_quarantine_tells_of(tmp_path):
    uri, file = f"sqlite:///{tmp_path}/jobs.db", f"{tmp_path}/jobs.csv"
    sized = {**of(1), "timestamp": 900.0, "kill_time": 60, "bin_pred": 0}
    failed = entry(name_of(1), kind="step failed", reason="process_metrics.txt says exit status 137; expected 0")
    with closing(open_store(uri, create=True)) as store:
        fill(store, {JOBS: [of(0)], PREDICTIONS: [sized], QUARANTINE: [{**failed, "timestamp": 1000}]})
    assert copy(uri, file).others == {"killed_jobs": 1}
    (killed,) = plain(read_killed(file))
    assert (killed["ipst"], killed["kind"], killed["memory"]) == (name_of(1), "memory", 1.792)


def test_a_copy_that_was_interrupted_is_finished_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 20)
    uri, target = f"sqlite:///{tmp_path}/many.db", f"sqlite:///{tmp_path}/target.db"
    with closing(open_store(uri, create=True)) as source:
        source.put(JOBS, frame(JOBS, [of(number, **ANSWER) for number in range(100)]))

        def interrupt(done: int, total: int | None) -> None:
            if done == 60:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy(uri, target, interrupt)
        assert copy(uri, target).counts == Counts(stored=40, unchanged=60)
        with closing(open_store(target)) as other:
            columns = [name for name in JOBS.columns if name != "stored_at"]
            found = contents(other, JOBS)[columns]
        pd.testing.assert_frame_equal(found, contents(source, JOBS)[columns], check_exact=True)
    assert copy(target, target).counts == Counts(unchanged=100)
