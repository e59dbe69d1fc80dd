"""Training on distinct rows is training on every job, and each member learns from all but the jobs it leaves out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calmlflow.networks.rows import RowSet, distinct_rows, training_rows

# Few values in few columns, so that equal rows are common and rows that differ in one column only are too.
ROWS = hnp.arrays(
    float, st.tuples(st.integers(1, 40), st.just(9)), elements=st.sampled_from([0.0, 1.0, 2.5]), fill=st.just(1.0)
)


@settings(deadline=None)
@given(ROWS)
def test_distinct_rows_are_those_of_numpy(features):
    expected, row_of_job, counts = np.unique(features, axis=0, return_inverse=True, return_counts=True)
    rows = distinct_rows(features)
    np.testing.assert_array_equal(rows.features, expected)
    np.testing.assert_array_equal(rows.row_of_job, row_of_job)
    np.testing.assert_array_equal(rows.counts, counts)
    np.testing.assert_allclose(rows.weights, counts / len(features), rtol=1e-6)


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**32 - 1))
def test_weighted_losses_of_rows_are_those_of_the_jobs(features, seed):
    generator = np.random.default_rng(seed)
    rows = distinct_rows(features)
    bins = generator.integers(0, 4, len(features))
    log_predicted = np.log(generator.dirichlet(np.ones(4), len(rows.counts)))
    per_job = -log_predicted[rows.row_of_job, bins].mean()
    assert -(rows.weights[:, None] * rows.bin_shares(bins) * log_predicted).sum() == pytest.approx(per_job, rel=1e-4)
    values, predicted = generator.lognormal(3, 1, len(features)), generator.lognormal(3, 1, len(rows.counts))
    per_job = np.mean((predicted[rows.row_of_job] - values) ** 2)
    by_row = np.sum(rows.weights * (predicted - rows.means(values)) ** 2) + rows.spread(values)
    assert by_row == pytest.approx(per_job, rel=1e-4)


def test_no_function_of_the_rows_goes_below_the_spread():
    features = np.zeros((4, 9))
    features[3, 8] = 1
    rows = distinct_rows(features)
    assert rows.means([1, 2, 6, 50]).tolist() == [3, 50]
    # By hand: (4 + 1 + 9 + 0) / 4.
    assert rows.spread([1, 2, 6, 50]) == pytest.approx(3.5)
    assert rows.bin_shares([0, 0, 3, 1]).tolist() == [pytest.approx([2 / 3, 0, 0, 1 / 3]), [0, 1, 0, 0]]
    # A job that needs one of several bins.
    shares = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1], [0, 0.25, 0, 0.75]])
    assert rows.bin_shares(shares).tolist() == [pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3]), [0, 0.25, 0, 0.75]]


@st.composite
def dealt_jobs(draw):
    """Features of jobs of which many are alike, and the member that leaves each out; no member is without."""
    members = draw(st.integers(2, 4))
    dealt = draw(st.permutations([*range(members), *draw(st.lists(st.integers(0, members - 1), max_size=20))]))
    kinds = draw(st.lists(st.integers(0, 5), min_size=len(dealt), max_size=len(dealt)))
    features = np.zeros((len(dealt), 9))
    features[:, 1] = kinds
    return features, np.array(dealt)


def check_set(found: RowSet, index: int, jobs: list[int], row_of_job, values, is_classifier: bool) -> None:
    """Hold one member's part of a set against its jobs, in plain Python."""
    distances = []
    for row in range(max(row_of_job) + 1):
        own = [float(values[job]) for job in jobs if row_of_job[job] == row]
        assert found.weights[index, row] == pytest.approx(len(own) / len(jobs), rel=1e-5)
        if is_classifier:
            shares = [sum(value == rung for value in own) / max(len(own), 1) for rung in range(4)]
            assert found.targets[index, row].tolist() == pytest.approx(shares, rel=1e-5)
        elif own:
            mean = sum(own) / len(own)
            assert found.targets[index, row] == pytest.approx(mean, rel=1e-5)
            distances += [(value - mean) ** 2 for value in own]
        else:
            # A weight of 0 does not help where the logarithm is not finite.
            assert np.isfinite(np.log(found.targets[index, row]))
    spread = 0 if is_classifier else sum(distances) / len(jobs)
    assert found.spread[index] == pytest.approx(spread, rel=1e-4, abs=1e-6)


@settings(deadline=None)
@given(dealt_jobs(), st.booleans(), st.integers(0, 2**32 - 1))
def test_each_member_learns_from_all_jobs_but_those_it_leaves_out(jobs, is_classifier, seed):
    features, dealt = jobs
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 4, len(dealt)) if is_classifier else generator.lognormal(2, 1, len(dealt))
    rows = distinct_rows(features)
    found = training_rows(rows.features / 2, rows, values, dealt, is_classifier)
    members, everyone = max(dealt) + 1, list(range(len(dealt)))
    np.testing.assert_array_equal(found.inputs, (rows.features / 2).astype(np.float32))
    np.testing.assert_array_equal(found.inputs[found.row_of_job], features / 2)
    np.testing.assert_array_equal(found.member_of_job, dealt)
    for part, count in ((found.fit, members), (found.validation, members), (found.train, 1)):
        shape = (count, len(rows.counts))
        assert part.targets.shape == ((*shape, 4) if is_classifier else shape)
        assert (part.weights.shape, part.spread.shape) == (shape, (count,))
        assert {array.dtype for array in (part.targets, part.weights, part.spread)} == {np.dtype(np.float32)}
    for member in range(members):
        learnt = [job for job in everyone if dealt[job] != member]
        left_out = [job for job in everyone if dealt[job] == member]
        check_set(found.fit, member, learnt, rows.row_of_job, values, is_classifier)
        check_set(found.validation, member, left_out, rows.row_of_job, values, is_classifier)
    check_set(found.train, 0, everyone, rows.row_of_job, values, is_classifier)
    # Every job is left out once: the parts left out make up the rows' jobs.
    sizes = np.bincount(dealt)
    np.testing.assert_allclose(sizes @ found.validation.weights, rows.counts, rtol=1e-5)
