"""The population stability index, against a plain second implementation and what is known of it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.jobs.drift import MEASURED, binned, chance_index, drift_table, stability_index
from calmlflow.jobs.sample import draw_sample

counts = st.integers(0, 10_000)
two_counts = st.integers(1, 20).flatmap(
    lambda bins: st.tuples(*[st.lists(counts, min_size=bins, max_size=bins).filter(any) for _ in range(2)])
)
few = st.lists(st.integers(0, 4), min_size=1, max_size=60)
many = st.lists(st.floats(-1e6, 1e6), min_size=60, max_size=200)


def plain_index(seen: list[int], new: list[int]) -> float:
    total = 0.0
    for one, other in zip(seen, new, strict=True):
        p = (one + 0.5) / (sum(seen) + len(seen) / 2)
        q = (other + 0.5) / (sum(new) + len(new) / 2)
        total += q * (math.log(q) - math.log(p)) + p * (math.log(p) - math.log(q))
    return total


@given(two_counts)
def test_the_index_is_that_of_the_formula_and_symmetric_and_never_negative(pair):
    seen, new = pair
    found = stability_index(seen, new)
    assert found == pytest.approx(plain_index(seen, new), abs=1e-9)
    assert found == pytest.approx(stability_index(new, seen), abs=1e-12)
    assert found >= 0


@given(few, few)
def test_few_values_have_a_bin_each_and_values_never_seen_one_for_all(seen, new):
    by_value, fresh = Counter(seen), Counter(new)
    unseen = sum(count for value, count in fresh.items() if value not in by_value)
    old, found = binned(seen, new)
    assert old.tolist() == [by_value[value] for value in sorted(by_value)] + [0] * bool(unseen)
    assert found.tolist() == [fresh[value] for value in sorted(by_value)] + [unseen] * bool(unseen)


@given(many, many)
def test_every_job_lies_in_one_of_ten_bins_at_most(seen, new):
    old, found = binned(seen, new)
    assert (old.sum(), found.sum()) == (len(seen), len(new))
    assert len(old) == len(found)
    assert len(old) <= 11
    assert not (old[:-1] == 0).any()
    if len(set(seen)) > 10:
        assert (old > 0).all()
    assert stability_index(*binned(seen, seen[::-1])) == 0


def test_deciles_hold_a_tenth_each_and_ties_share_a_bin():
    assert binned(np.arange(1000), np.arange(1000))[0].tolist() == [100] * 10
    # Half of all jobs are of one size: five deciles are the same number.
    tied = np.concatenate([np.full(500, 3), np.arange(1000, 1500)])
    assert binned(tied, tied)[0].tolist() == [500, 100, 100, 100, 100, 100]
    topped = np.concatenate([np.arange(500), np.full(500, 1000)])
    assert binned(topped, topped)[0].tolist() == [100, 100, 100, 100, 100, 500]
    assert binned(np.arange(1000), [-5, 5000])[1].tolist() == [1, *[0] * 8, 1]


@pytest.mark.parametrize(("n_seen", "n_new"), [(20_000, 200), (1000, 1000)])
def test_chance_is_what_samples_of_one_population_show(n_seen, n_new):
    generator = np.random.default_rng(1)
    found = np.array(
        [
            stability_index(*binned(generator.lognormal(size=n_seen), generator.lognormal(size=n_new)))
            for _ in range(400)
        ]
    )
    assert found.mean() == pytest.approx(9 * (1 / n_seen + 1 / n_new), rel=0.15)
    assert (found > chance_index(10, n_seen, n_new)).mean() < 0.01
    assert chance_index(1, n_seen, n_new) == 0
    # 33.72 is what tables give for nine degrees of freedom at 0.0001.
    assert chance_index(10, n_seen, n_new) == pytest.approx(33.72 * (1 / n_seen + 1 / n_new), rel=1e-3)


def test_jobs_of_one_archive_do_not_drift_and_larger_ones_are_named_first():
    jobs = draw_sample(6000)
    seen, new = jobs.iloc[:5000], jobs.iloc[5000:]
    table = drift_table(seen, new)
    assert sorted(table.index) == sorted(MEASURED)
    assert (table["psi"] < table["chance"].clip(lower=0.05)).all()
    moved = drift_table(seen, new.assign(total_mb=new["total_mb"] * 20 + 500))
    assert moved.index[0] == "total_mb"
    assert moved.loc["total_mb", "psi"] > 1
    assert moved["psi"].is_monotonic_decreasing
    assert moved.drop(index="total_mb").equals(table.drop(index="total_mb"))
