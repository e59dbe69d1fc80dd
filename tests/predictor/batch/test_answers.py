"""Answers by columns: policies, missing networks, and each different row once."""

import numpy as np
import pyarrow as pa
import pytest

from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch.answers import SCHEMA, answer_table, column_answers
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.bundle import Bundle
from tests.samples.batch_samples import serving_bundle


@pytest.fixture
def bundle(tmp_path):
    return serving_bundle(tmp_path).bundle


def jobs_of(features, mosaics=()):
    is_mosaic = np.isin(np.arange(len(features)), mosaics)
    names = pa.array([f"job {number}" for number in range(len(features))])
    return Jobs(names, np.asarray(features, dtype=np.int64), is_mosaic, {})


SAMPLE = draw_sample(3000)[list(FEATURES)].to_numpy()


@pytest.mark.parametrize("room", [50_000, 10])
def test_a_different_row_is_evaluated_once_while_there_is_room(bundle, monkeypatch, room):
    asked = []
    whole = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda self, rows: asked.extend(rows) or whole(self, rows))
    answers = column_answers(bundle)
    answers._most = room
    tables = [answer_table(jobs_of(SAMPLE[start : start + 100]), answers) for start in range(0, 3000, 100)]
    found = pa.Table.from_batches(tables)
    expected = whole(bundle, SAMPLE)
    for name in ("bin_pred", "mem_pred", "wall_pred", "kill_time"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(found["prob_16g"], expected["probabilities"][:, 2], rtol=1e-4)
    assert (len(set(asked)) == len(asked)) == (room == 50_000)


def test_without_a_bundle_the_policies_answer():
    found = answer_table(jobs_of(SAMPLE[:3], mosaics=[1]), column_answers(None)).to_pydict()
    assert found["bin_pred"] == [1, 1, 1]
    assert found["wall_pred"] == [1200, 43_200, 1200]
    assert found["kill_time"] == [7200, 259_200, 7200]
    assert found["prob_8g"] == [1, 1, 1]


def test_columns_of_a_network_that_the_bundle_lacks_are_null_but_for_mosaics(bundle, tmp_path):
    answers = column_answers(Bundle.load(tmp_path / "bundle", ["mem_reg"]))
    found = answer_table(jobs_of(SAMPLE[:3], mosaics=[1]), answers)
    assert found.schema == SCHEMA
    assert found["mem_pred"].null_count == 0
    for name in ("bin_pred", "wall_pred", "kill_time", "prob_2g"):
        assert found[name].is_null().to_pylist() == [True, False, True]


def test_mosaics_alone_ask_no_network(monkeypatch):
    monkeypatch.setattr(Bundle, "predict", lambda *words: 1 / 0)
    assert answer_table(jobs_of(np.zeros((2, 9)), mosaics=[0, 1]), column_answers(None)).num_rows == 2
