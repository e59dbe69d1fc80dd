"""Odd rows and odd places: what a hostile reader of stores found, each held by a test."""

import multiprocessing
import os
import signal
import uuid
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.health import check_health
from calmlflow.jobs.quarantine import IMPOSSIBLE, list_open
from calmlflow.jobs.stores.base import HISTORY, JOBS, MOSAICS, QUARANTINE
from calmlflow.jobs.stores.open import open_store, read_table
from calmlflow.jobs.upsert import Batch, keep, write_back
from tests.samples.store_samples import contents, frame, record

NOW = 1_700_000_000


@pytest.fixture
def store(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/jobs.db", create=True)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("cells", "word"),
    [({"memory": 0.0}, "memory"), ({"memory": -5.0}, "memory"), ({"wallclock": 1e300}, "wallclock"), ({}, "")],
)
def test_a_mosaic_whose_figures_cannot_be_true_is_quarantined(store, cells, word):
    mosaic = {"ipst": "acs_8ph_01", "timestamp": NOW, "wallclock": 3.5, "memory": 60.1, **cells}
    counts = keep(store, Batch(mosaics=pd.DataFrame([mosaic])), "test")
    assert (counts.stored, counts.quarantined) == ((0, 1) if cells else (1, 0))
    assert store.count(MOSAICS) == counts.stored
    assert [entry["kind"] for entry in list_open(store)] == [IMPOSSIBLE] * counts.quarantined
    assert all(word in entry["reason"] for entry in list_open(store))


def test_a_training_that_ends_late_leaves_the_answers_of_a_later_one(store):
    jobs = pd.DataFrame([record(), record("j91jc4010")])
    keep(store, Batch(jobs=jobs), "test")
    assert write_back(store, jobs.assign(bin_pred=2).iloc[:1], 200) == (1, 0)
    assert write_back(store, jobs.assign(bin_pred=1), 100) == (1, 1)
    assert contents(store, JOBS)[["bin_pred", "trained_at"]].to_numpy().tolist() == [[2, 200], [1, 100]]


def test_a_bad_answer_of_a_training_costs_no_record(store):
    jobs = pd.DataFrame([record(bin_pred="x", mem_pred="1.5"), record("j91jc4010", bin_pred="2", mem_pred="much")])
    assert keep(store, Batch(jobs=jobs), "test").stored == 2
    found = contents(store, JOBS)
    assert found["bin_pred"].fillna(-1).tolist() == [-1, 2]
    assert found["mem_pred"].fillna(-1).tolist() == [1.5, -1]


def test_bad_rows_with_lists_and_long_texts_are_entries_of_their_own(store):
    long = "y" * 20_000
    rows = [record(memory=-1, extra=[1, np.inf]), record(memory=-1, extra=long + "a"), record(memory=-1, extra=long)]
    assert keep(store, Batch(jobs=pd.DataFrame(rows)), "test").quarantined == 3
    assert store.count(QUARANTINE) == 3


def test_health_of_a_file_whose_cells_are_no_numbers(tmp_path):
    good = pd.DataFrame([record(timestamp=NOW - 60), record("j91jc4010")]).astype(object)
    good["stored_at"] = pd.Series([NOW - 30, NOW - 30], dtype=object)
    good.loc[1, ["timestamp", "mem_bin", "stored_at"]] = ["abc", "?", "x"]
    good.to_csv(tmp_path / "jobs.csv", index=False)
    with closing(open_store(str(tmp_path / "jobs.csv"))) as opened:
        health = check_health(opened, 3600, NOW)
    assert (health.records, health.newest, health.newest_age_s, health.problems) == (2, "j8c601020", 60, [])


def test_a_link_to_a_file_is_the_same_store(tmp_path):
    (tmp_path / "links").mkdir()
    path, link = tmp_path / "jobs.csv", tmp_path / "links" / "jobs.csv"
    path.write_text(frame(JOBS, [record()]).to_csv(index=False))
    link.symlink_to(path)
    with closing(open_store(str(link))) as opened:
        keep(opened, Batch(jobs=pd.DataFrame([record(timestamp=NOW)])), "test")
    assert link.is_symlink()
    assert list((tmp_path / "links").iterdir()) == [link]
    with closing(open_store(str(path))) as opened:
        assert (contents(opened, JOBS)["timestamp"].tolist(), opened.count(HISTORY)) == ([NOW], 1)


def _die_in_change(path: str) -> None:
    store = open_store(path)
    with store.change():
        store.put(JOBS, frame(JOBS, [record("j91jc4010")]))
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]


def test_what_a_killed_change_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(frame(JOBS, [record()]).to_csv(index=False))
    for _ in range(3):
        # The rename is the moment at which the new file is there under another name.
        child = multiprocessing.get_context("fork").Process(target=_die_in_change, args=(str(path),))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".jobs.csv.new-*"))) == 1
    with closing(open_store(str(path))) as opened:
        opened.put(JOBS, frame(JOBS, [record("jother020")]))
        assert contents(opened, JOBS)["ipst"].tolist() == ["j8c601020", "jother020"]
    assert list(tmp_path.glob(".jobs.csv.new-*")) == []


def test_a_prefix_in_s3_gives_records_and_no_other_table(s3):
    bucket = f"jobs-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    with closing(open_store(f"s3://{bucket}/some/jobs.parquet", create=True)) as opened:
        for timestamp in (1, 2):
            refused = pd.DataFrame([{"ipst": "x", "kind": "k", "reason": "r"}])
            keep(opened, Batch(jobs=pd.DataFrame([record(timestamp=timestamp)]), refused=refused), "test")
        assert (opened.count(HISTORY), opened.count(QUARANTINE)) == (1, 1)
    assert read_table(f"s3://{bucket}/some/")["timestamp"].tolist() == [2]


def test_a_table_of_dynamodb_is_not_written_through_a_filter(dynamodb_uri):
    with pytest.raises(InputError, match="filters by instr; expected no filter there"):
        open_store(f"{dynamodb_uri}&instr=0", create=True)
