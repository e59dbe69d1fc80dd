"""What each member learns from and validates on is what its jobs say, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.rows import RowSet, training_rows
from calmlflow.runs.data import load_training_data


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


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:300", 2, 0.2)


@pytest.mark.parametrize(
    ("network", "column", "members"),
    [("mem_clf", "mem_bin", 2), ("mem_reg", "memory", 3), ("wall_reg", "wallclock", 5)],
)
def test_the_training_jobs_of_a_network_are_dealt_by_bin_and_seed(data, network, column, members):
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
    again, other = data.training_rows(network, members, 7), data.training_rows(network, members, 8)
    np.testing.assert_array_equal(again.member_of_job, found.member_of_job)
    assert np.any(other.member_of_job != found.member_of_job)
