"""The contract of a store, held by SQLite, PostgreSQL and DynamoDB."""

import pandas as pd
import pytest

from calmlflow.jobs.stores.base import HISTORY, JOBS, QUARANTINE, TABLES, TRAINING_COLUMNS, conform
from calmlflow.jobs.stores.open import open_store, read_jobs
from calmlflow.jobs.upsert import Batch, Counts, upsert, write_back
from tests.samples.store_samples import ANSWER as SMALLEST
from tests.samples.store_samples import ROWS, contents, frame, record

# DynamoDB keeps nothing as small as 1e-300.
ANSWER = {**SMALLEST, "wc_err": 1e-100}


@pytest.fixture(params=["sqlite", "postgres", "dynamodb"])
def uri(request, tmp_path) -> str:
    kind = request.param
    return f"sqlite:///{tmp_path}/jobs.db" if kind == "sqlite" else request.getfixturevalue(f"{kind}_uri")


@pytest.fixture
def store(uri):
    opened = open_store(uri, create=True)
    yield opened
    opened.close()


def jobs(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def test_nothing_is_there_at_first(store):
    for table in TABLES:
        assert store.count(table) == 0
        assert contents(store, table).empty
        pd.testing.assert_frame_equal(store.get(table, ["j8c601020"]), conform(pd.DataFrame(), table))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_comes_back_as_it_was_put(uri, store, table):
    rows = frame(table, ROWS[table])
    if "wc_err" in rows:
        rows["wc_err"] = rows["wc_err"].replace(SMALLEST["wc_err"], ANSWER["wc_err"])
    store.put(table, rows)
    again = open_store(uri)
    for opened in (store, again):
        found = conform(contents(opened, table), table)
        pd.testing.assert_frame_equal(found, rows, check_exact=True)
        got = opened.get(table, [*rows["ipst"], "nobody"]).sort_values(list(table.key)).reset_index(drop=True)
        pd.testing.assert_frame_equal(got, rows, check_exact=True)
        assert opened.count(table) == len(rows)
    again.close()


def test_a_row_of_the_same_key_is_replaced_as_a_whole(store):
    store.put(JOBS, frame(JOBS, [record(**ANSWER), record("j91jc4010")]))
    new = frame(JOBS, [record(memory=2.5)])
    store.put(JOBS, new)
    pd.testing.assert_frame_equal(store.get(JOBS, ["j8c601020"]), new)
    found = pd.concat(store.read(JOBS, ["n_files", "ipst"]))
    assert list(found.columns) == ["n_files", "ipst"]
    assert sorted(found["ipst"]) == ["j8c601020", "j91jc4010"]


def test_within_a_change_what_was_put_is_there(store):
    store.put(JOBS, frame(JOBS, [record()]))
    with store.change():
        store.put(JOBS, frame(JOBS, [record(memory=2.5), record("j91jc4010")]))
        assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [2.5]
        assert store.count(JOBS) == 2
        store.put(JOBS, frame(JOBS, [record(memory=3.5)]))
    assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [3.5]
    assert store.count(JOBS) == 2


def test_a_change_that_raises_leaves_all_as_it_was(uri, store):
    if uri.startswith("dynamodb:"):
        pytest.skip("DynamoDB writes at once, as `Store.change` says")
    store.put(JOBS, frame(JOBS, [record()]))
    with pytest.raises(ZeroDivisionError), store.change():
        store.put(JOBS, frame(JOBS, [record(memory=2.5), record("j91jc4010")]))
        store.put(HISTORY, frame(HISTORY, ROWS[HISTORY]))
        raise ZeroDivisionError
    pd.testing.assert_frame_equal(conform(contents(store, JOBS), JOBS), frame(JOBS, [record()]))
    assert store.count(HISTORY) == 0
    store.put(JOBS, frame(JOBS, [record(memory=2.5)]))
    assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [2.5]


def test_the_newer_record_wins_and_the_other_one_is_remembered(store):
    old, new = record(timestamp=100, memory=1.0), record(timestamp=200, memory=1.1)
    assert upsert(store, Batch(jobs=jobs(old)), "test", now=10) == Counts(stored=1)
    assert upsert(store, Batch(jobs=jobs(old)), "test", now=15) == Counts(unchanged=1)
    assert store.count(HISTORY) == 0
    assert upsert(store, Batch(jobs=jobs(new)), "test", now=20) == Counts(updated=1)
    assert upsert(store, Batch(jobs=jobs(old | {"memory": 1.2})), "test", now=30) == Counts(older=1)
    assert store.get(JOBS, ["j8c601020"])["memory"].tolist() == [1.1]
    assert sorted(contents(store, HISTORY)["memory"]) == [1.0, 1.2]
    assert contents(store, HISTORY)["timestamp"].tolist() == [100, 100]


def test_what_cannot_be_stored_is_quarantined_counted_and_resolved(store):
    bad = Batch(jobs=jobs(record(memory=0.01), record("j91jc4010")))
    assert upsert(store, bad, "test", now=10) == Counts(stored=1, quarantined=1)
    assert upsert(store, bad, "test", now=20) == Counts(unchanged=1, quarantined=1)
    (entry,) = store.get(QUARANTINE, ["j8c601020"]).to_dict("records")
    assert (entry["first_seen"], entry["last_seen"], entry["tries"]) == (10, 20, 2)
    assert "0.2 GB" in entry["reason"]
    assert pd.isna(entry["resolved_at"])
    assert upsert(store, Batch(jobs=jobs(record())), "test", now=30) == Counts(stored=1)
    assert store.get(QUARANTINE, ["j8c601020"])["resolved_at"].tolist() == [30]


def test_answers_are_written_only_to_the_records_that_they_are_of(uri, store):
    upsert(store, Batch(jobs=jobs(record(), record("j91jc4010"), record("j8c601010"))), "test", now=10)
    trained = read_jobs(uri).valid.assign(**ANSWER, split="train")
    upsert(store, Batch(jobs=jobs(record("j91jc4010", timestamp=2e9, memory=1.2))), "test", now=20)
    gone = trained.iloc[[0]].assign(ipst="lbny02010")
    assert write_back(store, pd.concat([trained, gone]), 1_700_000_000) == (2, 2)
    found = contents(store, JOBS).set_index("ipst")
    assert found["trained_at"].dropna().to_dict() == {"j8c601010": 1_700_000_000, "j8c601020": 1_700_000_000}
    for name in set(TRAINING_COLUMNS) - {"trained_at"}:
        assert found.loc[["j8c601010", "j8c601020"], name].tolist() == [{**ANSWER, "split": "train"}[name]] * 2
    assert found.loc["j91jc4010", "memory"] == 1.2
    assert "lbny02010" not in found.index


def test_a_record_that_is_as_it_was_seen_is_replaced(store):
    store.put(JOBS, frame(JOBS, [record(), record("j91jc4010")]))
    names_of = ["j8c601020", "j91jc4010", "lbny02010"]
    seen = store.get(JOBS, names_of).set_index("ipst").reindex(names_of).reset_index()
    seen = conform(seen, JOBS)
    whole = frame(JOBS, [record(memory=2.5), record("j91jc4010", memory=3.5), record("lbny02010")])
    with store.change():
        assert store.replace(JOBS, seen, whole).tolist() == [True] * 3
    pd.testing.assert_frame_equal(contents(store, JOBS), whole)
    # Columns that are not given stay.
    some = pd.DataFrame({"ipst": names_of, "bin_pred": [1, 2, None]})
    with store.change():
        assert store.replace(JOBS, whole, some).tolist() == [True] * 3
    pd.testing.assert_frame_equal(contents(store, JOBS), conform(whole.assign(bin_pred=some["bin_pred"]), JOBS))
