"""Jobs made ready for training: the parts are apart, and what is fitted sees the training split only."""

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.preprocess import deal, fit_scaling
from calmlflow.runs.data import MIN_JOBS, bins_above, hold_out, load_training_data
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
        "n_killed": 0,
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


# -- Killed jobs ------------------------------------------------------------------------------------------------------


def kills(jobs: pd.DataFrame, *of: tuple[str, str, float | None]) -> pd.DataFrame:
    """Kills of datasets with the features of the first job: name, kind and GB reached."""
    row = jobs.loc[0, list(FEATURES)].astype(int).to_dict()
    return pd.DataFrame(
        [
            {**row, "ipst": name, "timestamp": 1_700_000_000, "kind": kind, "wallclock": 300.0, "memory": memory}
            for name, kind, memory in of
        ]
    ).assign(reason="", stored_at=1_700_000_000)


def test_a_job_killed_for_lack_of_memory_trains_the_classifier_to_expect_a_rung_above(jobs, tmp_path):
    name = jobs["ipst"][0]
    new = [f"{name[0]}zz{number}aa{number}a{name[8]}" for number in range(3)]
    killed = kills(
        jobs, (new[0], "memory", 1.792), (new[1], "memory", None), (new[2], "time", 1.0), (name, "memory", 9)
    )
    killed.to_csv(tmp_path / "jobs.killed_jobs.csv", index=False)
    data = load(jobs, tmp_path)
    # One has finished since: what it needed is known.
    assert data.killed["ipst"].tolist() == new
    assert data.sizes()["n_killed"] == 3
    classifier = data.training_rows("mem_clf", 2, 0)
    assert len(classifier.row_of_job) == len(data.train) + 2
    assert len(data.training_rows("wall_reg", 2, 0).row_of_job) == len(data.train)
    # Of its row, two jobs now share themselves among the rungs above the first.
    row = classifier.row_of_job[-1]
    bins = data.jobs["mem_bin"].to_numpy()[data.train]
    of_row = bins[classifier.row_of_job[: len(bins)] == row]
    expected = (np.bincount(of_row, minlength=4) + 2 * bins_above([1.792], bins)[0]) / (len(of_row) + 2)
    np.testing.assert_allclose(classifier.train.targets[0, row], expected, rtol=1e-5)


def test_a_killed_job_needs_one_of_the_rungs_that_its_memory_leaves():
    bins = np.array([0] * 9 + [1] * 5 + [2] * 2 + [3] * 1)
    shares = bins_above([0.5, 1.792, 8.0, 100.0, np.nan], bins)
    counts = np.array([10, 6, 3, 2])
    expected = [
        counts / 21,
        [0, 6 / 11, 3 / 11, 2 / 11],
        [0, 0, 3 / 5, 2 / 5],
        [0, 0, 0, 1],
        [0, 6 / 11, 3 / 11, 2 / 11],
    ]
    np.testing.assert_allclose(shares, expected)
