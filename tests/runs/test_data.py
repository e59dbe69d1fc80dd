"""Jobs made ready for training: the parts are apart, and what is fitted sees the training split only."""

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.preprocess import deal, fit_scaling
from calmlflow.runs.data import MIN_JOBS, hold_out, load_training_data
from tests.networks.test_rows import check_set


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


def test_impossible_records_are_kept_apart(jobs, tmp_path):
    changed = jobs.copy()
    changed.loc[[4, 9], "memory"] = 0.01
    data = load(changed, tmp_path)
    assert (len(data.jobs), data.quarantine["ipst"].tolist()) == (298, jobs["ipst"][[4, 9]].tolist())


@pytest.mark.parametrize(
    ("data", "seed", "test_size", "words"),
    [
        *(("sample:100", 0, size, "test_size is") for size in (0, 0.51, float("nan"))),
        ("sample:100", -1, 0.2, "seed is -1"),
        (f"sample:{MIN_JOBS - 1}", 0, 0.5, f"holds {MIN_JOBS - 1} valid jobs; expected {MIN_JOBS}"),
    ],
)
def test_a_value_out_of_range_is_named(data, seed, test_size, words):
    with pytest.raises(InputError, match=words):
        load_training_data(data, seed, test_size)


@pytest.mark.parametrize(
    ("network", "column", "members"),
    [("mem_clf", "mem_bin", 2), ("mem_reg", "memory", 3), ("wall_reg", "wallclock", 5)],
)
def test_the_training_jobs_of_a_network_are_dealt_by_bin_and_seed(network, column, members):
    data = load_training_data("sample:300", 2, 0.2)
    found = data.training_rows(network, members, 7)
    np.testing.assert_array_equal(
        found.inputs[found.row_of_job], data.scaling.apply(data.features[data.train]), strict=True
    )
    values = data.jobs[column].to_numpy()[data.train]
    check_set(found.train, 0, list(range(len(values))), found.row_of_job, values, network == "mem_clf")
    bins = data.jobs["mem_bin"].to_numpy()[data.train]
    for part in (found.member_of_job, *(found.member_of_job[bins == value] for value in np.unique(bins))):
        assert np.ptp(np.bincount(part, minlength=members)) <= 1
    assert found.validation.weights.shape[0] == members
    other = data.training_rows(network, members, 8)
    assert np.any(other.member_of_job != found.member_of_job)


def test_a_fold_is_cut_from_its_pool_and_no_other_job_takes_part():
    data = load_training_data("sample:400", 0, 0.2)
    dealt = deal(data.jobs["mem_bin"].to_numpy()[data.train], 3, 0, True)
    for fold in range(3):
        held = hold_out(data, data.train, dealt, fold)
        np.testing.assert_array_equal(np.sort(np.concatenate([held.train, held.test])), data.train)
        np.testing.assert_array_equal(held.test, data.train[dealt == fold])
        assert not set(held.test) & set(held.train)
        assert held.scaling == fit_scaling(data.features[held.train])
