"""Ingest from a real S3 server into a real store: every dataset is stored, quarantined or pending."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs import ingest as module
from calmlflow.jobs.ingest import (
    BAD_CONTROL,
    BAD_METRICS,
    FILE_MISSING,
    NO_DATASET,
    STEP_FAILED,
    Ingested,
    ingest,
)
from calmlflow.jobs.quarantine import IMPOSSIBLE, dismiss_open, list_open
from calmlflow.jobs.stores.base import HISTORY, JOBS, KILLED, MOSAICS, PREDICTIONS, QUARANTINE, Store
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Counts
from calmlflow.storage.s3 import new_client
from tests.samples.ingest_samples import bad_line, control, metrics, name_of, put, put_job
from tests.samples.store_samples import contents, frame

DAY_S = 86_400


def open_entries(store: Store) -> pd.DataFrame:
    found = contents(store, QUARANTINE)
    return found[found["resolved_at"].isna()].set_index("ipst")


def nothing_lost(store: Store, found: Ingested, names: set[str]) -> None:
    """Every dataset of the bucket is stored, quarantined or pending, and the counts say so."""
    stored = {name for table in (JOBS, MOSAICS) for name in contents(store, table)["ipst"]}
    quarantined = set(open_entries(store).index)
    assert stored | quarantined | set(found.pending) == names
    assert found.total == len(names)


def test_a_job_becomes_a_record(s3, bucket, store):
    put_job(s3, bucket, "j8c601020", process=metrics("1:00:30.99", 1_500_000), preview=metrics("0:59.99", 200_000))
    written = s3.head_object(Bucket=bucket, Key="outputs/j8c601020/preview_metrics.txt")["LastModified"]
    assert ingest(store, bucket).counts == Counts(stored=1)
    (record,) = contents(store, JOBS).to_dict("records")
    expected = {
        **{"n_files": 17, "total_mb": 10, "drizcorr": 1, "pctecorr": 0, "crsplit": 0, "subarray": 0, "detector": 0},
        **{"dtype": 1, "instr": 0, "wallclock": 3630 + 59 + 1, "memory": 1.7, "mem_bin": 0},
    }
    assert {name: record[name] for name in expected} == expected
    assert record["timestamp"] == int(written.timestamp())


BROKEN = {
    "jfailed0q": ({"process": metrics(status=1)}, STEP_FAILED),
    "jnoview0q": ({"preview": None}, FILE_MISSING),
    "jnoctrl0q": ({"control": None}, FILE_MISSING),
    "jbinary0q": ({"process": bytes(range(256))}, BAD_METRICS),
    "jhuge000q": ({"process": b" " * 1_048_577}, BAD_METRICS),
    "jnokb000q": ({"process": metrics(resident_kb=0), "preview": metrics(resident_kb=300_000)}, BAD_METRICS),
    "jtwice00q": ({"control": control() + "n_files=18\n"}, BAD_CONTROL),
    "jword000q": ({"control": control(DRIZCORR="PERFROM")}, BAD_CONTROL),
    "jcontain0": ({"process": metrics(resident_kb=50_000), "preview": metrics(resident_kb=50_000)}, IMPOSSIBLE),
    "x00000000": ({}, NO_DATASET),
    "J8C601020": ({}, NO_DATASET),
}


def test_whatever_is_in_the_bucket_is_stored_or_told(s3, bucket, store):
    for name, (files, _) in BROKEN.items():
        put_job(s3, bucket, name, **files)
    put_job(s3, bucket, "jsound00q")
    found = ingest(store, bucket)
    nothing_lost(store, found, {*BROKEN, "jsound00q"})
    assert contents(store, JOBS)["ipst"].tolist() == ["jsound00q"]
    entries = open_entries(store)
    assert entries["kind"].to_dict() == {name: kind for name, (_, kind) in BROKEN.items()}
    assert found.reasons == pd.Series([kind for _, kind in BROKEN.values()]).value_counts().to_dict()
    assert entries["reason"].str.len().max() < 300
    assert entries["source"].unique().tolist() == [f"s3://{bucket}"]
    shown = json.loads(entries.loc["jfailed0q", "record"])
    assert shown["process_metrics.txt"] == metrics(status=1)


@pytest.mark.parametrize("name", ["acs_8ph_01", "wfpc2_8ph_01", "p0797x14y06"])
def test_a_mosaic_has_a_table_of_its_own(s3, bucket, store, name):
    put_job(s3, bucket, name, control=None)
    put(s3, bucket, f"outputs/{name}/drizzled.fits", b"x" * 5_000_000)
    assert ingest(store, bucket).counts.stored == 1
    (mosaic,) = contents(store, MOSAICS).to_dict("records")
    size = 5_000_000 + len(metrics()) + len(metrics("0:05.00", 100_000))
    assert (mosaic["wallclock"], mosaic["memory"], mosaic["disk"]) == (36, 0.5, size / 1e9)
    assert store.count(JOBS) == 0


def test_the_same_again_is_known_and_read_again_unchanged(s3, bucket, store):
    for number in range(7):
        put_job(s3, bucket, name_of(number))
    assert ingest(store, bucket).counts == Counts(stored=7)
    before = contents(store, JOBS)
    again = ingest(store, bucket)
    assert (again.known, again.counts) == (7, Counts())
    assert ingest(store, bucket, "all").counts == Counts(unchanged=7)
    assert ingest(store, bucket, [name_of(3), name_of(3)]).counts == Counts(unchanged=1)
    pd.testing.assert_frame_equal(contents(store, JOBS), before)
    assert store.count(HISTORY) == 0


def age_entries(store: Store, seconds: int) -> None:
    entries = contents(store, QUARANTINE)
    store.put(QUARANTINE, entries.assign(last_seen=entries["last_seen"] - seconds))


def test_the_quarantine_is_looked_at_again_when_files_have_changed(s3, bucket, store, monkeypatch):
    put_job(s3, bucket, "j8c601020", preview=None)
    put_job(s3, bucket, "jother020", process=metrics(status=2))
    assert ingest(store, bucket).counts.quarantined == 2
    # As if the clocks agreed, and the entries came long after the files.
    monkeypatch.setattr(module, "CLOCKS_APART_S", 0.0)
    age_entries(store, -100)
    assert (ingest(store, bucket).known, len(open_entries(store))) == (2, 2)
    again = ingest(store, bucket, retry_quarantine=True)
    assert (again.counts.quarantined, again.known) == (2, 0)
    assert open_entries(store)["tries"].tolist() == [2, 2]
    # What was missing is there now.
    age_entries(store, 1000)
    put_job(s3, bucket, "j8c601020")
    again = ingest(store, bucket)
    assert again.counts.stored == 1
    assert set(open_entries(store).index) == {"jother020"}
    resolved = contents(store, QUARANTINE).set_index("ipst").loc["j8c601020"]
    assert resolved["resolved_at"] >= resolved["first_seen"]


def test_a_rerun_that_fails_leaves_the_record_of_the_run_before_and_a_newer_one_wins(s3, bucket, store):
    put_job(s3, bucket, "j8c601020")
    ingest(store, bucket)
    put(s3, bucket, "outputs/j8c601020/process_metrics.txt", metrics(status=1))
    assert ingest(store, bucket, ["j8c601020"]).counts.quarantined == 1
    assert store.count(JOBS) == 1
    put(s3, bucket, "outputs/j8c601020/process_metrics.txt", metrics("0:09.00"))
    assert ingest(store, bucket).counts.updated == 1
    assert open_entries(store).empty
    assert contents(store, JOBS)["wallclock"].tolist() == [9 + 5 + 1]
    assert contents(store, HISTORY)["wallclock"].tolist() == [36]


def test_what_is_dismissed_is_settled_until_its_files_change(s3, bucket, store, monkeypatch):
    put_job(s3, bucket, "j8c601020", process=metrics(status=1))
    put_job(s3, bucket, "jother020", preview=None)
    monkeypatch.setattr(module, "CLOCKS_APART_S", 0.0)
    ingest(store, bucket)
    age_entries(store, -100)
    assert [entry["ipst"] for entry in list_open(store)] == ["j8c601020", "jother020"]
    assert [entry["ipst"] for entry in dismiss_open(store, STEP_FAILED)] == ["j8c601020"]
    assert [entry["ipst"] for entry in list_open(store)] == ["jother020"]
    assert ingest(store, bucket).known == 2
    assert ingest(store, bucket, retry_quarantine=True).counts.quarantined == 1
    # A failure in one bucket hides nothing of another one.
    other = f"{bucket}-ops"
    s3.create_bucket(Bucket=other)
    put_job(s3, other, "jother020")
    assert ingest(store, other).counts == Counts(stored=1)
    put_job(s3, bucket, "j8c601020")
    age_entries(store, 1000)
    assert ingest(store, bucket).counts == Counts(stored=1)


def test_figures_that_cannot_be_true_are_one_entry_and_are_read_again_when_they_change(s3, bucket, store, monkeypatch):
    small = {"process": metrics(resident_kb=50_000), "preview": metrics(resident_kb=50_000)}
    put_job(s3, bucket, "j8c601020", **small)
    put_job(s3, bucket, "acs_8ph_01", **small, control=None)
    monkeypatch.setattr(module, "CLOCKS_APART_S", 0.0)
    assert ingest(store, bucket).reasons == {IMPOSSIBLE: 2}
    put_job(s3, bucket, "j8c601020")
    age_entries(store, 1000)
    assert ingest(store, bucket).counts == Counts(stored=1, quarantined=1)
    assert set(open_entries(store).index) == {"acs_8ph_01"}
    assert store.count(QUARANTINE) == 2


def test_what_is_mended_between_reading_and_storing_is_read_again(s3, bucket, store, monkeypatch):
    put_job(s3, bucket, "j8c601020", preview=None)
    monkeypatch.setattr(module, "CLOCKS_APART_S", 0.0)
    upsert = module.upsert

    def late(*words, **options):
        put_job(s3, bucket, "j8c601020")
        monkeypatch.setattr(module, "upsert", upsert)
        return upsert(*words, **options)

    monkeypatch.setattr(module, "upsert", late)
    # S3 tells whole seconds: as if reading had begun some before the file was put there.
    begun = time.time() - 5
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: begun, perf_counter=time.perf_counter))
    assert ingest(store, bucket).counts.quarantined == 1
    assert ingest(store, bucket).counts.stored == 1


# -- Killed jobs ----------------------------------------------------------------------------------------------------


def size(store: Store, *names: str, age_s: float = DAY_S, kill_time: int = 600, source: str = "registry") -> None:
    sized = {"timestamp": time.time() - age_s, "n_files": 5.0, "bin_pred": 0, "kill_time": kill_time, "source": source}
    store.put(PREDICTIONS, frame(PREDICTIONS, [{**sized, "ipst": name} for name in names]))


def kills_of(store: Store) -> dict[str, str]:
    killed = contents(store, KILLED)
    return dict(zip(killed["ipst"], killed["kind"], strict=True))


def test_killed_jobs_are_kept_beside_the_quarantine_with_what_they_had_reached(s3, bucket, store):
    signal = "Command terminated by signal 9\n"
    put_job(s3, bucket, "jmemory0q", process=signal + metrics("0:41.00", 1_500_000), preview=None)
    put_job(s3, bucket, "jtimeout0", process=signal + metrics("9:30.00"), preview=None)
    put_job(s3, bucket, "jfailed0q", preview=metrics(status=1))
    put_job(s3, bucket, "jmachine0", process=metrics("0:10.00", status=143))
    # Sized, and never heard of again; the last one is not late yet, and the plan of another was never carried out.
    put_job(s3, bucket, "jvanish0q", process=None, preview=None)
    put_job(s3, bucket, "jwaiting0", process=None, preview=None)
    size(store, "jmemory0q", "jtimeout0", "jmachine0", "jvanish0q", "jplanned0")
    # A shadow answer sizes no job.
    size(store, "jvanish0q", age_s=60, source="shadow")
    size(store, "jwaiting0", age_s=1000)
    found = ingest(store, bucket)
    expected = {"jfailed0q": "failed", "jmachine0": "machine", "jmemory0q": "memory"}
    assert kills_of(store) == {**expected, "jtimeout0": "time", "jvanish0q": "time"}
    assert found.killed == {"failed": 1, "machine": 1, "memory": 1, "time": 2}
    assert set(open_entries(store).index) == set(kills_of(store))
    killed = contents(store, KILLED).set_index("ipst")
    assert killed["n_files"].tolist() == [17] * 5
    assert killed.loc["jmemory0q", ["wallclock", "memory"]].tolist() == [41.0, 1.792]
    assert killed.loc["jtimeout0", "wallclock"] == 600
    # The same again.
    for datasets in ("new", "all"):
        ingest(store, bucket, datasets, retry_quarantine=True)
        pd.testing.assert_frame_equal(contents(store, KILLED), killed.reset_index())


def test_a_job_that_was_sized_anew_may_still_run(s3, bucket, store):
    put_job(s3, bucket, "jrunning0", process=None, preview=None)
    size(store, "jrunning0")
    size(store, "jrunning0", age_s=60)
    assert ingest(store, bucket).total == 0
    assert open_entries(store).empty


def test_a_killed_job_that_finishes_has_a_record_and_stays_killed(s3, bucket, store):
    put_job(s3, bucket, "j8c601020", process=metrics("0:41.00", status=137))
    ingest(store, bucket)
    put_job(s3, bucket, "j8c601020")
    assert ingest(store, bucket).counts == Counts(stored=1)
    assert kills_of(store) == {"j8c601020": "memory"}
    assert open_entries(store).empty


def test_a_kill_in_the_file_of_a_run_that_went_well_is_kept(s3, bucket, store):
    put_job(s3, bucket, "j8c601020", process=metrics("0:41.00", 1_790_000, 137) + metrics("3:02.00", 2_650_000))
    assert ingest(store, bucket).counts == Counts(stored=1)
    assert contents(store, JOBS)["wallclock"].tolist() == [182 + 5 + 1]
    (killed,) = contents(store, KILLED).to_dict("records")
    assert (killed["kind"], killed["wallclock"], killed["memory"]) == ("memory", 41.0, 1.79)
    assert killed["timestamp"] == contents(store, JOBS)["timestamp"].item() - 182


def test_a_quarantined_job_without_metrics_is_killed_once_it_is_late(s3, bucket, store):
    put_job(s3, bucket, "j8c601020", preview=None)
    size(store, "j8c601020", age_s=60)
    ingest(store, bucket)
    assert kills_of(store) == {}
    size(store, "j8c601020", age_s=61, kill_time=60)
    store.put(PREDICTIONS, contents(store, PREDICTIONS).assign(kill_time=10))
    ingest(store, bucket)
    assert kills_of(store) == {"j8c601020": "time"}


def test_an_unknown_bucket_is_told_and_nothing_is_quarantined(tracking, store):
    for datasets in (["j8c601020", "acs_8ph_01"], "new"):
        with pytest.raises(InputError, match=r"^s3://no-such-bucket/.* cannot be .* \(NoSuchBucket\); expected"):
            ingest(store, "no-such-bucket", datasets)
    assert store.count(QUARANTINE) == 0


# -- A bad line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def through(server, tracking, monkeypatch):
    """A client of the S3 server through a line."""

    def connect(uri: str):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", uri)
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
        return new_client(connections=32)

    return connect


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_what_cannot_be_read_is_pending_and_stored_the_next_time(server, s3, bucket, store, through, fault):
    for number in range(9):
        put_job(s3, bucket, name_of(number))
    name = name_of(4).encode()
    with bad_line(server.s3_endpoint, lambda _, request: fault if name in request else "") as line:
        found = ingest(store, bucket, client=through(line.uri))
    nothing_lost(store, found, {name_of(number) for number in range(9)})
    assert found.pending[name_of(4)].startswith(f"s3://{bucket}/outputs/{name_of(4)}/process_metrics.txt cannot be")
    assert store.count(QUARANTINE) == 0
    again = ingest(store, bucket, client=through(server.s3_endpoint))
    assert (again.counts.stored, again.known, again.pending) == (1, 8, {})


# -- Kills ----------------------------------------------------------------------------------------------------------
INGEST = """
import sys
from calmlflow.jobs import ingest
from calmlflow.jobs.stores.sql import open_sql
# Few are read ahead, so that what is read and what is stored take turns.
ingest.BATCH, ingest.WORKERS = 7, 2
ingest.ingest(open_sql(sys.argv[1], create=True), sys.argv[2])
"""


@pytest.mark.slow
def test_killed_at_any_request_and_run_again(server, s3, bucket, tmp_path):
    names = [name_of(number) for number in range(60)]
    broken = dict.fromkeys(names[::7], STEP_FAILED) | dict.fromkeys(names[5::14], FILE_MISSING)
    files = {STEP_FAILED: {"process": metrics(status=1)}, FILE_MISSING: {"preview": None}}
    for name in names:
        put_job(s3, bucket, name, **files.get(broken.get(name), {}))
    sound = sorted({*names} - {*broken})
    left_over = []
    for seed in range(10):
        uri = f"sqlite:///{tmp_path}/{seed}.db"
        fatal = random.Random(seed).randrange(3 * len(names) - len(broken))
        with bad_line(server.s3_endpoint) as line:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_ENDPOINT_URL_S3": line.uri}
            command = [sys.executable, "-c", INGEST, uri, bucket]
            child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            line.on_request.append(lambda number, child=child, fatal=fatal: number == fatal and child.kill())
            _, errors = child.communicate(timeout=120)
        assert child.returncode == -signal.SIGKILL, (seed, fatal, errors)
        with closing(open_sql(uri, create=True)) as store:
            before, entries = ({*contents(store, table)["ipst"]} for table in (JOBS, QUARANTINE))
            assert before <= {*sound}, seed
            assert entries <= {*broken}, seed
            # Whole batches, or nothing of them.
            left_over.append(len(before) + len(entries))
            assert left_over[-1] % 7 == 0, seed
            found = ingest(store, bucket)
            assert (found.total, found.pending, found.known) == (len(names), {}, len(before)), seed
            assert found.counts == Counts(stored=len(sound) - len(before), quarantined=len(broken)), seed
            assert contents(store, JOBS)["ipst"].tolist() == sound, seed
            assert store.count(HISTORY) == 0, seed
            kept = open_entries(store)
            assert kept["kind"].to_dict() == broken, seed
            assert kept["tries"].to_dict() == {name: 1 + (name in entries) for name in broken}, seed
    # Some were killed before anything was stored, some after.
    assert len(set(left_over)) > 3
