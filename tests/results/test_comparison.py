"""Two networks on the jobs that both saw."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.results.classification import classification_scores
from calmlflow.results.comparison import (
    BinAnswers,
    ValueAnswers,
    compare_bins,
    compare_values,
    headline_intervals,
)
from calmlflow.results.regression import regression_scores


def series(names, values, target="mem_bin"):
    return pd.Series(values, index=pd.Index(names, name="ipst"), name=target)


def certain(chosen, sure=0.7):
    """Probabilities that make ``chosen`` the most probable bin."""
    return np.where(np.arange(4) == np.array(chosen)[:, None], sure, (1 - sure) / 3)


def bins(names, actual, chosen, wallclock_s=None, sure=0.7):
    seconds = None if wallclock_s is None else np.array(wallclock_s, dtype=float)
    return BinAnswers(series(names, actual), certain(chosen, sure), np.array(chosen), seconds)


def values(names, actual, predicted, target="memory"):
    return ValueAnswers(series(names, np.array(actual, dtype=float), target), np.array(predicted, dtype=float))


def test_jobs_that_only_one_saw_and_jobs_that_differ_are_counted_and_left_out():
    this = values(["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5], [1, 3, 3, 0, 5])
    other = values(["x", "d", "b", "a"], [9, 4, 2.5, 1], [0, 3, 2, 3])
    found = compare_values(this, other)
    # In both with the same actual value: a (1 and 3 for 1) and d (0 and 3 for 4). b is 2 here and 2.5 there.
    assert (found.jobs, found.only_this, found.only_other, found.differing) == (2, 2, 1, 1)
    assert found.scores.loc["mae", ["this", "other", "difference"]].tolist() == [2, 1.5, 0.5]
    assert found.scores.loc["rmse", "this"] == pytest.approx(np.sqrt(8))
    assert found.scores.loc["rmse", "other"] == pytest.approx(np.sqrt(2.5))
    text = str(found)
    assert text.startswith("memory: 2 test jobs in both\n")
    assert "2 only in this, 1 only in the other, 1 with different actual values" in text
    assert "+0.5" in text


def test_the_cost_of_bins_and_who_knows_the_wallclock():
    # $/job-second: 0.308/8, 0.344/4, 0.226/2 (over 3600, which cancels). One job of each kind, 100 s and 300 s.
    names, actual = ["a", "b"], [0, 1]
    this, other = bins(names, actual, [0, 0], [100, 300]), bins(names, actual, [1, 1])
    needed = 100 * 0.308 / 8 + 300 * 0.344 / 4
    too_low = 100 * 0.308 / 8 + 300 * (0.308 / 8 + 0.344 / 4)
    too_high = 100 * 0.344 / 4 + 300 * 0.344 / 4
    for left, right in ((this, other), (bins(names, actual, [0, 0]), other._replace(wallclock_s=this.wallclock_s))):
        row = compare_bins(left, right).scores.loc["excess_cost"]
        assert row["this"] == pytest.approx(too_low / needed - 1)
        assert row["other"] == pytest.approx(too_high / needed - 1)
    assert "excess_cost" not in compare_bins(this._replace(wallclock_s=None), other).scores.index
    idle = np.zeros(2)
    assert "excess_cost" not in compare_bins(this._replace(wallclock_s=idle), other).scores.index


names_and_bins = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=25)
@given(names_and_bins, st.randoms(use_true_random=False))
def test_scores_of_bins_are_those_of_the_score_functions(jobs, random):
    actual, one, two = (np.array(column) for column in zip(*jobs, strict=True))
    names = np.array([f"job{number}" for number in range(len(jobs))])
    seconds = np.arange(1.0, len(jobs) + 1)
    order = np.array(random.sample(range(len(jobs)), len(jobs)))
    this = bins(names, actual, one, seconds, sure=0.9)
    other = bins(names[order], actual[order], two[order])
    found = compare_bins(this, other).scores
    for column, answers, wallclock_s in (("this", this, seconds), ("other", other, seconds[order])):
        expected = classification_scores(answers.actual, answers.probabilities, answers.chosen, wallclock_s)
        assert found[column].to_dict() == pytest.approx({score: expected[score] for score in found.index})
    present = {f"recall_{('2g', '8g', '16g', '64g')[label]}" for label in actual}
    assert {score for score in found.index if score.startswith("recall")} == present
    assert not found.isna().any(axis=None)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0.2, 60), st.floats(-1, 60), st.floats(-1, 60)), min_size=1, max_size=30))
def test_scores_of_values_are_those_of_the_score_functions(jobs):
    actual, one, two = zip(*jobs, strict=True)
    names = [f"job{number}" for number in range(len(jobs))]
    found = compare_values(values(names, actual, one), values(names, actual, two)).scores
    for column, predicted in (("this", one), ("other", two)):
        expected = regression_scores(actual, predicted)
        assert found[column].to_dict() == pytest.approx({score: expected[score] for score in found.index})
    assert (found["low"] <= found["high"]).all()


def test_every_score_says_of_how_many_jobs_it_is():
    names = ["a", "b", "c", "d", "e"]
    this, other = (bins(names, [0, 0, 0, 1, 3], chosen, [1, 2, 3, 4, 5]) for chosen in ([0] * 5, [1] * 5))
    rare = {"recall_2g": 3, "recall_8g": 1, "recall_64g": 1}
    all_of_them = dict.fromkeys(("accuracy", "log_loss", "underallocated", "overallocated", "excess_cost"), 5)
    assert compare_bins(this, other).scores["jobs"].to_dict() == rare | all_of_them


def test_a_comparison_with_itself_is_nothing_and_the_other_way_round_is_the_opposite():
    generator = np.random.default_rng(3)
    names, actual = [f"job{number}" for number in range(50)], generator.integers(0, 4, 50)
    one, two = (bins(names, actual, generator.integers(0, 4, 50), actual + 1) for _ in range(2))
    itself = compare_bins(one, one).scores
    assert not itself[["difference", "low", "high"]].to_numpy().any()
    there, back = compare_bins(one, two).scores, compare_bins(two, one).scores
    for column, opposite in (("difference", "difference"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(there[column], -back[opposite], atol=1e-12)


def test_the_interval_is_that_of_the_paired_difference():
    """Against the normal approximation: mean of paired differences, with their standard error."""
    generator = np.random.default_rng(5)
    n = 2000
    actual = generator.uniform(1, 10, n)
    shared = generator.normal(size=n)
    one, two = actual + shared + generator.normal(0, 0.2, n), actual + shared + 0.05
    names = [f"job{number}" for number in range(n)]
    row = compare_values(values(names, actual, one), values(names, actual, two)).scores.loc["mae"]
    paired = np.abs(one - actual) - np.abs(two - actual)
    half = 1.96 * paired.std() / np.sqrt(n)
    assert row["difference"] == pytest.approx(paired.mean())
    assert row["low"] == pytest.approx(paired.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(paired.mean() + half, abs=0.15 * half)


def test_headline_scores_have_intervals_of_their_own():
    n = 1000
    jobs = pd.DataFrame({"ipst": [f"job{number}" for number in range(n)], "mem_bin": np.arange(n) % 500 == 0})
    jobs = jobs.assign(mem_bin=jobs["mem_bin"].astype(int), wallclock=np.random.default_rng(0).uniform(1, 9, n))
    found = headline_intervals("mem_bin", jobs, {"probabilities": np.eye(4)[[0] * n], "bin_pred": np.zeros(n, int)})
    assert set(found) == {"accuracy", "recall_2g", "recall_8g", "excess_cost"}
    # 998 of 1000, and 0 of 2, by the formula of Wilson (1927).
    assert found["accuracy"] == pytest.approx((0.9927, 0.9995), abs=1e-4)
    assert found["recall_8g"] == pytest.approx((0, 0.6576), abs=1e-4)
    error = np.random.default_rng(1).normal(size=n)
    predicted = {"wall_pred": jobs["wallclock"].to_numpy() + error, "kill_time": np.full(n, 60)}
    found = headline_intervals("wallclock", jobs, predicted)
    assert set(found) == {"rmse", "mae", "kill_time_coverage", "kill_time_reserved"}
    half = 1.96 * np.abs(error).std() / np.sqrt(n)
    assert found["mae"] == pytest.approx((np.abs(error).mean() - half, np.abs(error).mean() + half), abs=0.15 * half)


def test_the_same_seed_gives_the_same_interval():
    names, actual = [f"job{number}" for number in range(40)], np.arange(1.0, 41)
    noise = np.random.default_rng(0).uniform(0.5, 2, (2, 40))
    this, other = values(names, actual, actual * noise[0]), values(names, actual, actual * noise[1])
    first, again, another = (compare_values(this, other, seed).scores for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["low"] != another["low"]).all()


def test_jobs_of_a_programme_are_drawn_together():
    names, actual = [f"j{number:03d}00010" for number in range(40)], np.arange(1.0, 41)
    noise = np.random.default_rng(0).uniform(0.5, 2, (2, 40))
    ten = np.repeat(np.arange(40), 10)
    many = [f"{names[job][:4]}{number:04d}q" for number, job in enumerate(ten)]
    alone = [values(names, actual, actual * one) for one in noise]
    tenfold = [values(many, actual[ten], (actual * one)[ten]) for one in noise]
    expected = compare_values(*alone).scores.drop(columns="jobs")
    found = compare_values(*tenfold, by_programme=True).scores.drop(columns="jobs")
    pd.testing.assert_frame_equal(found, expected)
    narrow = compare_values(*tenfold).scores
    assert (narrow["high"] - narrow["low"] < 0.5 * (found["high"] - found["low"])).all()


def test_a_name_that_stands_twice_is_paired_in_order():
    this = values(["a", "a", "b"], [1, 2, 3], [1, 2, 3])
    other = values(["a", "b", "a"], [1, 3, 2], [2, 3, 2])
    found = compare_values(this, other)
    assert (found.jobs, found.only_this, found.only_other, found.differing) == (3, 0, 0, 0)
    assert found.scores.loc["mae", "other"] == pytest.approx(1 / 3)


def test_actual_values_kept_in_float32_are_the_same():
    actual, names = np.array([0.1, 1.7, 20.3]), ["a", "b", "c"]
    assert compare_values(values(names, actual, actual), values(names, actual.astype("f4"), actual)).differing == 0


def test_nothing_in_common_is_an_error():
    with pytest.raises(InputError, match="none of 1 and 2 test jobs is in both"):
        compare_values(values(["a"], [1], [1]), values(["b", "c"], [1, 2], [1, 2]))
