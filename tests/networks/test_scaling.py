"""What is fitted sees the training split only."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import PowerTransformer

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.scaling import fit_scaling
from calmlflow.runs.data import MIN_JOBS, load_training_data


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(20, 200))
def test_the_fit_is_that_of_scikit_learn(seed, jobs):
    generator = np.random.default_rng(seed)
    sizes = np.column_stack([generator.integers(1, 60, jobs), np.round(generator.lognormal(3, 1.5, jobs))])
    features = np.hstack([sizes, generator.integers(0, 2, (jobs, 7))])
    expected = PowerTransformer(method="yeo-johnson", standardize=True).fit_transform(sizes)
    scaled = fit_scaling(features).apply(features)
    np.testing.assert_allclose(scaled[:, :2], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(scaled[:, 2:], features[:, 2:])


def test_a_column_of_one_value_is_scaled_to_zero():
    features = np.ones((5, 9))
    features[:, 1] = [1, 2, 3, 4, 5]
    scaling = fit_scaling(features)
    assert scaling.apply(features)[:, 0].tolist() == [0] * 5
    assert np.isfinite(scaling.apply(features + 1)).all()


@pytest.fixture(scope="module")
def jobs():
    return draw_sample(300, 5)


def load(jobs: pd.DataFrame, folder, seed=3):
    jobs.to_csv(folder / "jobs.csv", index=False)
    return load_training_data(str(folder / "jobs.csv"), seed, 0.2)


def test_the_parts_are_apart_and_make_up_the_whole(jobs, tmp_path):
    data = load(jobs, tmp_path)
    assert sorted([*data.train, *data.test]) == list(range(300))
    assert {position for position, name in enumerate(data.split) if name == "test"} == set(data.test)
    np.testing.assert_array_equal(data.features, data.jobs[list(FEATURES)])
    np.testing.assert_array_equal(data.rows.features[data.rows.row_of_job], data.features)
    bins = data.jobs["mem_bin"].to_numpy()
    for value in range(4):
        assert abs(np.sum(bins[data.test] == value) - 0.2 * np.sum(bins == value)) <= 1
    assert data.sizes() == {
        "n_jobs": 300,
        "n_quarantined": 0,
        "n_distinct_rows": len(jobs[list(FEATURES)].drop_duplicates()),
        "n_train": 300 - len(data.test),
        "n_test": len(data.test),
    }


def test_the_scaling_does_not_see_the_test_jobs(jobs, tmp_path):
    data = load(jobs, tmp_path)
    changed = jobs.copy()
    changed.loc[data.test, ["n_files", "total_mb"]] = [999, 77_777]
    again = load(changed, tmp_path)
    np.testing.assert_array_equal(again.test, data.test)
    assert again.scaling == data.scaling
    changed = jobs.copy()
    changed.loc[data.train[:1], ["n_files", "total_mb"]] = [999, 77_777]
    assert load(changed, tmp_path).scaling != data.scaling
    assert data.scaling == fit_scaling(data.features[data.train])


def test_another_seed_is_another_split(jobs, tmp_path):
    one, other = load(jobs, tmp_path), load(jobs, tmp_path, seed=4)
    assert one.test.tolist() != other.test.tolist()


def test_impossible_records_are_kept_apart(jobs, tmp_path):
    changed = jobs.copy()
    changed.loc[[4, 9], "memory"] = 0.01
    data = load(changed, tmp_path)
    assert (len(data.jobs), data.quarantine["ipst"].tolist()) == (298, jobs["ipst"][[4, 9]].tolist())


@pytest.mark.parametrize("test_size", [0, -0.1, 0.51, 1.0, float("nan")])
def test_a_test_size_out_of_range_is_named(test_size):
    with pytest.raises(InputError, match="test_size is"):
        load_training_data("sample:100", 0, test_size)


def test_a_negative_seed_is_named():
    with pytest.raises(InputError, match="seed is -1"):
        load_training_data("sample:100", -1, 0.2)


def test_too_few_jobs_are_named():
    assert len(load_training_data(f"sample:{MIN_JOBS}", 0, 0.5).jobs) == MIN_JOBS
    with pytest.raises(InputError, match=f"holds {MIN_JOBS - 1} valid jobs; expected {MIN_JOBS}"):
        load_training_data(f"sample:{MIN_JOBS - 1}", 0, 0.5)
