"""Killed jobs: what is told of them, what they are taken for, and that each is kept once."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.jobs.killed import (
    BATCH,
    FILE_MISSING,
    NO_METRICS,
    STEP_FAILED,
    find_killed,
    keep_killed,
    killed_jobs,
    kind_of,
    read_killed,
    told_by_files,
)
from calmlflow.jobs.quarantine import list_open
from calmlflow.jobs.stores.base import JOBS, KILLED, PREDICTIONS, QUARANTINE, conform
from calmlflow.jobs.upsert import Batch, Counts, upsert
from tests.samples.ingest_samples import control, metrics
from tests.samples.store_samples import RECORD, contents, frame, plain, record

JOB, OTHER = "j8c601020", "j91jc4010"
FEATURES = {
    name: RECORD[name] for name in RECORD if name not in ("ipst", "timestamp", "wallclock", "memory", "mem_bin")
}
# Predicted at 1000, with a kill time of 600 s, for rung 1.
SIZED = {"timestamp": 1000.0, **FEATURES, "bin_pred": 1, "mem_pred": 3.0, "wall_pred": 200.0, "kill_time": 600}
RIPE = 1000 + 2 * 600


def size(store, *names: str, **cells: object) -> None:
    store.put(PREDICTIONS, frame(PREDICTIONS, [{**SIZED, "ipst": name, **cells} for name in names]))


def kill(ipst: str = JOB, **cells: object) -> dict:
    return {"ipst": ipst, "timestamp": 1500, **FEATURES, "kind": "memory", "reason": "r", **cells}


def entry(ipst: str, kind: str, reason: str, **cells: object) -> dict:
    return {"ipst": ipst, "digest": "", "kind": kind, "reason": reason, "source": "s3://b", "timestamp": 1700, **cells}


# -- What killed a job ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "wallclock", "kill_time", "kind"), [
    (137, 100.0, 600.0, "memory"), (137, 590.0, 600.0, "time"), (137, None, 600.0, "memory"),
    (137, 590.0, None, "memory"),
    (143, 590.0, 600.0, "time"), (143, 100.0, 600.0, "machine"), (143, 100.0, None, "time"),
    (31, 590.0, 600.0, "memory"), (34, None, None, "memory"), (1, 590.0, 600.0, "failed"), (139, 1.0, 600.0, "failed"),
])  # fmt: skip
def test_an_exit_status_is_judged_by_the_time_that_was_left(status, wallclock, kill_time, kind):
    assert kind_of(status, wallclock, kill_time) == kind


@pytest.mark.parametrize(("told", "expected"), [
    # Killed for a limit: it needs at least the limit of its rung, or its kill time.
    ({"exit_status": 137, "wallclock": 40.0, "memory": 1.5}, ("memory", 40.0, 7.168)),
    ({"exit_status": 137, "wallclock": 40.0, "memory": 9.5}, ("memory", 40.0, 9.5)),
    ({"exit_status": 137, "wallclock": 580.0, "memory": 1.5}, ("time", 600.0, 1.5)),
    ({"exit_status": 1, "wallclock": 40.0}, ("failed", 40.0, None)),
    ({"kind": "machine"}, ("machine", None, None)),
    ({"kind": "time"}, ("time", 600.0, None)),
])  # fmt: skip
def test_bounds_are_what_was_reached_or_the_limit_that_killed(store, told, expected):
    size(store, JOB)
    # A later prediction is one of another run.
    size(store, JOB, timestamp=5000.0, kill_time=60, bin_pred=3)
    # It ran with no shadow answer.
    size(store, JOB, timestamp=1650.0, kill_time=60, bin_pred=3, source="shadow")
    (row,) = plain(find_killed(store, [{"ipst": JOB, "timestamp": 1700, **told}], now=9000))
    assert (row["kind"], row["wallclock"], row["memory"]) == expected
    assert {name: row[name] for name in FEATURES} == FEATURES


def test_without_features_and_without_a_time_nothing_can_be_kept(store):
    told = {"ipst": JOB, "timestamp": 1700, "exit_status": 137}
    assert find_killed(store, [told]).empty
    assert find_killed(store, [{**told, **FEATURES, "timestamp": None}]).empty
    assert find_killed(store, [{**told, **FEATURES}])["kind"].tolist() == ["memory"]


def test_a_job_that_left_nothing_was_killed_by_time_once_twice_its_kill_time_has_passed(store):
    size(store, JOB)
    told = [{"ipst": JOB}, {"ipst": OTHER, **FEATURES}]
    assert find_killed(store, told, now=RIPE - 1).empty
    (row,) = find_killed(store, told, now=RIPE).to_dict("records")
    assert (row["ipst"], row["timestamp"], row["kind"], row["wallclock"]) == (JOB, 1600, "time", 600)
    # Sized anew: its time runs anew.
    size(store, JOB, timestamp=RIPE - 10.0)
    assert find_killed(store, told, now=RIPE).empty


@pytest.mark.parametrize(("files", "expected"), [
    ({"process": metrics("0:41.00", 1_000_000, 137)}, [(137, 41.0, 1.0, 1700)]),
    ({"process": metrics("0:41.00", 1_000_000, 137), "preview": metrics(status=1)}, [(137, 41.0, 1.0, 1700)]),
    ({"process": metrics("0:40.00", 1_000_000), "preview": metrics("0:02.00", 500_000, 143)}, [(143, 42.0, 1.5, 1700)]),
    # A run after the kill went well, and the next step failed.
    ({"process": metrics("0:41.00", 1_000_000, 137) + metrics("1:40.00", 1_000_000), "preview":
      metrics("0:02.00", 500_000, 1)}, [(137, 41.0, 1.0, 1600), (1, 102.0, 1.5, 1700)]),
    ({"process": metrics("0:41.00", 1_000_000, 137) + metrics("1:40.00")},
     [(137, 41.0, 1.0, 1600), (None, None, None, None)]),
    ({"process": metrics(), "preview": metrics()}, []),
    ({"process": "rubbish"}, []),
    ({"process": metrics()}, [(None, None, None, None)]),
])  # fmt: skip
def test_metrics_files_tell_of_the_first_step_that_failed_and_of_earlier_runs(files, expected):
    told = told_by_files(JOB, files, 1700, control())
    keys = ("exit_status", "wallclock", "memory", "timestamp")
    assert [tuple(one.get(key) for key in keys) for one in told] == expected
    assert all(one["n_files"] == 17 for one in told)


# -- Keeping --------------------------------------------------------------------------------------------------------


def test_a_kill_that_is_seen_twice_is_one_row_with_what_each_knows(store):
    seen = [
        kill(kind="failed", wallclock=40.0, reason="process_metrics.txt says exit status 1"),
        kill(timestamp=1500 + 600, kind="memory", memory=1.9, reason=f"{BATCH}OutOfMemoryError"),
        kill(timestamp=1510, kind="time", wallclock=30.0, reason="process_metrics.txt says exit status 143"),
        # It knows no more than the one before: the first word stands.
        kill(timestamp=1520, kind="machine", reason=f"{BATCH}Host EC2"),
    ]
    for one in [*seen, *seen]:
        upsert(store, Batch(killed=pd.DataFrame([one])), "test", now=7)
    (row,) = contents(store, KILLED).to_dict("records")
    assert (row["timestamp"], row["kind"], row["wallclock"], row["memory"]) == (1500, "memory", 40.0, 1.9)
    # Later than that it is another kill.
    upsert(store, Batch(killed=pd.DataFrame([kill(timestamp=1500 + 601)])), "test")
    assert contents(store, KILLED)["timestamp"].tolist() == [1500, 2101]


@given(st.permutations([kill(timestamp=at, wallclock=float(at)) for at in (0, 1000, 2000, 3000)]))
def test_kills_in_any_order_and_again_are_kept_once(tmp_path_factory, kills):
    from calmlflow.jobs.stores.sql import open_sql

    uri = f"sqlite:///{tmp_path_factory.mktemp('killed')}/jobs.db"
    store = open_sql(uri, create=True)
    for one in [*kills, *kills]:
        with store.change():
            keep_killed(store, conform(pd.DataFrame([one]), KILLED), 5)
    assert contents(store, KILLED)["wallclock"].tolist() == [0.0, 1000.0, 2000.0, 3000.0]
    store.close()


@pytest.mark.parametrize(("cells", "reason"), [
    ({"kind": "bored"}, "kind is none of time, memory, machine, failed"),
    ({"kind": None}, "kind is none of time, memory, machine, failed"),
    ({"n_files": 0}, "n_files is not a whole number, 1 to"),
    ({"wallclock": -1.0}, "wallclock is not a number of seconds, 0 to"),
    ({"memory": 1e6}, "memory is not a number of GB, 0 to"),
    ({"instr": 2}, "instr is not that of the first letter of ipst"),
    ({"dtype": 0}, "dtype is not that of the last character of ipst"),
])  # fmt: skip
def test_what_breaks_the_schema_is_quarantined(store, cells, reason):
    both = pd.DataFrame([kill(**cells), kill(OTHER)])
    assert upsert(store, Batch(killed=both), "test") == Counts(quarantined=1)
    assert contents(store, KILLED)["ipst"].tolist() == [OTHER]
    (told,) = list_open(store)
    assert told["ipst"] == JOB
    assert reason in told["reason"]
    assert ";" not in told["reason"]


# -- Reading --------------------------------------------------------------------------------------------------------


def test_a_store_of_before_tells_of_its_kills_by_its_quarantine(store):
    """Sized jobs without a record, of which only the quarantine and the predictions tell."""
    by_memory = [f"j{number:07d}0" for number in range(4)]
    by_time = [f"j{number:07d}0" for number in range(4, 7)]
    failed, unsized, dismissed = "jfailed10", "junsized0", "jdismiss0"
    size(store, *by_memory, *by_time, failed, dismissed, *(f"jfine{number:03d}0" for number in range(9)))
    store.put(JOBS, frame(JOBS, [record(f"jfine{number:03d}0", timestamp=1300) for number in range(9)]))
    says = "{}: process_metrics.txt says exit status {}; expected 0"
    shown = json.dumps({"process_metrics.txt": metrics("0:41.00", 1_000_000, 137), "control": control(n_files="23")})
    missing = "s3://b/outputs/{}/process_metrics.txt cannot be read (NoSuchKey); expected the output of time --verbose"
    entries = [
        *(entry(name, STEP_FAILED, says.format(name, 137)) for name in by_memory[1:]),
        entry(by_memory[0], STEP_FAILED, says.format(by_memory[0], 137), record=shown),
        *(entry(name, FILE_MISSING, missing.format(name)) for name in [*by_time, unsized]),
        entry(failed, STEP_FAILED, says.format(failed, 1)),
        entry(dismissed, STEP_FAILED, says.format(dismissed, 143), resolved_at=9),
        entry("jcontrol0", FILE_MISSING, "s3://b/control/jcontrol0/jcontrol0_MemModelFeatures.txt cannot be read"),
        entry("acs_8ph_01", STEP_FAILED, says.format("acs_8ph_01", 137)),
        entry("jother010", "bad metrics file", "jother010: process_metrics.txt has no line 'Exit status'"),
    ]
    store.put(QUARANTINE, frame(QUARANTINE, entries))
    killed = killed_jobs(store, now=RIPE).set_index("ipst")
    assert killed["kind"].to_dict() == {
        **dict.fromkeys(by_memory, "memory"),
        **dict.fromkeys(by_time, "time"),
        **{failed: "failed", dismissed: "time"},
    }
    assert killed.loc[by_memory[0], ["n_files", "wallclock", "memory"]].tolist() == [23, 41.0, 7.168]
    assert killed.loc[by_memory[1], "n_files"] == FEATURES["n_files"]
    assert killed.loc[by_time, "wallclock"].tolist() == [600.0] * 3
    # Once they are stored, they are not told twice.
    upsert(store, Batch(killed=killed.reset_index()), "test")
    again = killed_jobs(store, now=RIPE).drop(columns="stored_at").sort_values("ipst", ignore_index=True)
    expected = killed.reset_index().drop(columns="stored_at").sort_values("ipst", ignore_index=True)
    pd.testing.assert_frame_equal(again, expected)


@pytest.mark.parametrize(("jobs", "kills", "is_told"), [
    ([], [], True),
    # It was waiting in the queue, or was run again in less time.
    ([record(JOB, timestamp=9000, wallclock=599.0)], [], False),
    # It needs more than its kill time, as it seemed, or it finished before it was sized.
    ([record(JOB, timestamp=9000, wallclock=600.0)], [], True),
    ([record(JOB, timestamp=999, wallclock=5.0)], [], True),
    # Batch saw the kill.
    ([], [kill(kind="memory", timestamp=8000)], False),
    ([], [kill(kind="memory", timestamp=900)], True),
    ([], [kill(OTHER, timestamp=8000)], True),
])  # fmt: skip
def test_a_kill_that_nobody_saw_may_be_refuted(store, jobs, kills, is_told):
    store.put(JOBS, frame(JOBS, jobs))
    unseen = kill(kind="time", timestamp=1600, wallclock=600.0, reason=NO_METRICS)
    upsert(store, Batch(killed=pd.DataFrame([unseen, *kills])), "test")
    assert (killed_jobs(store, now=RIPE)["reason"] == NO_METRICS).sum() == is_told


def test_a_source_without_killed_jobs_has_none():
    pd.testing.assert_frame_equal(read_killed("sample:20"), conform(pd.DataFrame(), KILLED))
