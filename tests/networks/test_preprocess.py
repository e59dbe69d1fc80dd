"""Parts follow name and seed, or time; members are dealt evenly; the scaling is that of scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.preprocessing import PowerTransformer

from calmlflow.errors import InputError
from calmlflow.hst.dataset import programmes
from calmlflow.networks.preprocess import deal, fit_scaling, hashed, parts_of_jobs

NAMES = st.lists(st.from_regex(r"[jloi][a-c0-3]{3}[a-z0-9]{5}", fullmatch=True), min_size=1, max_size=100, unique=True)
ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))


def drawn_names(count: int, seed: int = 0) -> np.ndarray:
    letters = np.random.default_rng(seed).choice(ALPHABET, (count, 8))
    return np.array(["j" + "".join(row) for row in letters], dtype=object)


@given(NAMES, st.integers(0, 2**70), st.sampled_from(["programme", "job"]), st.data())
def test_the_part_of_a_job_depends_on_name_and_seed_alone(names, seed, split, data):
    part = dict(zip(names, parts_of_jobs(names, [], split, seed, [0.2, 0.6]), strict=True))
    others = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
    found = parts_of_jobs(np.array(others, dtype=object), [], split, seed, [0.2, 0.6])
    assert found.tolist() == [part[name] for name in others]
    assert set(found) <= {0, 1, 2}


@given(NAMES, st.integers(0, 99))
def test_a_programme_is_never_cut(names, seed):
    parts = parts_of_jobs(names, [], "programme", seed, [0.3, 0.7])
    for programme in {name[:4] for name in names}:
        assert len({part for name, part in zip(names, parts, strict=True) if name[:4] == programme}) == 1


def test_hashed_numbers_are_uniform_and_differ_by_seed_and_stream():
    names = drawn_names(20_000)
    found = [hashed(names, 0), hashed(names, 1), hashed(names, 0, 1), hashed(programmes(names), 0)]
    for numbers in found:
        assert kstest(numbers, "uniform").pvalue > 0.001
    # Independent numbers have a correlation of 1 / sqrt(n) = 0.007 by chance.
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 0.03
    # Names that differ in one character are as far apart as any.
    alike = np.array([f"jzzz{number:05d}" for number in range(20_000)])
    assert kstest(hashed(alike, 0), "uniform").pvalue > 0.001
    assert kstest(np.abs(np.diff(hashed(alike, 0))), "beta", (1, 2)).pvalue > 0.001


def test_the_hash_is_the_same_everywhere_and_for_ever():
    """By the definition of SplitMix64, in whole numbers of any length."""

    def mix(value):
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    seed, stream, name = 7, 2, "jabc01020"
    first, second = (int.from_bytes(name.encode().ljust(16, b"\0")[at : at + 8], "little") for at in (0, 8))
    start = mix((seed + (stream + 1) * 0x9E3779B97F4A7C15) % 2**64)
    assert hashed([name], seed, stream).tolist() == [(mix(mix(start ^ first) ^ second) >> 11) / 2**53]
    assert hashed([], 0).shape == (0,)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(2, 5))
def test_parts_by_time_are_consecutive_and_keep_equal_timestamps_together(timestamps, count):
    names, cuts = ["jzzz01010"] * len(timestamps), [cut / count for cut in range(1, count)]
    moments = len(set(timestamps))
    if moments < count:
        with pytest.raises(InputError, match=f"expected {count} at least for split=time"):
            parts_of_jobs(names, timestamps, "time", 0, cuts)
        return
    parts = parts_of_jobs(names, timestamps, "time", 0, cuts)
    assert set(parts) == set(range(count))
    for one, part in zip(timestamps, parts, strict=True):
        for other, its_part in zip(timestamps, parts, strict=True):
            assert part == its_part if one == other else part <= its_part or one > other


def test_the_cut_in_time_is_where_the_shares_fit_best():
    timestamps = np.repeat([10, 20, 30, 40], [50, 25, 15, 10])
    names = ["jzzz01010"] * 100
    assert np.bincount(parts_of_jobs(names, timestamps, "time", 0, [0.8])).tolist() == [75, 25]
    assert np.bincount(parts_of_jobs(names, timestamps, "time", 0, [0.95])).tolist() == [90, 10]
    # Both cuts would fall on the first; the second takes the next.
    assert np.bincount(parts_of_jobs(names, timestamps, "time", 0, [0.4, 0.5])).tolist() == [50, 25, 25]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.integers(2, 16), st.integers(0, 99))
def test_members_are_dealt_evenly(bins, members, seed):
    dealt = deal(bins, members, seed)
    assert dealt.shape == (len(bins),)
    for part in (dealt, *(dealt[np.array(bins) == label] for label in set(bins))):
        sizes = np.bincount(part, minlength=members)
        assert len(sizes) == members
        assert np.ptp(sizes) <= 1
    np.testing.assert_array_equal(dealt, deal(bins, members, seed))


def test_the_seed_shuffles_what_is_dealt():
    assert (deal(np.zeros(100), 5, 0) != deal(np.zeros(100), 5, 1)).any()
    assert (deal(np.zeros(100), 5, 0) != np.arange(100) % 5).any()


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
