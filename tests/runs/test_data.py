"""Jobs made ready for training: the parts are apart, and what is fitted sees the training split only."""

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.hst.dataset import programmes
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.preprocess import SPLITS, fit_scaling
from calmlflow.runs.data import MIN_JOBS, bins_above, deal_folds, held_out_folds, hold_out, load_training_data
from tests.networks.test_rows import check_set


@pytest.fixture(scope="module")
def jobs():
    return draw_sample(300, 5)


def load(jobs: pd.DataFrame, folder, seed=3, split="job"):
    jobs.to_csv(folder / "jobs.csv", index=False)
    return load_training_data(str(folder / "jobs.csv"), seed, 0.2, split)


def test_the_parts_are_apart_and_make_up_the_whole(jobs, tmp_path):
    data = load(jobs, tmp_path)
    assert sorted([*data.train, *data.test]) == list(range(300))
    assert {position for position, name in enumerate(data.part_of_job) if name == "test"} == set(data.test)
    np.testing.assert_array_equal(data.features, data.jobs[list(FEATURES)])
    np.testing.assert_array_equal(data.rows.features[data.rows.row_of_job], data.features)
    assert data.sizes() == {
        "n_jobs": 300,
        "n_quarantined": 0,
        "n_killed": 0,
        "n_distinct_rows": len(jobs[list(FEATURES)].drop_duplicates()),
        "n_train": 300 - len(data.test),
        "n_test": len(data.test),
        **{
            f"n_{part}_programmes": data.jobs["ipst"].str[:4][data.part_of_job == part].nunique()
            for part in ("train", "test")
        },
    }


def test_a_growing_table_in_any_order_moves_no_job_between_the_parts(jobs, tmp_path):
    for split in ("job", "programme"):
        data = load(jobs, tmp_path, split=split)
        part = dict(zip(data.jobs["ipst"], data.part_of_job, strict=True))
        assert 0.05 < np.mean(data.part_of_job == "test") < 0.4
        fewer = jobs.sample(200, random_state=1).assign(memory=3.0, mem_bin=1)
        again = load(fewer, tmp_path, split=split)
        assert again.part_of_job.tolist() == [part[name] for name in again.jobs["ipst"]]


def test_what_is_held_out_is_programmes_or_the_newest(jobs, tmp_path):
    data = load(jobs, tmp_path, split="programme")
    train, test = (set(programmes(data.jobs["ipst"].iloc[part])) for part in (data.train, data.test))
    assert not train & test
    data = load(jobs, tmp_path, split="time")
    assert data.jobs["timestamp"].iloc[data.train].max() < data.jobs["timestamp"].iloc[data.test].min()
    assert abs(len(data.test) - 60) <= 3


def test_earlier_runs_that_the_test_jobs_could_not_know_are_not_known(jobs, tmp_path):
    reruns = jobs.assign(timestamp=jobs["timestamp"] - 5, wallclock=jobs["wallclock"] + 1)
    twice = pd.concat([jobs, reruns])
    data = load(twice, tmp_path, split="programme")
    names = data.jobs["ipst"].iloc[data.train]
    assert sorted(data.earlier["ipst"]) == sorted(names)
    data = load(twice, tmp_path, split="time")
    newest = data.jobs["timestamp"].iloc[data.train].max()
    assert sorted(data.earlier["ipst"]) == sorted(reruns["ipst"][reruns["timestamp"] <= newest])
    assert 0 < len(data.earlier) < 300
    assert len(load(twice, tmp_path, split="job").earlier) == 300


def test_a_table_that_cannot_be_split_says_what_was_found(jobs, tmp_path):
    few = jobs[np.isin(programmes(jobs["ipst"]), np.unique(programmes(jobs["ipst"]))[:8])]
    with pytest.raises(InputError, match=r"trains on \d programmes and holds out \d; expected 5 .*split=job"):
        load(pd.concat([few] * 20).assign(ipst=[f"{name[:4]}{i:05d}" for i, name in enumerate([*few["ipst"]] * 20)]),
             tmp_path, split="programme")  # fmt: skip
    with pytest.raises(InputError, match="300 jobs have one timestamp; expected 2 at least for split=time"):
        load(jobs.assign(timestamp=5), tmp_path, split="time")


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


def test_an_unknown_split_is_named():
    with pytest.raises(InputError, match="split is 'visit'; expected programme, job or time"):
        load_training_data("sample:100", 0, 0.2, "visit")


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


@pytest.mark.parametrize("split", SPLITS)
def test_a_fold_is_cut_from_its_pool_and_no_other_job_takes_part(split):
    data = load_training_data("sample:400", 0, 0.2, split)
    dealt = deal_folds(data, data.train, 4, 0, stream=1)
    folds = [hold_out(data, data.train, dealt, fold) for fold in held_out_folds(data.split, 4)]
    tested = np.concatenate([held.test for held in folds])
    assert len(np.unique(tested)) == len(tested)
    for held in folds:
        assert held.scaling == fit_scaling(data.features[held.train])
        train, test = (data.jobs.iloc[part] for part in (held.train, held.test))
        if split == "time":
            assert train["timestamp"].max() < test["timestamp"].min()
            assert set(held.train) | set(tested) <= set(data.train)
        else:
            np.testing.assert_array_equal(np.sort(np.concatenate([held.train, held.test])), data.train)
        if split == "programme":
            assert not set(programmes(train["ipst"])) & set(programmes(test["ipst"]))
    assert len(folds) == (3 if split == "time" else 4)
    # By time, nothing is earlier than the first block.
    untested = set(data.train) - set(tested)
    assert untested == (set(folds[0].train) if split == "time" else set())


def test_a_fifth_of_the_folds_is_the_test_split():
    data, everyone = (load_training_data("sample:400", 3, size, "job") for size in (0.2, None))
    assert len(everyone.test) == 0
    np.testing.assert_array_equal(np.flatnonzero(deal_folds(everyone, everyone.train, 5, 3) == 0), data.test)


def test_too_many_folds_are_named():
    data = load_training_data("sample:100", 0, None, "job")
    with pytest.raises(InputError, match="split=job of 90 folds and seed 0 trains on 100 jobs and holds out 0"):
        deal_folds(data, data.train, 90, 0)


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


@pytest.mark.parametrize("split", ["programme", "time"])
def test_kills_that_the_test_jobs_could_not_know_are_not_known(jobs, tmp_path, split):
    names = [f"{name[:4]}zz{name[6:]}" for name in jobs["ipst"]]
    killed = kills(jobs, *((name, "memory", 1.792) for name in names)).assign(timestamp=jobs["timestamp"])
    killed.to_csv(tmp_path / "jobs.killed_jobs.csv", index=False)
    data = load(jobs, tmp_path, split=split)
    at_test = data.jobs.iloc[data.test]
    known = data.known_killed
    assert 0 < len(known) < len(data.killed)
    if split == "programme":
        assert not set(known["ipst"].str[:4]) & set(at_test["ipst"].str[:4])
    else:
        assert known["timestamp"].max() < at_test["timestamp"].min()
    assert len(data.training_rows("mem_clf", 2, 0).row_of_job) == len(data.train) + len(known)
    assert len(load(jobs, tmp_path, split="job").known_killed) == len(data.killed)


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
