"""Figures of a store for Prometheus and CloudWatch: the last 30 days, and nothing that is undefined."""

import json
import time
from contextlib import closing

import pandas as pd
import pytest

from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.stores.base import KILLED, PREDICTIONS
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, upsert
from tests.predictor.test_metrics import read
from tests.samples.console_command import run_here
from tests.samples.prediction_samples import predicted
from tests.samples.store_samples import ROWS, record

DAY = 86_400


@pytest.fixture
def uri(tmp_path):
    """A store of three jobs with predictions, one of them older than 30 days, a kill, and a quarantine entry."""
    uri = f"sqlite:///{tmp_path}/jobs.db"
    now = int(time.time())
    jobs = [record(f"j000000{n}0", timestamp=now - age * DAY) for n, age in enumerate((1, 2, 40))]
    # One rung too high, in time; as it should be, but killed.
    answers = [predicted(pd.Series(job), bin_pred=job["mem_bin"] + (n == 0)) for n, job in enumerate(jobs)]
    kill = {**ROWS[KILLED][0], "ipst": "j00000010", "timestamp": now - 3 * DAY, "kind": "time", "wallclock": 3600.0}
    answers.append({**answers[1], "timestamp": now - 3.5 * DAY})
    with closing(open_sql(uri, create=True)) as store:
        upsert(store, Batch(pd.DataFrame(jobs)), "test")
        upsert(store, Batch(refused=pd.DataFrame({"ipst": ["jbad00010"], "kind": "a", "reason": "r"})), "test")
        store.put(PREDICTIONS, pd.DataFrame(answers).assign(unseen=0))
        store.put(KILLED, pd.DataFrame([kill]))
    return uri


def test_prometheus_and_cloudwatch_are_told_the_same(uri, capsys):
    code, out, _ = run_here(capsys, "jobs", "status", "--store", uri, "--no-log", "--format", "prometheus")
    assert code == 1
    found = read(out)
    prices = [rung.usd_per_hour / rung.jobs_at_once / 3600 for rung in LADDER]
    job = record()
    needed = int(job["mem_bin"])
    perfect = 2 * prices[needed] * job["wallclock"]
    excess = (prices[needed + 1] - prices[needed]) * job["wallclock"] + prices[needed] * 3600
    assert found["calmlflow_realised_jobs", uri] == 3
    assert found["calmlflow_realised_coverage", uri] == pytest.approx(2 / 3)
    assert found["calmlflow_realised_excess_dollars", uri] == pytest.approx(excess)
    assert found["calmlflow_realised_excess_cost", uri] == pytest.approx(excess / perfect)
    assert found["calmlflow_newest_job_age_seconds", uri] == pytest.approx(DAY, abs=60)
    assert found["calmlflow_quarantine_open", uri, "a"] == 1
    assert found["calmlflow_killed_jobs", uri, "time"] == 1
    assert (found["calmlflow_records", uri], found["calmlflow_store_healthy", uri]) == (3, 0)
    assert found["calmlflow_status_timestamp_seconds", uri] == pytest.approx(time.time(), abs=60)

    code, out, _ = run_here(capsys, "jobs", "status", "--store", uri, "--no-log", "--format", "emf")
    line = json.loads(out)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert (code, directive["Namespace"], directive["Dimensions"]) == (1, "calmlflow", [[]])
    measured = {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    assert measured == {
        "Quarantine": 1,
        "AgeDays": pytest.approx(1, abs=0.001),
        "Coverage": pytest.approx(2 / 3),
        "ExcessDollars": pytest.approx(excess),
    }


def test_without_jobs_and_predictions_nothing_undefined_is_told(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/empty.db"
    open_sql(uri, create=True).close()
    words = ("jobs", "status", "--store", uri, "--no-log", "--format")
    names = {name for name, *_ in read(run_here(capsys, *words, "prometheus")[1])}
    assert names == {
        *("calmlflow_status_timestamp_seconds", "calmlflow_store_healthy", "calmlflow_records", "calmlflow_killed_jobs")
    }
    # Predictions, of jobs that have not ended.
    with closing(open_sql(uri)) as store:
        store.put(PREDICTIONS, pd.DataFrame([predicted(pd.Series(record()))]).assign(unseen=0))
    more = read(run_here(capsys, *words, "prometheus")[1])
    assert {name for name, *_ in more} - names == {"calmlflow_realised_jobs"}
    line = json.loads(run_here(capsys, *words, "emf")[1])
    assert (line["Quarantine"], "AgeDays" in line, "Coverage" in line) == (0, False, False)


def test_predictions_that_cannot_be_read_cost_the_realised_figures_alone(uri, tmp_path, capsys):
    away = f"sqlite:///{tmp_path}/nowhere.db"
    words = ("jobs", "status", "--store", uri, "--no-log", "--format", "prometheus", "--predictions", away)
    _, out, err = run_here(capsys, *words)
    assert not any(name.startswith("calmlflow_realised") for name, *_ in read(out))
    assert f"warning: no realised figures: {away} does not exist" in err


def test_json_by_either_name(uri, capsys):
    texts = [run_here(capsys, "jobs", "status", "--store", uri, "--no-log", *words)[1] for words in
             (("--json",), ("--format", "json"))]  # fmt: skip
    assert [json.loads(text)["records"] for text in texts] == [3, 3]
