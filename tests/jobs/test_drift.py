"""The population stability index, against a plain second implementation and what is known of it."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from benchmarks.drift import SHIFTS, has_drifted, new_programmes
from calmlflow.jobs.drift import MEASURED, _measured, bin_places, drift_table, stability_index
from calmlflow.jobs.sample import draw_sample

counts = st.integers(0, 10_000)
two_counts = st.integers(1, 20).flatmap(
    lambda bins: st.tuples(*[st.lists(counts, min_size=bins, max_size=bins).filter(any) for _ in range(2)])
)
few = st.lists(st.integers(0, 4), min_size=1, max_size=60)
many = st.lists(st.floats(-1e6, 1e6), min_size=60, max_size=200)


def binned(seen, new):
    """Counts of both samples in the bins of the first."""
    *places, n_bins = bin_places(seen, new)
    return [np.bincount(place, minlength=n_bins) for place in places]


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


def test_values_that_are_missing_lie_in_no_bin():
    one, other, n_bins = bin_places([1, np.nan, 2], [np.nan, 2, 3])
    assert (one.tolist(), other.tolist(), n_bins) == ([0, -1, 1], [-1, 1, 2], 3)
    assert bin_places(np.append(np.arange(1000), np.nan), [np.nan])[1].tolist() == [-1]


def test_chance_is_that_of_independent_jobs_where_each_is_a_programme():
    """Yurdakul and Naranjo: (1/n + 1/m) times a chi-squared number of bins - 1 degrees of freedom."""
    draw = np.random.default_rng(0)
    jobs = draw_sample(5000)
    names = [f"{number:04}00000" for number in range(len(jobs))]
    jobs = jobs.assign(ipst=names, total_mb=draw.permutation(len(jobs)))
    found = drift_table(jobs[:4000], jobs[4000:])
    usual = chi2.isf([0.01, 0.001, 0.0001], 9) * (1 / 4000 + 1 / 1000)
    # Any of nine to twelve indices exceeds its chance once in a hundred draws, so this one does once in a thousand.
    assert usual[0] < found.loc["total_mb", "chance"] < 1.2 * usual[2]


def test_targets_are_compared_with_the_other_programmes_of_the_row():
    """A programme that has all the slow jobs is slow for its own rows only where others have the rows."""
    row = dict(
        zip(("n_files", "total_mb", "drizcorr", "pctecorr", "crsplit", "subarray"), [1, 5, 0, 0, 0, 0], strict=True)
    )
    base = pd.DataFrame({**row, "detector": 0, "dtype": 0, "instr": 0, "memory": 1.0}, index=range(4))
    seen = base.assign(ipst=["j00100000", "j00100001", "j00200000", "j00300000"], wallclock=[10.0, 10, 20, 40])
    new = base[:2].assign(ipst=["j00200009", "j00900000"], wallclock=[30.0, 30], total_mb=[5, 6])
    found = _measured(new, seen)
    assert found["row"].tolist() == [1, 0]
    # The others took 10, 10 and 40 s.
    assert found["wallclock"] == pytest.approx([math.log(30 / 4000 ** (1 / 3)), math.nan], nan_ok=True)
    own = _measured(seen, seen)["wallclock"]
    assert own == pytest.approx(
        [math.log(10 / 800**0.5)] * 2 + [math.log(20 / 4000 ** (1 / 3)), math.log(2 * 2 ** (2 / 3))]
    )


def test_larger_jobs_are_named_first():
    jobs = draw_sample(6000)
    seen, new = jobs.iloc[:5000], jobs.iloc[5000:]
    table = drift_table(seen, new)
    assert sorted(table.index) == sorted(MEASURED)
    assert table["psi"].is_monotonic_decreasing
    assert (table["psi"] < table["chance"]).all()
    moved = drift_table(seen, new.assign(total_mb=new["total_mb"] * 20 + 500))
    assert moved.index[0] == "row"
    assert moved.loc["total_mb", "psi"] > max(1, moved.loc["total_mb", "chance"])
    # No row is known, so nothing is said of targets given the row.
    assert not {"memory", "wallclock"} & set(moved.index)


def test_other_programmes_are_no_drift_and_larger_jobs_are():
    """Of 20 draws of 1,000 jobs of whole programmes; `benchmarks.drift` does the same with more."""
    jobs = draw_sample(10_000, seed=3)
    parts = [new_programmes(jobs, 1000, seed) for seed in range(20)]
    assert sum(has_drifted(seen, new) for seen, new in parts) <= 1
    larger = SHIFTS["each job 1.5 x larger"]
    assert sum(has_drifted(seen, larger(new)) for seen, new in parts[:5]) == 5
