"""Two networks on the jobs that both saw."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from calmlflow.errors import InputError
from calmlflow.hst.dataset import programmes
from calmlflow.jobs.sample import draw_sample
from calmlflow.results import comparison
from calmlflow.results.classification import classification_scores
from calmlflow.results.comparison import (
    BinAnswers,
    Interval,
    ValueAnswers,
    compare_bins,
    compare_values,
    effective_number,
    programme_sums,
    resampled_interval,
    resampled_sums,
    score_intervals,
    share_interval,
)
from calmlflow.results.regression import regression_scores
from calmlflow.results.scores import SCORES, score_predictions


def series(names, values, target="mem_bin"):
    return pd.Series(values, index=pd.Index(names, name="ipst"), name=target)


def apart(n):
    """Names of n jobs, each of a programme of its own."""
    return np.array([f"{number:04}00000" for number in range(n)])


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


def test_every_score_says_of_how_many_programmes_it_is():
    names = ["japm01010", "japm01020", "japm02010", "ocfj01010", "ibxy01010"]
    row = compare_bins(bins(names, [0, 0, 1, 1, 3], [0] * 5), bins(names, [0, 0, 1, 1, 3], [1] * 5)).scores
    found = row.loc[["accuracy", "recall_2g", "recall_8g", "recall_64g"], "programmes"]
    assert found.tolist() == [3, 1, 2, 1]


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
    names = apart(n)
    row = compare_values(values(names, actual, one), values(names, actual, two)).scores.loc["mae"]
    paired = np.abs(one - actual) - np.abs(two - actual)
    half = 1.96 * paired.std() / np.sqrt(n)
    assert row["difference"] == pytest.approx(paired.mean())
    assert row["low"] == pytest.approx(paired.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(paired.mean() + half, abs=0.15 * half)


def test_scores_have_intervals_of_their_own():
    n = 1000
    jobs = pd.DataFrame({"ipst": apart(n), "mem_bin": np.arange(n) % 500 == 0})
    jobs = jobs.assign(mem_bin=jobs["mem_bin"].astype(int), wallclock=np.random.default_rng(0).uniform(1, 9, n))
    found = score_intervals("mem_bin", jobs, {"probabilities": np.eye(4)[[0] * n], "bin_pred": np.zeros(n, int)})
    shares = {"accuracy", "recall_2g", "recall_8g", "underallocated", "overallocated"}
    assert set(found) == shares | {"log_loss", "excess_cost", "balanced_accuracy", "f1_macro"}
    # 998 of 1000, by the formula of Wilson (1927). 0 of 2 says next to nothing.
    assert found["accuracy"] == pytest.approx((0.9927, 0.9995, 1000, 1000), abs=1e-4)
    assert found["recall_8g"][:1] + found["recall_8g"][2:] == (0, 2, 2)
    assert found["recall_8g"].high > 0.9
    error = np.random.default_rng(1).normal(size=n)
    predicted = {"wall_pred": jobs["wallclock"].to_numpy() + error, "kill_time": np.full(n, 60)}
    found = score_intervals("wallclock", jobs, predicted)
    assert set(found) == {"rmse", "mae", "log_mae", "r2", "kill_time_coverage", "kill_time_reserved"}
    half = 1.96 * np.abs(error).std() / np.sqrt(n)
    assert found["mae"][:2] == pytest.approx(
        (np.abs(error).mean() - half, np.abs(error).mean() + half), abs=0.15 * half
    )


def test_scores_that_are_no_sum_over_jobs_are_those_of_whole_resampled_programmes(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 60)
    jobs = draw_sample(300, seed=2)
    draw = np.random.default_rng(3)
    probabilities = draw.dirichlet([1, 1, 1, 1], len(jobs)) + np.eye(4)[jobs["mem_bin"]]
    given = {"probabilities": probabilities / 2, "bin_pred": jobs["mem_bin"].to_numpy()}
    given |= {"wall_pred": jobs["wallclock"].to_numpy() * draw.uniform(0.5, 2, len(jobs))}
    programme = np.unique(programmes(jobs["ipst"]), return_inverse=True)[1]
    number = effective_number(np.bincount(programme)[:, None])[0]
    times = resampled_sums(np.eye(programme.max() + 1), seed=0).astype(int)[:, programme]
    at = [np.repeat(np.arange(len(jobs)), count) for count in times]
    for target, names in {"mem_bin": ("balanced_accuracy", "f1_macro"), "wallclock": ("r2",)}.items():
        found = score_intervals(target, jobs, given)
        answers = [{name: cell[one] for name, cell in given.items()} for one in at]
        drawn = [score_predictions(target, jobs.iloc[one], said) for one, said in zip(at, answers, strict=True)]
        for name in names:
            assert found[name][:2] == pytest.approx(resampled_interval([one[name] for one in drawn], number))
            assert found[name][2:] == (len(jobs), programme.max() + 1)
    alike = jobs.assign(wallclock=60.0)
    assert "r2" not in score_intervals("wallclock", alike, {"wall_pred": alike["wallclock"].to_numpy()})


def test_whole_programmes_are_drawn():
    names = ["aaaa01010", "bbbb01010", "aaaa02010", "bbbb02010", "bbbb03010"]
    sums = resampled_sums(programme_sums(np.array([[1.0, 1], [10, 1], [2, 1], [20, 1], [30, 1]]), names), seed=0)
    # Two are drawn of two programmes: one of them twice, or each once.
    assert {tuple(found) for found in sums} == {(6, 4), (63, 5), (120, 6)}


def test_where_every_job_hits_each_programme_says_as_much_as_one_job():
    jobs = np.full(1000, 30.0)
    # Wilson's of 1000 of 1000: 1000 / (1000 + 1.96²); the rule of three gives 0.9970.
    assert share_interval(jobs, jobs) == pytest.approx((0.9962, 1), abs=1e-4)
    assert share_interval(0 * jobs, jobs) == pytest.approx((0, 0.0038), abs=1e-4)
    # A programme that has nearly all jobs says as much as few.
    assert share_interval(jobs + 1e6 * (jobs.cumsum() == 30), jobs + 1e6 * (jobs.cumsum() == 30))[0] < 0.25


def test_intervals_of_alike_jobs_hold():
    """Of 200 draws of 60 programmes, 95 % intervals hold the truth in 90 to 98 %; as if jobs were independent, not."""
    held = {"mean": 0, "mean, by jobs": 0, "share": 0, "share, by jobs": 0}
    for seed in range(200):
        draw = np.random.default_rng(seed)
        sizes = draw.geometric(1 / 30, 60)
        of_job = np.repeat(np.arange(60), sizes)
        errors = np.exp(draw.normal(-0.125, 0.5, 60))[of_job] * draw.exponential(size=len(of_job))
        sums = resampled_sums(programme_sums(np.column_stack([errors, np.ones(len(errors))]), apart(60)[of_job]), seed)
        low, high = resampled_interval(sums[:, 0] / sums[:, 1], sizes.sum() ** 2 / np.sum(sizes**2))
        held["mean"] += low < 1 < high
        held["mean, by jobs"] += abs(errors.mean() - 1) < 1.96 * errors.std() / np.sqrt(len(errors))
        hits = draw.binomial(sizes, draw.beta(8, 2, 60))
        low, high = share_interval(hits, sizes)
        held["share"] += low < 0.8 < high
        low, high = binomtest(hits.sum(), len(of_job)).proportion_ci(method="wilson")
        held["share, by jobs"] += low < 0.8 < high
    assert 180 <= held["mean"] <= 196
    # On the safe side, for the programme that is added.
    assert 180 <= held["share"] <= 198
    assert max(held["mean, by jobs"], held["share, by jobs"]) < 150


def test_rare_misses_that_come_together_are_not_missed():
    """One job in a thousand misses, and half of those come together: often none is seen, yet 0 is not the truth."""
    held = none = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        sizes = draw.geometric(1 / 30, 300)
        misses = draw.binomial(sizes, draw.beta(0.001, 0.999, 300))
        low, high = share_interval(sizes - misses, sizes)
        held, none = held + (low < 0.999 < high), none + (misses.sum() == 0)
    assert none > 20
    assert held >= 180


def test_an_interval_says_what_stands_behind_it():
    recall, interval = SCORES["mem_bin"]["recall_64g"], Interval(0.1, 0.6, 12, 4)
    assert (interval.text(recall), interval.behind(recall, 0.25)) == ("10.00% to 60.00%", "3 of 12 in 4")
    seconds, interval = SCORES["wallclock"]["rmse"], Interval(500, 1200, 8976, 1204)
    assert (interval.text(seconds), interval.behind(seconds, 700)) == ("500 to 1,200 s", "8,976 in 1,204")


def test_the_same_seed_gives_the_same_interval():
    names, actual = apart(40), np.arange(1.0, 41)
    noise = np.random.default_rng(0).uniform(0.5, 2, (2, 40))
    this, other = values(names, actual, actual * noise[0]), values(names, actual, actual * noise[1])
    first, again, another = (compare_values(this, other, seed).scores for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["low"] != another["low"]).all()


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
