"""Splits and folds are even and follow the seed; the scaling is that of scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import PowerTransformer

from calmlflow.networks.preprocess import deal, fit_scaling, stratified_split

BINS = st.lists(st.integers(0, 3), min_size=1, max_size=200)


@settings(deadline=None)
@given(BINS, st.floats(0.01, 0.9), st.integers(0, 2**32 - 1))
def test_every_job_is_in_one_part_and_each_bin_gives_its_share(bins, share, seed):
    bins = np.array(bins)
    first, second = stratified_split(bins, share, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(len(bins)))
    for part in (first, second):
        assert np.all(np.diff(part) > 0)
    for value in np.unique(bins):
        jobs, taken = np.sum(bins == value), np.sum(bins[second] == value)
        if jobs == 1:
            assert taken == 0
        else:
            assert 1 <= taken <= jobs - 1
            assert abs(taken - share * jobs) <= 1


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_seed_decides(share):
    bins = np.arange(400) % 4
    one, same, other = (stratified_split(bins, share, seed)[1].tolist() for seed in (1, 1, 2))
    assert one == same != other
    # Not simply the first or the last jobs of each bin.
    assert 0 < np.mean(np.array(one) < 200) < 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.integers(2, 16), st.integers(0, 99))
def test_folds_are_dealt_evenly(bins, folds, seed):
    for stratified in (False, True):
        dealt = deal(bins, folds, seed, stratified)
        assert dealt.shape == (len(bins),)
        sizes = np.bincount(dealt, minlength=folds)
        assert len(sizes) == folds
        assert np.ptp(sizes) <= 1
        np.testing.assert_array_equal(dealt, deal(bins, folds, seed, stratified))
    for label in set(bins):
        assert np.ptp(np.bincount(dealt[np.array(bins) == label], minlength=folds)) <= 1


def test_the_seed_shuffles_what_is_dealt():
    for stratified in (False, True):
        assert (deal(np.zeros(100), 5, 0, stratified) != deal(np.zeros(100), 5, 1, stratified)).any()
        assert (deal(np.zeros(100), 5, 0, stratified) != np.arange(100) % 5).any()


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
