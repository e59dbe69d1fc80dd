"""Health of a store, against a plain count over lists of rows."""

import json
import shutil
from contextlib import closing
from datetime import UTC, datetime

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calmlflow.jobs.health import check_health, duration
from calmlflow.jobs.stores.base import TABLES
from calmlflow.jobs.stores.files import FileSource
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, upsert
from tests.samples.store_samples import record

HOUR, DAY = 3600, 86_400
# 2026-03-10 04:00 UTC, a Tuesday.
NOW = 1_773_115_200
INSTRUMENTS = ("ACS", "COS", "STIS", "WFC3")
BINS = ("2g", "8g", "16g", "64g")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A SQLite file with the tables of a store and nothing in them."""
    path = tmp_path_factory.mktemp("health") / "empty.db"
    open_sql(f"sqlite:///{path}", create=True).close()
    return path


@pytest.fixture
def store(empty, tmp_path):
    path = tmp_path / "jobs.db"
    shutil.copy(empty, path)
    with closing(open_sql(f"sqlite:///{path}")) as opened:
        yield opened


def fill(store, **tables: list[dict]) -> None:
    with store.change():
        for table in TABLES:
            if rows := tables.get(table.name):
                store.put(table, pd.DataFrame(rows))


def fresh(store, *rows: dict) -> None:
    """One record that finished and was stored just now, and others."""
    fill(store, jobs=[record("jfresh010", timestamp=NOW - 60, stored_at=NOW - 30), *rows])


# -- Figures --------------------------------------------------------------------------------------------------------


def moments(days: int = 400):
    """Times that are missing, zero, about the edges of days and windows, or anywhere; ahead of the clock too."""
    edges = st.builds(
        lambda days, seconds: NOW - days * DAY + seconds,
        st.sampled_from([-2, -1, 0, 1, 6, 7, 8]),
        st.sampled_from([-1, 0, 1, -4 * HOUR, 4 * HOUR]),
    )
    return st.one_of(st.none(), st.just(0), edges, st.integers(NOW - days * DAY, NOW + 2 * DAY))


JOB_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "timestamp": moments(),
            "stored_at": moments(60),
            "instr": st.one_of(st.none(), st.integers(0, 4)),
            "mem_bin": st.one_of(st.none(), st.integers(0, 4)),
        }
    ),
    max_size=12,
)
ENTRY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.one_of(st.none(), st.sampled_from(["file missing", "step failed"])),
            "reason": st.sampled_from(["exit status 1", "no control file"]),
            "first_seen": moments(20).filter(bool),
            "last_seen": moments(20),
            "resolved_at": moments(20),
        }
    ),
    max_size=12,
)


def counted(jobs: list[dict], mosaics: list[dict], entries: list[dict]) -> dict:
    """The figures as one would count them by hand."""

    def utc_day(moment: float) -> str:
        return datetime.fromtimestamp(moment, UTC).date().isoformat()

    times = [row["timestamp"] for row in jobs if 0 < (row["timestamp"] or 0) <= NOW + DAY]
    stored = [row["stored_at"] for row in jobs + mosaics if row["stored_at"] is not None]
    days = [utc_day(min(moment, NOW)) for moment in stored if moment <= NOW + DAY]
    known = [row for row in jobs if row["instr"] in range(4) and row["mem_bin"] in range(4)]
    return {
        "records": len(jobs),
        "records_by_instrument": {
            name: sum(row["instr"] == at for row in known) for at, name in enumerate(INSTRUMENTS)
        },
        "records_by_bin": {name: sum(row["mem_bin"] == at for row in known) for at, name in enumerate(BINS)},
        "mosaics": len(mosaics),
        "newest_age_s": max(NOW - max(times), 0) if times else None,
        "in_future": sum((row["timestamp"] or 0) > NOW for row in jobs),
        "stored_by_day": {day: days.count(day) for day in (utc_day(NOW - back * DAY) for back in reversed(range(7)))},
        "quarantine_open": sum(entry["resolved_at"] is None for entry in entries),
        "quarantine_added_7d": sum(entry["first_seen"] > NOW - 7 * DAY for entry in entries),
        "quarantine_resolved_7d": sum((entry["resolved_at"] or 0) > NOW - 7 * DAY for entry in entries),
    }


def named(rows: list[dict]) -> list[dict]:
    return [{**row, "ipst": f"j{number:07d}q"} for number, row in enumerate(rows)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(JOB_ROWS, st.lists(moments(60), max_size=3), ENTRY_ROWS)
def test_figures_are_those_of_a_plain_count(empty, tmp_path, monkeypatch, jobs, stored, entries):
    # So that few rows come in several parts.
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 4)
    path = tmp_path / "jobs.db"
    shutil.copy(empty, path)
    jobs, entries = named(jobs), named(entries)
    mosaics = [{"ipst": f"acs_8ph_{number:02d}", "stored_at": moment} for number, moment in enumerate(stored)]
    with closing(open_sql(f"sqlite:///{path}")) as store:
        fill(
            store,
            jobs=[{**record(), **row} for row in jobs],
            mosaics=mosaics,
            quarantine=[{"digest": "", **entry} for entry in entries],
            predictions=[{"ipst": "j8c601020", "timestamp": 5.5}],
        )
        health = check_health(store, None, NOW)
    found = json.loads(json.dumps(health.as_json()))
    expected = counted(jobs, mosaics, entries)
    assert {name: found[name] for name in expected} == expected
    assert found["predictions"] == 1

    dated = {row["ipst"]: row["timestamp"] for row in jobs if 0 < (row["timestamp"] or 0) <= NOW + DAY}
    assert (found["newest"] is None) == (not dated)
    assert not dated or dated[found["newest"]] == max(dated.values())

    assert set(found["quarantine_kinds"]) == {entry["kind"] or "unknown" for entry in entries}
    for kind, told in found["quarantine_kinds"].items():
        still = [entry for entry in entries if (entry["kind"] or "unknown") == kind and entry["resolved_at"] is None]
        assert told["open"] == len(still)
        if still:
            (shown,) = [entry for entry in still if entry["ipst"] == told["dataset"]]
            assert told["reason"] == shown["reason"]
            assert (shown["last_seen"] or 0) == max(entry["last_seen"] or 0 for entry in still)


def test_cells_of_a_file_that_are_no_numbers_are_left_out():
    good = pd.DataFrame([record(timestamp=NOW - 60), record("j91jc4010")]).astype(object)
    good["stored_at"] = pd.Series([NOW - 30, NOW - 30], dtype=object)
    good.loc[1, ["timestamp", "mem_bin", "stored_at"]] = ["abc", "?", "x"]
    source = FileSource("jobs.csv", lambda table: iter([good] if table.name == "jobs" else []))
    health = check_health(source, 3600, NOW)
    assert (health.records, health.newest, health.newest_age_s, health.problems) == (2, "j8c601020", 60, [])
    assert (health.table.sum(), sum(health.stored_by_day.values())) == (1, 1)


# -- What is unhealthy ----------------------------------------------------------------------------------------------


def refused(*names: str) -> Batch:
    return Batch(refused=pd.DataFrame({"ipst": names, "kind": "step failed", "reason": "exit status 1"}))


def test_a_quarantine_that_grows_is_a_problem_until_it_is_emptied_or_idle(store):
    fresh(store)
    assert check_health(store, None, NOW).problems == []
    upsert(store, refused("j8c601020", "j8c601021"), "test", now=NOW)
    (problem,) = check_health(store, None, NOW).problems
    assert "2 entries added and 0 resolved in the last 7 days" in problem

    # Seen again: the same entries.
    upsert(store, refused("j8c601020"), "test", now=NOW + DAY)
    (problem,) = check_health(store, None, NOW + DAY).problems
    assert "2 entries added and 0 resolved" in problem

    # One of them is mended: the other one still came in.
    upsert(store, Batch(jobs=pd.DataFrame([record("j8c601020")])), "test", now=NOW + 2 * DAY)
    (problem,) = check_health(store, None, NOW + 2 * DAY).problems
    assert "2 entries added and 1 resolved" in problem

    # Nothing was added for a week: it does not grow, although one lies there still.
    health = check_health(store, None, NOW + 7 * DAY)
    assert (health.problems, health.quarantine_open) == ([], 1)

    # What is emptied makes room for as much.
    later = NOW + 20 * DAY
    upsert(store, Batch(jobs=pd.DataFrame([record("j8c601021", dtype=0)])), "test", now=later)
    upsert(store, refused("jnewone10"), "test", now=later)
    health = check_health(store, None, later)
    assert (health.problems, health.quarantine_open) == ([], 1)
    upsert(store, refused("jnewone20"), "test", now=later)
    (problem,) = check_health(store, None, later).problems
    assert "2 entries added and 1 resolved" in problem


@pytest.mark.parametrize(("age", "max_age_s", "told"), [
    (2 * DAY, 2 * DAY, []),
    (2 * DAY + 1, 2 * DAY, ["2.0 d old; expected 2.0 d at most"]),
    (400 * DAY, 90 * 60, ["400.0 d old; expected 90.0 min at most"]),
    (400 * DAY, None, []),
])  # fmt: skip
def test_the_newest_record_may_have_an_age(store, age, max_age_s, told):
    fill(store, jobs=[record(timestamp=NOW - age), record("jolder010", timestamp=NOW - age - 5)])
    problems = check_health(store, max_age_s, NOW).problems
    assert len(problems) == len(told)
    assert all(text in problem for text, problem in zip(told, problems, strict=True))


@pytest.mark.parametrize("max_age_s", [None, 2 * DAY])
def test_an_empty_store_is_unhealthy(store, max_age_s):
    (problem,) = check_health(store, max_age_s, NOW).problems
    assert problem.startswith(f"{store.name} holds no job record; expected at least one")


def test_a_record_without_a_time_has_no_age(store):
    fill(store, jobs=[record(timestamp=0), record("jother010", timestamp=None)])
    health = check_health(store, 2 * DAY, NOW)
    assert (health.records, health.newest, health.newest_age_s) == (2, "", None)
    (problem,) = health.problems
    assert "has a time; expected 2.0 d at most" in problem


def test_a_clock_that_is_ahead_is_told_and_makes_nobody_young(store):
    fill(store, jobs=[record(timestamp=NOW + HOUR)])
    health = check_health(store, 60, NOW)
    assert (health.newest_age_s, health.problems) == (0, [])
    (warning,) = health.warnings()
    assert "1 records" in warning
    assert "more than a day" not in warning

    fill(store, jobs=[record(timestamp=NOW + 9000 * DAY), record("jolder010", timestamp=NOW - 400 * DAY)])
    health = check_health(store, 2 * DAY, NOW)
    assert (health.newest, health.newest_age_s) == ("jolder010", 400 * DAY)
    assert "400.0 d old" in health.problems[0]
    (warning,) = health.warnings()
    assert "1 of them by more than a day" in warning


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (119, "119 s"), (120, "2.0 min"), (90 * 60, "90.0 min"), (7199, "120.0 min"), (7200, "2.0 h"),
    (36 * HOUR, "36.0 h"), (2 * DAY, "2.0 d"), (400 * DAY, "400.0 d"),
])  # fmt: skip
def test_lengths_of_time_are_told_in_their_unit(seconds, text):
    assert duration(seconds) == text
