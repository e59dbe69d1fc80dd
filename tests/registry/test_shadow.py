"""Judging a challenger by its shadow answers to the jobs that have finished since."""

from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.jobs.stores.sql import open_sql
from calmlflow.jobs.upsert import Batch, upsert
from calmlflow.registry.limits import read_limits
from calmlflow.registry.shadow import paired_answers, shadow_checks
from calmlflow.registry.versions import Version
from tests.samples.prediction_samples import predicted, recorded

LIMITS = read_limits("default")
JOBS = draw_sample(600).drop_duplicates("ipst").reset_index(drop=True)


def version(number: int) -> Version:
    return Version("calcloud-predictor", number, "None", "READY", "", "", "", {}, 0)


def answers(job: pd.Series, factor: float = 1.0) -> list[dict]:
    """What version 3 answered, right each time, and version 4 in the shadow, this much more time and memory."""
    live = predicted(job, version="3")
    values = {name: live[name] * factor for name in ("mem_pred", "wall_pred")}
    return [live, {**live, "version": "4", "source": "shadow", "timestamp": live["timestamp"] + 0.5, **values}]


@pytest.fixture
def store(tmp_path):
    """Keep some jobs with the answers to them; gives the URI."""

    def keep(jobs: pd.DataFrame, factor: float = 1.0) -> str:
        uri = f"sqlite:///{tmp_path}/{len(jobs)}-{factor}.db"
        rows = [row for _, job in jobs.iterrows() for row in answers(job, factor)]
        with closing(open_sql(uri, create=True)) as opened:
            upsert(opened, Batch(jobs), "test")
            if rows:
                opened.put(PREDICTIONS, pd.DataFrame(rows).assign(unseen=0))
        return uri

    return keep


def checks(uri: str, predictions: str = "") -> dict[str, bool | None]:
    found, metrics = shadow_checks(version(4), version(3), LIMITS, uri, predictions)
    assert ("jobs_compared_live" in metrics) == (len(found) > 1)
    return {check.name: check.passed for check in found}


def test_equal_answers_pass_and_worse_ones_fail(store):
    equal, worse = checks(store(JOBS)), checks(store(JOBS, 2.0))
    assert {"live.mem_bin.accuracy", "live.mem_bin.excess_cost", "live.wallclock.kill_time_coverage"} <= set(equal)
    assert False not in equal.values()
    assert {name for name, passed in worse.items() if passed is False} >= {"live.memory.mae", "live.wallclock.mae"}


def test_too_few_jobs_decide_nothing_and_jobs_that_cannot_be_read_fail(store, tmp_path):
    for few in (0, 39):
        assert checks(store(JOBS.iloc[:few])) == {"live": None}
    assert checks(f"sqlite:///{tmp_path}/nowhere.db") == {"live": False}
    JOBS.to_csv(tmp_path / "jobs.csv", index=False)
    assert checks(str(tmp_path / "jobs.csv")) == {"live": False}


def test_only_jobs_that_ran_with_the_champion_and_have_a_whole_shadow_answer_before_their_end_count():
    jobs = JOBS.iloc[:8]
    both, late, other_shadow, other_live, replaced, policy, half, twice = (row for _, row in jobs.iterrows())
    end = float(late["timestamp"])
    predictions = recorded(
        *answers(both),
        *[{**row, "timestamp": row["timestamp"] if row["source"] != "shadow" else end + 1} for row in answers(late)],
        *[{**row, "version": {"4": "5"}.get(row["version"], "3")} for row in answers(other_shadow)],
        *[{**row, "version": {"3": "2"}.get(row["version"], "4")} for row in answers(other_live)],
        *answers(replaced),
        predicted(replaced, version="2", timestamp=float(replaced["timestamp"])),
        *[{**row, "source": {"registry": "policy"}.get(row["source"], "shadow")} for row in answers(policy)],
        *[{**row, "kill_time": None} for row in answers(half)],
        *answers(twice),
        {**answers(twice)[1], "timestamp": float(twice["timestamp"]), "bin_pred": 3},
    ).predictions
    paired, this, other = paired_answers(jobs, predictions, 4, 3)
    assert paired["ipst"].tolist() == [both["ipst"], twice["ipst"]]
    assert this["bin_pred"].tolist() == [both["mem_bin"], 3]
    assert other["bin_pred"].tolist() == paired["mem_bin"].tolist()
    assert np.allclose(this["probabilities"].sum(axis=1), 1)
