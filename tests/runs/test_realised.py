"""Jobs, kills and predictions of a store on one page."""

from contextlib import closing

import pandas as pd
import pytest

from calmlflow.jobs.predictions import open_store_emitter
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import KILLED, conform
from calmlflow.jobs.stores.open import open_store
from calmlflow.jobs.upsert import Batch, upsert
from calmlflow.runs.realised import read_ended, realised_content
from tests.samples.prediction_samples import predicted

JOBS = draw_sample(4)


@pytest.fixture
def uri(tmp_path):
    """Four jobs: the first was killed and finished later, the second finished, both with a prediction."""
    uri = f"sqlite:///{tmp_path}/jobs.db"
    first, second = JOBS.iloc[0], JOBS.iloc[1]
    kill = {**first, "timestamp": first["timestamp"] - 50, "kind": "time", "wallclock": 40.0}
    with closing(open_store(uri, create=True)) as store:
        upsert(store, Batch(JOBS), "test")
        store.put(KILLED, conform(pd.DataFrame([kill]), KILLED))
    emit = open_store_emitter(uri)
    for job in (first, second):
        emit(predicted(job, timestamp=float(job["timestamp"]) - 100))
    return uri


def test_jobs_kills_and_predictions_come_from_one_store_or_from_two(uri, tmp_path):
    content = realised_content(read_ended(uri))
    assert (content.ended, content.data) == (5, uri)
    counts = content.runs[["finished", "killed_time", "judged", "covered"]].sum()
    assert counts.tolist() == [2, 1, 2, 1]
    JOBS.to_csv(tmp_path / "jobs.csv", index=False)
    apart = realised_content(read_ended(str(tmp_path / "jobs.csv"), uri))
    assert (apart.ended, len(apart.runs), apart.runs["killed_time"].sum()) == (4, 2, 0)
    assert realised_content(read_ended(str(tmp_path / "jobs.csv"))).runs.empty


def test_an_empty_store_has_an_empty_page(tmp_path):
    uri = f"sqlite:///{tmp_path}/empty.db"
    open_store(uri, create=True).close()
    content = realised_content(read_ended(uri))
    assert (content.ended, len(content.runs)) == (0, 0)
