"""Ingest that is killed at any moment, and run again: nothing is lost, and nothing is there twice."""

import os
import random
import signal
import subprocess
import sys
import uuid

import pytest

from calmlflow.jobs.ingest import FILE_MISSING, STEP_FAILED, ingest
from calmlflow.jobs.stores.base import HISTORY, JOBS, QUARANTINE
from calmlflow.jobs.stores.sql import open_sql
from tests.samples.ingest_samples import bad_line, metrics, name_of, put_job
from tests.samples.store_samples import contents

JOBS_IN_BUCKET = 60
# Number -> what is wrong with its files; the rest are sound.
BROKEN = {
    **{number: ({"process": metrics(status=1)}, STEP_FAILED) for number in range(0, JOBS_IN_BUCKET, 7)},
    **{number: ({"preview": None}, FILE_MISSING) for number in range(5, JOBS_IN_BUCKET, 14)},
}
INGEST = """
import sys
from calmlflow.jobs import ingest
from calmlflow.jobs.stores.sql import open_sql
# Few are read ahead, so that what is read and what is stored take turns.
ingest.BATCH, ingest.WORKERS = 7, 2
ingest.ingest(open_sql(sys.argv[1], create=True), sys.argv[2])
"""


@pytest.fixture(params=["sqlite", "postgres"])
def fresh(request, tmp_path, postgres):
    """Gives the address of a new store, as often as it is called."""
    import psycopg

    made: list[str] = []

    def give() -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path}/{uuid.uuid4().hex}.db"
        made.append(f"kill_{uuid.uuid4().hex[:12]}")
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {made[-1]}")
        return postgres.replace("/postgres?", f"/{made[-1]}?")

    yield give
    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
def test_killed_at_any_request_and_run_again(server, s3, fresh):
    bucket = f"jobs-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    for number in range(JOBS_IN_BUCKET):
        put_job(s3, bucket, name_of(number), **BROKEN.get(number, ({}, ""))[0])
    names = {name_of(number) for number in range(JOBS_IN_BUCKET)}
    broken = {name_of(number): kind for number, (_, kind) in BROKEN.items()}
    left_over = []
    for seed in range(20):
        uri = fresh()
        fatal = random.Random(seed).randrange(3 * JOBS_IN_BUCKET - len(BROKEN))
        with bad_line(server.s3_endpoint) as line:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_ENDPOINT_URL_S3": line.uri}
            command = [sys.executable, "-c", INGEST, uri, bucket]
            child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            line.on_request.append(lambda number, child=child, fatal=fatal: number == fatal and child.kill())
            _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, (seed, fatal, errors)
        store = open_sql(uri, create=True)
        before = set(contents(store, JOBS)["ipst"])
        entries = set(contents(store, QUARANTINE)["ipst"])
        assert before <= names - set(broken), seed
        assert entries <= set(broken), seed
        left_over.append(len(before) + len(entries))
        # Whole batches, or nothing of them.
        assert left_over[-1] % 7 == 0, seed
        found = ingest(store, bucket)
        assert (found.total, found.pending) == (JOBS_IN_BUCKET, {}), seed
        assert found.counts.stored == len(names) - len(broken) - len(before), seed
        assert (found.known, found.counts.updated, found.counts.unchanged) == (len(before), 0, 0), seed
        rows = contents(store, JOBS)
        assert rows["ipst"].tolist() == sorted(names - set(broken)), seed
        assert store.count(HISTORY) == 0, seed
        kept = contents(store, QUARANTINE).set_index("ipst")
        assert kept["kind"].to_dict() == broken, seed
        assert kept["tries"].to_dict() == {name: 1 + (name in entries) for name in broken}, seed
        assert kept["resolved_at"].isna().all(), seed
        store.close()
    # Some were killed before anything was stored, some after.
    assert len(set(left_over)) > 3
