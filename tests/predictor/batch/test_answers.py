"""Answers by columns: names and evidence, policies, missing networks."""

import numpy as np
import pyarrow as pa
import pytest

from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch.answers import answer_schema, answer_table, memory_warnings
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import Finished
from tests.samples.batch_samples import serving_bundle


@pytest.fixture
def bundle(tmp_path):
    """With evidence of the first 500 jobs of the sample."""
    return serving_bundle(tmp_path, evidence=Finished.of(JOBS[:500])).bundle


def jobs_of(features, mosaics=()):
    is_mosaic = np.isin(np.arange(len(features)), mosaics)
    names = pa.array([f"job {number}" for number in range(len(features))])
    return Jobs(names, np.asarray(features, dtype=np.int64), is_mosaic, {}, {})


JOBS = draw_sample(3000)
SAMPLE = JOBS[list(FEATURES)].to_numpy()


def test_answers_are_those_of_the_bundle_by_name_and_row(bundle):
    jobs = Jobs(pa.array(JOBS["ipst"]), SAMPLE.astype(np.int64), np.zeros(3000, dtype=bool), {}, {})
    found = answer_table(jobs, bundle)
    expected = bundle.predict(SAMPLE, JOBS["ipst"].to_numpy())
    for name in ("bin_pred", "mem_pred", "wall_pred", "kill_time"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(found["prob_16g"], expected["probabilities"][:, 2], rtol=1e-4)
    for place, level in enumerate(("row", "programme", "visit", "run")):
        np.testing.assert_array_equal(found[f"jobs_{level}"], expected["evidence"][:, place])
    assert found["jobs_run"].to_numpy().sum() == 500


def test_without_a_bundle_the_policies_answer():
    found = answer_table(jobs_of(SAMPLE[:3], mosaics=[1]), None).to_pydict()
    assert found["bin_pred"] == [1, 1, 1]
    assert found["wall_pred"] == [1200, 43_200, 1200]
    assert found["kill_time"] == [7200, 259_200, 7200]
    assert found["prob_8g"] == [1, 1, 1]


def test_columns_of_a_network_that_the_bundle_lacks_are_null_but_for_mosaics(bundle, tmp_path):
    found = answer_table(jobs_of(SAMPLE[:3], mosaics=[1]), Bundle.load(tmp_path / "bundle", ["mem_reg"]))
    assert found.schema == answer_schema(LADDER)
    assert found["mem_pred"].null_count == 0
    for name in ("bin_pred", "wall_pred", "kill_time", "prob_2g"):
        assert found[name].is_null().to_pylist() == [True, False, True]


def test_memory_that_does_not_fit_the_rung_is_counted():
    jobs = {"ipst": list("abcdef"), "mem_pred": [1.0, 1.792, 7.0, 57.4, None, 61.0], "bin_pred": [0, 0, 1, 2, 0, None]}
    found = memory_warnings(pa.RecordBatch.from_pydict(jobs), LADDER)
    assert list(found.values()) == [(2, "d"), (1, "b")]
    assert memory_warnings(pa.RecordBatch.from_pydict(jobs).slice(0, 1), LADDER) == {}


def test_mosaics_alone_ask_no_network(bundle, monkeypatch):
    monkeypatch.setattr(Bundle, "run", lambda *words: 1 / 0)
    assert answer_table(jobs_of(np.zeros((2, 9)), mosaics=[0, 1]), bundle).num_rows == 2
