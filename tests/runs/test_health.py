"""The health of job records as a trend in MLflow."""

import threading
import time
from contextlib import closing

import pandas as pd
import pytest
from mlflow import MlflowClient

from calmlflow.jobs.health import check_health
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, upsert
from calmlflow.runs.health import log_health
from calmlflow.settings import HEALTH_EXPERIMENT
from tests.samples.store_samples import record


@pytest.fixture
def uri(tmp_path):
    """A store that has one record of an hour ago."""
    uri = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_sql(uri, create=True)) as store:
        add(store, "j8c601020")
    return uri


def add(store, *names: str) -> None:
    finished = int(time.time()) - 3600
    upsert(store, Batch(pd.DataFrame([record(name, timestamp=finished) for name in names])), "test")


def runs_of(store_name: str) -> list:
    client = MlflowClient()
    experiment = client.get_experiment_by_name(HEALTH_EXPERIMENT)
    return [
        run
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags.get("calmlflow.store") == store_name
    ]


def test_three_checks_are_three_points_of_one_run(tracking, uri):
    checks = []
    for number in range(3):
        with closing(open_sql(uri)) as store:
            add(store, f"j{number:07d}0")
            if number < 2:
                refused = pd.DataFrame({"ipst": [f"jlate{number:03d}0"], "kind": "a step failed", "reason": "r"})
                upsert(store, Batch(refused=refused), "test")
            else:
                # Stored after all.
                add(store, "jlate0000", "jlate0010")
            checks.append(check_health(store, None, time.time() + number))
        assert log_health(checks[-1])
    (found,) = runs_of(uri)
    assert (found.info.status, found.info.run_name) == ("FINISHED", uri)
    expected = {
        "records": [2, 3, 6],
        "records_acs": [2, 3, 6],
        "records_bin_2g": [2, 3, 6],
        "stored_7d": [2, 3, 6],
        "quarantine_open": [1, 2, 0],
        # A kind that is resolved comes down to 0.
        "quarantine_open_a_step_failed": [1, 2, 0],
        "quarantine_added_7d": [1, 2, 2],
        "healthy": [0, 0, 1],
    }
    for name, values in expected.items():
        history = MlflowClient().get_metric_history(found.info.run_id, name)
        assert [point.value for point in history] == values, name
        assert [(point.step, point.timestamp) for point in history] == [
            (check.moment, check.moment * 1000) for check in checks
        ]


def test_schedulers_that_begin_at_once_agree_on_one_run(tracking, uri):
    with closing(open_sql(uri)) as store:
        health = check_health(store, None)
    together = threading.Barrier(4)
    logged = []

    def look() -> None:
        together.wait()
        logged.append(log_health(health))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in logged
    assert len(runs_of(uri)) == 1
    assert log_health(health)
    (found,) = runs_of(uri)
    assert found.data.metrics["records"] == 1


def test_stores_have_runs_of_their_own_whatever_their_names_hold(tracking, uri, capsys):
    with closing(open_sql(uri)) as store:
        names = [f"{uri}?it's", f"{uri}?`quoted`", f"{uri}? OR tags.x != ''"]
        for name in names:
            store.name = name
            assert log_health(check_health(store, None)), capsys.readouterr().err
    assert [len(runs_of(name)) for name in names] == [1, 1, 1]


def test_an_experiment_that_was_deleted_is_told(tracking, uri, capsys):
    client = MlflowClient()
    with closing(open_sql(uri)) as store:
        health = check_health(store, None)
    assert log_health(health)
    experiment = client.get_experiment_by_name(HEALTH_EXPERIMENT).experiment_id
    client.delete_experiment(experiment)
    try:
        capsys.readouterr()
        assert not log_health(health)
        assert f"experiment {HEALTH_EXPERIMENT} is deleted; expected" in capsys.readouterr().err
    finally:
        client.restore_experiment(experiment)
