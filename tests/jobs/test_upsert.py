"""Upsert and write-back: the same result in any order, twice, and after a kill."""

import itertools
import json
import math
from contextlib import closing
from datetime import date

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.jobs import upsert as module
from calmlflow.jobs.quarantine import IMPOSSIBLE
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, QUARANTINE, Store
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, Counts, check_writable, upsert, write_back
from tests.samples.store_samples import ANSWER, contents, frame, plain, record

NAME = "j8c601020"
# A dataset for each example, so that one database does for all.
NUMBERS = itertools.count()
SOURCE = "s3://bucket"


def jobs(*records: dict) -> Batch:
    return Batch(jobs=pd.DataFrame(list(records)))


def refusal(ipst: str = NAME, **cells: object) -> Batch:
    return Batch(refused=pd.DataFrame([{"ipst": ipst, "kind": "step failed", "reason": "exit status 1", **cells}]))


def rows(store: Store, table, name: str = NAME) -> list[dict]:
    """What a store holds of a dataset."""
    return plain(store.get(table, [name]).sort_values(list(table.key)))


# -- Who wins -------------------------------------------------------------------------------------------------------


def version(name: str, timestamp: int) -> dict:
    """A run of a dataset: one in three cannot be true, and each time has other figures."""
    memory = 0.1 if timestamp % 3 == 0 else 1.0 + timestamp / 1000
    return record(name, timestamp=timestamp, memory=memory, wallclock=float(timestamp))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=5))
def test_the_order_of_arrival_does_not_matter(store, batches):
    """Whatever order the runs of a dataset come in, and how often: expected from the runs alone."""
    name = f"j{next(NUMBERS):07d}0"
    counts = Counts()
    for batch in batches:
        counts += upsert(store, jobs(*(version(name, timestamp) for timestamp in batch)), "test")
    seen = {timestamp for batch in batches for timestamp in batch}
    valid = sorted(timestamp for timestamp in seen if timestamp % 3)
    assert [row["timestamp"] for row in rows(store, JOBS, name)] == valid[-1:]
    remembered = rows(store, HISTORY, name)
    assert sorted(row["timestamp"] for row in remembered) == valid[:-1]
    assert all(row["wallclock"] == row["timestamp"] for row in remembered)
    assert {row["timestamp"] for row in rows(store, QUARANTINE, name)} == {t for t in seen if not t % 3}
    assert counts.total == sum(map(len, batches))
    assert counts.quarantined == sum(not timestamp % 3 for batch in batches for timestamp in batch)
    assert counts.stored == bool(valid)


def test_each_is_counted_for_what_became_of_it(store):
    assert upsert(store, jobs(version(NAME, 2), version(NAME, 4), version(NAME, 4)), "test") == Counts(
        stored=1, older=1, unchanged=1
    )
    assert [row["timestamp"] for row in rows(store, HISTORY)] == [2]
    assert upsert(store, jobs(version(NAME, 4)), "test") == Counts(unchanged=1)
    assert upsert(store, jobs(version(NAME, 1)), "test") == Counts(older=1)
    assert upsert(store, jobs(version(NAME, 5), version("j8c601010", 3)), "test") == Counts(updated=1, quarantined=1)
    # A fix of a control file changes features and not the time of the metrics.
    assert upsert(store, jobs({**version(NAME, 5), "crsplit": 1}), "test") == Counts(updated=1)
    assert rows(store, JOBS)[0]["crsplit"] == 1


def test_what_a_store_had_before_is_replaced_and_remembered(store):
    """A row without a time, or with its key alone, as a table of somebody's own may hold."""
    store.put(JOBS, frame(JOBS, [{"ipst": NAME}, {**record("j8c601010"), "timestamp": None}]))
    assert upsert(store, jobs(record(), record("j8c601010", wallclock=5.0)), "test") == Counts(updated=2)
    assert [row["wallclock"] for row in (*rows(store, JOBS), *rows(store, JOBS, "j8c601010"))] == [126.0, 5.0]
    assert [row["wallclock"] for row in (*rows(store, HISTORY), *rows(store, HISTORY, "j8c601010"))] == [None, 126.0]


def test_a_bad_answer_of_a_training_costs_no_record(store):
    bad = [record(bin_pred="x", mem_pred="1.5"), record("j91jc4010", bin_pred="2", mem_pred="much")]
    assert upsert(store, jobs(*bad), "test") == Counts(stored=2)
    assert contents(store, JOBS)[["bin_pred", "mem_pred"]].fillna(-1).to_numpy().tolist() == [[-1, 1.5], [2, -1]]


def test_mosaics_win_by_their_time_too(store):
    name = "acs_8ph_01"
    for timestamp, expected in ((5, Counts(stored=1)), (9, Counts(updated=1)), (7, Counts(older=1))):
        mosaic = {"ipst": name, "timestamp": timestamp, "wallclock": 1.0, "memory": 2.0, "disk": None}
        assert upsert(store, Batch(mosaics=pd.DataFrame([mosaic])), "test") == expected
    assert [row["timestamp"] for row in rows(store, MOSAICS, name)] == [9]


@pytest.mark.parametrize("cells", [{"memory": 0.0}, {"memory": -5.0}, {"wallclock": 1e300}])
def test_a_mosaic_whose_figures_cannot_be_true_is_quarantined(store, cells):
    mosaic = {"ipst": "acs_8ph_01", "timestamp": 5, "wallclock": 3.5, "memory": 60.1, **cells}
    assert upsert(store, Batch(mosaics=pd.DataFrame([mosaic])), "test") == Counts(quarantined=1)
    (entry,) = rows(store, QUARANTINE, "acs_8ph_01")
    assert entry["kind"] == IMPOSSIBLE
    assert entry["reason"].startswith(next(iter(cells)))


# -- What trainings found out ---------------------------------------------------------------------------------------

TRAINED = {**ANSWER, "split": "train", "trained_at": 1_700_000_000}


def told(row: dict) -> dict:
    return {name: row[name] for name in TRAINED}


def test_answers_stay_with_their_record(store):
    upsert(store, jobs({**record(), **TRAINED}), "test", now=10)
    assert upsert(store, jobs(record()), "test", now=20) == Counts(unchanged=1)
    (row,) = rows(store, JOBS)
    assert (told(row), row["stored_at"]) == (TRAINED, 10)
    # Another record has none of them; the history has, also when the older one comes again without.
    newer = record(timestamp=1_800_000_000, wallclock=200.0)
    assert upsert(store, jobs(newer), "test", now=30) == Counts(updated=1)
    assert set(told(rows(store, JOBS)[0]).values()) == {None}
    for moment in (40, 50):
        assert upsert(store, jobs(record()), "test", now=moment) == Counts(older=1)
        (row,) = rows(store, HISTORY)
        assert (told(row), row["stored_at"], row["replaced_at"]) == (TRAINED, 10, 30)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_later_training_has_the_last_word(store, order):
    """The earlier one's remains where the later one has none, whichever is copied first."""
    earlier = {**record(), **TRAINED}
    later = {**record(), "bin_pred": 3, "wall_pred": 7.5, "trained_at": 1_800_000_000}
    counts = Counts()
    for which in order:
        counts += upsert(store, jobs((earlier, later)[which]), "test")
    assert (counts.stored, counts.updated) == (1, 1)
    (row,) = rows(store, JOBS)
    assert told(row) == {**TRAINED, "bin_pred": 3, "wall_pred": 7.5, "trained_at": 1_800_000_000}
    assert store.count(HISTORY) == 0


def test_a_size_that_is_not_rounded_is_the_same_record(store):
    """As the pipeline's own table has it: what is read from it is rounded."""
    store.put(JOBS, frame(JOBS, [{**record(total_mb=93.7), **TRAINED}]))
    assert upsert(store, jobs(record(total_mb=94.0)), "test") == Counts(unchanged=1)
    assert told(rows(store, JOBS)[0]) == TRAINED
    assert write_back(store, trained(record(total_mb=94.0), mem_pred=1.25), 1_800_000_000) == (1, 0)
    (row,) = rows(store, JOBS)
    assert (row["total_mb"], row["mem_pred"]) == (93.7, 1.25)
    assert upsert(store, jobs(record(total_mb=95.0)), "test") == Counts(updated=1)


# -- Quarantine -----------------------------------------------------------------------------------------------------


def test_an_entry_is_opened_tried_resolved_and_opened_anew(store):
    def entry() -> tuple:
        (row,) = rows(store, QUARANTINE)
        return tuple(row[name] for name in ("first_seen", "last_seen", "tries", "resolved_at", "source", "reason"))

    assert upsert(store, refusal(timestamp=5), SOURCE, now=10) == Counts(quarantined=1)
    assert entry() == (10, 10, 1, None, SOURCE, "exit status 1")
    upsert(store, refusal(timestamp=6, reason="exit status 2"), SOURCE, now=20)
    assert entry() == (10, 20, 2, None, SOURCE, "exit status 2")
    upsert(store, jobs(record()), SOURCE, now=30)
    assert entry() == (10, 20, 2, 30, SOURCE, "exit status 2")
    upsert(store, jobs(record()), SOURCE, now=40)
    assert entry() == (10, 20, 2, 30, SOURCE, "exit status 2")
    upsert(store, refusal(timestamp=7), SOURCE, now=50)
    assert entry() == (50, 50, 1, None, SOURCE, "exit status 1")


def is_open(store: Store) -> bool:
    return any(row["resolved_at"] is None for row in rows(store, QUARANTINE))


def test_a_run_that_failed_later_is_not_settled_by_the_one_before(store):
    upsert(store, jobs(record(timestamp=100)), SOURCE)
    upsert(store, refusal(timestamp=200), SOURCE)
    # The same record from elsewhere says nothing of the run that failed.
    assert upsert(store, jobs(record(timestamp=100)), "backup.csv") == Counts(unchanged=1)
    assert is_open(store)
    upsert(store, jobs(record(timestamp=100, wallclock=5.0)), "backup.csv")
    assert is_open(store)
    # The bucket itself does: its failed run is gone.
    upsert(store, jobs(record(timestamp=100)), SOURCE)
    assert not is_open(store)
    upsert(store, refusal(timestamp=200), SOURCE)
    upsert(store, jobs(record(timestamp=200)), "elsewhere")
    assert not is_open(store)


def test_a_table_with_a_good_and_a_bad_row_of_a_dataset_is_the_same_when_read_again(store):
    batch = jobs(record(), record(memory=0.1))
    for moment, tries in ((10, 1), (20, 2), (30, 3)):
        assert upsert(store, batch, "table.csv", now=moment).quarantined == 1
        (entry,) = rows(store, QUARANTINE)
        assert (entry["first_seen"], entry["last_seen"], entry["tries"]) == (10, moment, tries)
        assert entry["resolved_at"] is None
    # Without the bad row it is settled.
    upsert(store, jobs(record()), "table.csv", now=40)
    assert not is_open(store)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("cell", [None, math.nan, math.inf, 10**400, "much", [1, 2], date(2026, 1, 1), b"\xff", pd.NA])
def test_a_bad_cell_of_any_kind_is_kept_with_its_reason(store, cell):
    batch = pd.DataFrame([record("j8c601010"), record(wallclock=cell)], dtype=object).assign(dtype=[1, 1])
    assert upsert(store, Batch(jobs=batch), "test") == Counts(stored=1, quarantined=1)
    (entry,) = rows(store, QUARANTINE)
    assert entry["kind"] == IMPOSSIBLE
    assert entry["reason"].startswith("wallclock is not a")
    assert json.loads(entry["record"], parse_constant=no_constant)["ipst"] == NAME


ODD = ["", "a\0b", "\0", 'a"b', "a,b\nc", "caf\u00e9 \u2713 \U0001f600", "x" * 5000, "%s", "nan", "NULL", "\ufeff"]


def test_any_name_can_be_quarantined(uri):
    refused = pd.DataFrame([{"ipst": name, "kind": "no dataset", "reason": f"{name} is none"} for name in ODD])
    # As names of rows in a table, too, where each row has an entry of its own.
    long = "y" * 20_000
    table = [*map(record, ODD), *(record(memory=-1, extra=cell) for cell in ([1, math.inf], long + "a", long))]
    with closing(open_sql(uri, create=True)) as store:
        for tries in (1, 2):
            assert upsert(store, Batch(refused=refused), SOURCE).quarantined == len(ODD)
            assert upsert(store, jobs(*table), "table.csv") == Counts(quarantined=len(table))
            found = contents(store, QUARANTINE)
            assert found["tries"].tolist() == [tries] * (len(ODD) + len(table))
        assert {name for name in ODD if "\0" not in name and len(name) < 1025} < set(found["ipst"])
        assert found["ipst"].str.len().max() == 1024


def test_what_is_refused_and_what_is_stored_come_together(store):
    """One change: where one part cannot be written, nothing is."""
    batch = Batch(
        jobs=pd.DataFrame([record(), record("j8c601010", memory=0.1)]),
        refused=pd.DataFrame([{"ipst": "x", "kind": "k", "reason": "r", "timestamp": "soon"}]),
    )
    with pytest.raises(ValueError, match="table quarantine, column timestamp: a cell is 'soon'; expected a whole"):
        upsert(store, batch, "test")
    assert [store.count(table) for table in (JOBS, QUARANTINE)] == [0, 0]


# -- Write back -----------------------------------------------------------------------------------------------------


def trained(*records: dict, **answers: object) -> pd.DataFrame:
    return pd.DataFrame(list(records)).assign(**answers)


def test_one_networks_training_leaves_the_others_answers(store):
    upsert(store, jobs({**record(), **TRAINED}), "test", now=10)
    assert write_back(store, trained(record(), bin_pred=2, split="test"), 1_800_000_000) == (1, 0)
    (row,) = rows(store, JOBS)
    assert told(row) == {**TRAINED, "bin_pred": 2, "split": "test", "trained_at": 1_800_000_000}
    assert row["stored_at"] == 10


def test_records_that_have_changed_or_gone_or_were_trained_later_are_left_alone(store):
    upsert(store, jobs(record(), record("j8c601010"), record("j8c601030")), "test")
    upsert(store, jobs(record("j8c601010", timestamp=1_800_000_000, memory=1.2)), "test")
    rows_before = rows(store, JOBS, "j8c601010")
    found = trained(record(), record("j8c601010"), record("j8c601030"), record("j8c601040"), bin_pred=1)
    assert write_back(store, found, 1_700_000_000) == (2, 2)
    assert rows(store, JOBS, "j8c601010") == rows_before
    assert [rows(store, JOBS, name)[0]["bin_pred"] for name in (NAME, "j8c601030")] == [1, 1]
    assert rows(store, JOBS, "j8c601040") == []
    late = write_back(store, trained(record(), bin_pred=2), 1_600_000_000)
    assert (late, str(late)) == ((0, 1), "0 records; 1 left alone: gone, changed or trained later")
    assert rows(store, JOBS)[0]["bin_pred"] == 1


def test_the_check_before_a_write_back_writes_nothing(tmp_path):
    open_sql(f"sqlite:///{tmp_path}/jobs.db", create=True).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    check_writable(f"sqlite:///{tmp_path}/jobs.db")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match="is no database; expected"):
        check_writable(str(tmp_path / "jobs.csv"))


def test_a_write_back_that_fails_in_the_middle_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 10)
    records = [record(f"j{number:07d}q", dtype=0) for number in range(35)]
    upsert(store, jobs(*records), "test")
    real = store.replace
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        # The last part has five rows.
        patch.setattr(store, "replace", lambda table, seen, new: (1 / (len(new) - 5), real(table, seen, new))[1])
        write_back(store, trained(*records, bin_pred=1), 1_700_000_000)
    assert contents(store, JOBS)["bin_pred"].count() == 0
    assert write_back(store, trained(*records, bin_pred=1), 1_700_000_000) == (35, 0)
