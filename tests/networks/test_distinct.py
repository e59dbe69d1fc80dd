"""Training on distinct rows is training on every job."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calmlflow.networks.distinct import distinct_rows

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
def test_weighted_cross_entropy_is_that_of_the_jobs(features, seed):
    generator = np.random.default_rng(seed)
    rows = distinct_rows(features)
    bins = generator.integers(0, 4, len(features))
    log_predicted = np.log(generator.dirichlet(np.ones(4), len(rows.counts)))
    per_job = -log_predicted[rows.row_of_job, bins].mean()
    shares = rows.bin_shares(bins)
    assert shares.shape == (len(rows.counts), 4)
    assert -(rows.weights[:, None] * shares * log_predicted).sum() == pytest.approx(per_job, rel=1e-4)


@settings(deadline=None)
@given(ROWS, st.integers(0, 2**32 - 1))
def test_weighted_squared_error_and_spread_are_the_error_of_the_jobs(features, seed):
    generator = np.random.default_rng(seed)
    rows = distinct_rows(features)
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
