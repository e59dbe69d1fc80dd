"""How a store is doing: every figure against a second, plain count over a list of rows, on real databases."""

import dataclasses
import json
import shutil
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calmlflow.jobs.health import check_health
from calmlflow.jobs.silence import duration, find_silence
from calmlflow.jobs.stores.base import TABLES
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, keep
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
        st.sampled_from([-2, -1, 0, 1, 6, 7, 13, 14, 30, 180]),
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
            "bin_pred": st.one_of(st.none(), st.integers(0, 3)),
            "wall_pred": st.one_of(st.none(), st.just(0.0)),
        }
    ),
    max_size=12,
)
ENTRY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.one_of(st.none(), st.sampled_from(["file missing", "step failed"])),
            "reason": st.sampled_from(["{} has exit status 1", "{} has exit status 137", "no control file"]),
            "first_seen": moments(20).filter(bool),
            "resolved_at": moments(20),
        }
    ),
    max_size=12,
)


def counted(jobs: list[dict], mosaics: list[dict], entries: list[dict], predictions: list[dict]) -> dict:
    """The figures as one would count them by hand."""

    def age(times) -> int | None:
        times = [time for time in times if time is not None and 0 < time <= NOW + DAY]
        return max(NOW - int(max(times)), 0) if times else None

    def utc_day(moment: float) -> str:
        return datetime.fromtimestamp(moment, UTC).date().isoformat()

    stored = [row["stored_at"] for row in jobs + mosaics if row["stored_at"] is not None]
    stored = [min(moment, NOW) for moment in stored if moment <= NOW + DAY]
    known = [row for row in jobs if row["instr"] in range(4) and row["mem_bin"] in range(4)]
    still = [entry for entry in entries if entry["resolved_at"] is None]
    return {
        "records": len(jobs),
        "records_by_instrument": {
            name: sum(row["instr"] == at for row in known) for at, name in enumerate(INSTRUMENTS)
        },
        "records_by_bin": {name: sum(row["mem_bin"] == at for row in known) for at, name in enumerate(BINS)},
        "answered": sum(row["bin_pred"] is not None or row["wall_pred"] is not None for row in jobs),
        "mosaics": len(mosaics),
        "newest_age_s": age(row["timestamp"] for row in jobs),
        "in_future": sum((row["timestamp"] or 0) > NOW for row in jobs),
        "stored_age_s": age(row["stored_at"] for row in jobs + mosaics),
        "stored_by_day": {
            day: sum(utc_day(moment) == day for moment in stored)
            for day in (utc_day(NOW - back * DAY) for back in range(14))
        },
        "stored_last_day": sum(moment > NOW - DAY for moment in stored),
        "stored_per_day_7d": sum(moment > NOW - 7 * DAY for moment in stored) / 7,
        "stored_per_day_30d": sum(moment > NOW - 30 * DAY for moment in stored) / 30,
        "quarantine_open": len(still),
        "quarantine_oldest_age_s": max(NOW - min(e["first_seen"] for e in still), 0) if still else None,
        "quarantine_added_7d": sum(entry["first_seen"] > NOW - 7 * DAY for entry in entries),
        "quarantine_resolved_7d": sum((entry["resolved_at"] or 0) > NOW - 7 * DAY for entry in entries),
        "predictions": len(predictions),
        "prediction_age_s": age(row["timestamp"] for row in predictions),
    }


def named(rows: list[dict], *letters: str) -> list[dict]:
    """Rows with a dataset's name each, and a reason that holds it."""
    rows = [{**row, "ipst": f"j{number:07d}q"} for number, row in enumerate(rows)]
    return [{**row, "reason": row["reason"].format(row["ipst"])} if "reason" in row else row for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    JOB_ROWS, st.lists(moments(60), max_size=3), ENTRY_ROWS, st.lists(moments().filter(bool), max_size=4, unique=True)
)
def test_figures_are_those_of_a_plain_count(empty, tmp_path, monkeypatch, jobs, stored, entries, predicted):
    # So that few rows come in several parts.
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 4)
    path = tmp_path / "jobs.db"
    shutil.copy(empty, path)
    jobs, entries = named(jobs), named(entries)
    mosaics = [{"ipst": f"acs_8ph_{number:02d}", "stored_at": moment} for number, moment in enumerate(stored)]
    predictions = [{"ipst": "j8c601020", "timestamp": float(moment)} for moment in predicted]
    with closing(open_sql(f"sqlite:///{path}")) as store:
        fill(
            store,
            jobs=[{**record(), **row} for row in jobs],
            mosaics=mosaics,
            quarantine=[{"digest": "", **entry} for entry in entries],
            predictions=predictions,
        )
        health = check_health(store, None, NOW)
    found = json.loads(json.dumps(health.as_json()))
    expected = counted(jobs, mosaics, entries, predictions)
    assert {name: found[name] for name in expected} == expected

    dated = {row["ipst"]: row["timestamp"] for row in jobs if 0 < (row["timestamp"] or 0) <= NOW + DAY}
    assert (found["newest"] is None) == (not dated)
    assert not dated or dated[found["newest"]] == max(dated.values())

    still = [entry for entry in entries if entry["resolved_at"] is None]
    assert set(found["quarantine_kinds"]) == {entry["kind"] or "unknown" for entry in entries}
    for kind, told in found["quarantine_kinds"].items():
        of_kind = [entry for entry in still if (entry["kind"] or "unknown") == kind]
        alike = Counter(entry["reason"].replace(entry["ipst"], "*") for entry in of_kind)
        assert told["open"] == len(of_kind)
        assert told["alike"] == max(alike.values(), default=0)
        if of_kind:
            (shown,) = [entry for entry in of_kind if entry["ipst"] == told["dataset"]]
            assert told["reason"] == shown["reason"]
            assert alike[shown["reason"].replace(shown["ipst"], "*")] == told["alike"]


def test_postgresql_tells_the_same_as_sqlite(store, postgres_uri):
    rng = np.random.default_rng(0)
    jobs = [
        record(f"j{number:07d}q", timestamp=NOW - int(rng.integers(0, 300 * DAY)), stored_at=NOW - number * HOUR,
               instr=number % 4, mem_bin=number % 3, **({"bin_pred": 1} if number % 5 else {}))
        for number in range(500)
    ]  # fmt: skip
    entries = [
        {"ipst": f"j{n:07d}q", "digest": "", "kind": f"kind {n % 2}", "reason": f"j{n:07d}q has {n % 3}",
         "first_seen": NOW - n * HOUR, "resolved_at": NOW if n % 3 else None}
        for n in range(200)
    ]  # fmt: skip
    tables = {
        "jobs": jobs,
        "quarantine": entries,
        "mosaics": [{"ipst": "acs_8ph_01", "stored_at": NOW - 5}],
        "predictions": [{"ipst": "j8c601020", "timestamp": NOW - 5.5}],
    }
    with closing(open_sql(postgres_uri, create=True)) as other:
        for one in (store, other):
            fill(one, **tables)
        expected, found = (check_health(one, 2 * DAY, NOW).as_json() for one in (store, other))
    for health in (expected, found):
        # Which one of the most frequent is shown is a matter of order.
        for kind in health["quarantine_kinds"].values():
            assert kind.pop("dataset") in kind.pop("reason")
    named_by_store = ("store", "problems", "warnings")
    for name in named_by_store:
        expected.pop(name), found.pop(name)
    assert found == expected
    assert found["records"] == 500


def test_the_most_frequent_reason_is_counted_across_parts(store, monkeypatch):
    monkeypatch.setattr("calmlflow.jobs.stores.sql.CHUNK_ROWS", 2)
    reasons = ["j0000000q is broken", "j0000001q is late", "j0000002q is broken", "skycell-p0797x14y06 is late",
               "acs_8ph_01 is late", "processed twice", "processing twice"]  # fmt: skip
    fill(store, quarantine=[
        {"ipst": f"entry{at}", "digest": "", "kind": "k", "reason": text, "first_seen": 1}
        for at, text in enumerate(reasons)
    ])  # fmt: skip
    told = check_health(store, None, NOW).quarantine.kinds["k"]
    assert (told.open, told.alike) == (7, 3)
    assert told.reason.endswith("is late")


# -- Gaps -----------------------------------------------------------------------------------------------------------


def plain_silence(times: list[int], now: int) -> dict:
    """The rule of `find_silence`, one silence after the other."""
    times = sorted(times)
    silences = list(pairwise(times))
    since = now - 180 * DAY
    weeks, end = [], times[-1]
    while end - 7 * DAY >= max(times[0], since):
        begin = end - 7 * DAY
        weeks.append(max(stop - start for start, stop in silences if stop > begin and start < end))
        end = begin
    usual = median(weeks) if len(weeks) >= 3 else 0
    limit = min(max(2 * usual, DAY), 14 * DAY)
    gaps = [(start, stop, False) for start, stop in silences if stop - start > limit]
    if now - times[-1] > limit:
        gaps.append((times[-1], now, True))
    have = {time // DAY for time in times}
    first = max(times[0] // DAY + 1, since // DAY)
    idle = [day for day in range(first, times[-1] // DAY) if day not in have]
    runs = [day for day in idle if day - 1 not in idle]
    lengths = [next(n for n in range(1, 999) if day + n not in idle) for day in runs]
    return {
        "limit_s": limit,
        "gaps": sorted(gaps, key=lambda gap: (gap[0] - gap[1], gap[0])),
        "days": len(idle),
        "runs": len(runs),
        "longest_run": max(lengths, default=0),
    }


@given(
    st.lists(
        st.one_of(st.integers(0, 3600), st.integers(0, 3 * DAY), st.integers(0, 30 * DAY)), min_size=1, max_size=60
    )
)
@example([1])
@example([12 * HOUR] * 59)
@example([9 * DAY] * 20)
@example([200 * DAY, 1])
def test_gaps_are_those_of_the_rule(spacings):
    times = sorted({NOW - int(back) for back in np.cumsum(spacings)})
    # One from before the window at most, as `check_health` passes them.
    early = [time for time in times if time < NOW - 180 * DAY][-1:]
    times = early + [time for time in times if time >= NOW - 180 * DAY]
    found = dataclasses.asdict(find_silence(np.array(times), NOW))
    found["gaps"] = [(gap["start"], gap["end"], gap["is_open"]) for gap in found["gaps"]]
    assert found == plain_silence(times, NOW)


def test_nothing_finished_is_no_gap():
    assert find_silence(np.array([], dtype=np.int64), NOW).gaps == ()


def every(step: int, start: int, end: int) -> set[int]:
    return set(range(start, end, step))


HOURLY = every(HOUR, NOW - 170 * DAY, NOW)
OUTAGE = (NOW - 100 * DAY, NOW - 70 * DAY)


def test_a_month_without_a_job_is_a_gap_in_a_busy_store():
    times = {time for time in HOURLY if not OUTAGE[0] < time < OUTAGE[1]}
    (gap,) = find_silence(np.array(sorted(times)), NOW).gaps
    assert (gap.start, gap.end, gap.is_open) == (*OUTAGE, False)


def test_weekends_are_no_gaps_where_jobs_rest_then_and_a_week_is():
    on_workdays = {time for time in HOURLY if datetime.fromtimestamp(time, UTC).weekday() < 5}
    assert find_silence(np.array(sorted(on_workdays)), NOW).gaps == ()
    rest = {time for time in on_workdays if not NOW - 40 * DAY < time < NOW - 33 * DAY}
    assert len(find_silence(np.array(sorted(rest)), NOW).gaps) == 1


def test_the_six_months_that_nobody_noticed_are_a_gap_although_they_began_before_the_window(store):
    before, after = NOW - 200 * DAY, NOW - 10 * DAY
    times = {before - 5, before, *every(HOUR, after, NOW)}
    fill(store, jobs=[record(f"j{number:07d}q", timestamp=time) for number, time in enumerate(sorted(times))])
    silence = check_health(store, None, NOW).silence
    (gap,) = silence.gaps
    assert (gap.start, gap.end) == (before, after)
    # The window begins on a Thursday, 180 days back; the first job of it comes 170 days later.
    assert (silence.days, silence.runs, silence.longest_run) == (170, 1, 170)


def test_the_silence_until_now_is_a_gap(store):
    fill(store, jobs=[record(timestamp=NOW - 250 * DAY)])
    (gap,) = check_health(store, None, NOW).silence.gaps
    assert (gap.start, gap.end, gap.is_open) == (NOW - 250 * DAY, NOW, True)


# -- What is unhealthy ----------------------------------------------------------------------------------------------


def refused(*names: str) -> Batch:
    return Batch(refused=pd.DataFrame({"ipst": names, "kind": "step failed", "reason": "exit status 1"}))


def test_a_quarantine_that_grows_is_a_problem_until_it_is_emptied_or_idle(store):
    fresh(store)
    assert check_health(store, None, NOW).problems == []
    keep(store, refused("j8c601020", "j8c601021"), "test", now=NOW)
    (problem,) = check_health(store, None, NOW).problems
    assert "2 entries in and 0 out in the last 7 days" in problem

    # Seen again: the same entries.
    keep(store, refused("j8c601020"), "test", now=NOW + DAY)
    (problem,) = check_health(store, None, NOW + DAY).problems
    assert "2 entries in and 0 out" in problem

    # One of them is mended: the other one still came in.
    keep(store, Batch(jobs=pd.DataFrame([record("j8c601020")])), "test", now=NOW + 2 * DAY)
    (problem,) = check_health(store, None, NOW + 2 * DAY).problems
    assert "2 entries in and 1 out" in problem

    # Nothing was added for a week: it does not grow, although one lies there still.
    health = check_health(store, None, NOW + 7 * DAY)
    assert (health.problems, health.quarantine.open) == ([], 1)

    # What is emptied makes room for as much.
    later = NOW + 20 * DAY
    keep(store, Batch(jobs=pd.DataFrame([record("j8c601021", dtype=0)])), "test", now=later)
    keep(store, refused("jnewone10"), "test", now=later)
    health = check_health(store, None, later)
    assert (health.problems, health.quarantine.open) == ([], 1)
    keep(store, refused("jnewone20"), "test", now=later)
    (problem,) = check_health(store, None, later).problems
    assert "2 entries in and 1 out" in problem


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
    assert (health.records, health.newest, health.newest_age_s, health.silence.gaps) == (2, "", None, ())
    (problem,) = health.problems
    assert "tells when its job finished; expected 2.0 d at most" in problem


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
