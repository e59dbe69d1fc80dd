"""Health of a store: its figures, and what makes it unhealthy."""

import json

import pandas as pd
import pytest

from calmlflow.jobs.health import check_health, duration
from calmlflow.jobs.stores.base import KILLED, TABLES
from calmlflow.jobs.stores.files import FileSource
from calmlflow.jobs.upsert import Batch, upsert
from tests.samples.store_samples import ROWS, record

HOUR, DAY = 3600, 86_400
# 2026-03-10 04:00 UTC.
NOW = 1_773_115_200


def fill(store, **tables: list[dict]) -> None:
    with store.change():
        for table in TABLES:
            if rows := tables.get(table.name):
                store.put(table, pd.DataFrame(rows))


def test_figures(store, monkeypatch):
    # So that few rows come in several parts.
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 2)
    # Finished, stored, instrument, bin: missing, at the edges of days and of the window, and ahead of the clock.
    rows = [
        (NOW - 60, NOW, 0, 0),
        (NOW - 400 * DAY, NOW + 2 * HOUR, 0, 3),
        (0, NOW - 4 * HOUR, 3, 1),
        (None, NOW - 4 * HOUR - 1, 3, 1),
        (NOW - 70, NOW - 6 * DAY - 4 * HOUR, None, 1),
        (NOW + 2 * DAY, NOW - 6 * DAY - 4 * HOUR - 1, 2, None),
        (NOW - 80, NOW + 2 * DAY, 2, 2),
        (NOW - 90, None, 4, 0),
    ]
    columns = ("timestamp", "stored_at", "instr", "mem_bin")
    jobs = [{**record(f"j{number:07d}q"), **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows)]
    week = NOW - 7 * DAY
    entries = [("b", week + 1, None), ("b", week, None), ("a", week + 1, week + 1), ("c", 1, week), (None, NOW, None)]
    fill(
        store,
        jobs=jobs,
        mosaics=[{"ipst": f"acs_8ph_0{number}", "stored_at": NOW - number * DAY} for number in (0, 1, 9)],
        quarantine=[
            {"ipst": str(number), "digest": "", "kind": kind, "first_seen": seen, "resolved_at": resolved}
            for number, (kind, seen, resolved) in enumerate(entries)
        ],
        predictions=[{"ipst": "j8c601020", "timestamp": 5.5}],
        killed_jobs=[
            {**ROWS[KILLED][0], "timestamp": moment, "kind": kind}
            for moment, kind in [(week + 1, "time"), (week, "time"), (NOW - 5000, "failed"), (5, "memory")]
        ],
    )
    found = json.loads(json.dumps(check_health(store, None, NOW).as_json()))
    expected = {
        **{"records": 8, "mosaics": 3, "predictions": 1, "newest": "j0000000q", "newest_age_s": 60},
        "records_by_instrument": {"ACS": 2, "COS": 0, "STIS": 1, "WFC3": 2},
        "records_by_bin": {"2g": 1, "8g": 2, "16g": 1, "64g": 1},
        "stored_by_day": {
            **{"2026-03-04": 1, "2026-03-05": 0, "2026-03-06": 0, "2026-03-07": 0, "2026-03-08": 0},
            **{"2026-03-09": 2, "2026-03-10": 4},
        },
        "killed": {"time": 2, "memory": 1, "machine": 0, "failed": 1},
        "killed_7d": {"time": 1, "memory": 0, "machine": 0, "failed": 1},
        "quarantine_kinds": {"b": 2, "unknown": 1, "a": 0, "c": 0},
        **{"quarantine_open": 3, "quarantine_added_7d": 3, "quarantine_resolved_7d": 1, "healthy": False},
    }
    assert {name: found[name] for name in expected} == expected


def test_cells_of_a_file_that_are_no_numbers_are_left_out():
    good = pd.DataFrame([record(timestamp=NOW - 60), record("j91jc4010")]).astype(object)
    good["stored_at"] = pd.Series([NOW - 30, NOW - 30], dtype=object)
    good.loc[1, ["timestamp", "mem_bin", "stored_at"]] = ["abc", "?", "x"]
    source = FileSource("jobs.csv", lambda table: iter([good] if table.name == "jobs" else []))
    health = check_health(source, 3600, NOW)
    assert (health.records, health.newest, health.newest_age_s, health.problems) == (2, "j8c601020", 60, [])
    assert (health.table.sum(), sum(health.stored_by_day.values())) == (1, 1)


# -- Faults ---------------------------------------------------------------------------------------------------------


def refused(*names: str) -> Batch:
    return Batch(refused=pd.DataFrame({"ipst": names, "kind": "step failed", "reason": "exit status 1"}))


def test_a_quarantine_that_grows_is_a_problem_until_it_is_emptied_or_idle(store):
    fill(store, jobs=[record("jfresh010", timestamp=NOW - 60)])
    assert check_health(store, None, NOW).problems == []
    upsert(store, refused("j8c601020", "j8c601021"), "test", now=NOW)
    (problem,) = check_health(store, None, NOW).problems
    assert "2 entries added and 0 resolved in the last 7 days" in problem
    # Seen again: the same entries.
    upsert(store, refused("j8c601020"), "test", now=NOW + DAY)
    (problem,) = check_health(store, None, NOW + DAY).problems
    assert "2 entries added and 0 resolved" in problem
    upsert(store, Batch(jobs=pd.DataFrame([record("j8c601020")])), "test", now=NOW + 2 * DAY)
    (problem,) = check_health(store, None, NOW + 2 * DAY).problems
    assert "2 entries added and 1 resolved" in problem
    # Nothing was added for a week: it does not grow, although one entry is still open.
    health = check_health(store, None, NOW + 7 * DAY)
    assert (health.problems, health.quarantine_open) == ([], 1)


@pytest.mark.parametrize(("age", "max_age_s", "told"), [
    (2 * DAY, 2 * DAY, []),
    (2 * DAY + 1, 2 * DAY, ["2.0 d old; expected 2.0 d at most"]),
    (400 * DAY, 90 * 60, ["400.0 d old; expected 90.0 min at most"]),
    (400 * DAY, None, []),
    (-HOUR, 60, []),
])  # fmt: skip
def test_the_newest_record_may_have_an_age(store, age, max_age_s, told):
    # A record of a clock that is years ahead hides nothing.
    times = {"jnewest10": NOW - age, "jolder010": NOW - 401 * DAY, "jahead010": NOW + 9000 * DAY}
    fill(store, jobs=[record(name, timestamp=time) for name, time in times.items()])
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
    assert ["has a time; expected 2.0 d at most" in problem for problem in health.problems] == [True]


@pytest.mark.parametrize(("seconds", "text"), [
    (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (7200, "2.0 h"), (2 * DAY, "2.0 d"), (400 * DAY, "400.0 d"),
])  # fmt: skip
def test_lengths_of_time_are_told_in_their_unit(seconds, text):
    assert duration(seconds) == text
