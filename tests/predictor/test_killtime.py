"""Kill times hold what they promise."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from calmlflow.errors import InputError
from calmlflow.predictor.killtime import KillTime, fit_kill_time

COVERAGES = st.sampled_from([0.5, 0.75, 0.8, 0.95, 0.99])


def smallest_score(scores, coverage) -> float:
    """Brute force: the smallest score that enough of the jobs, and the job to come, are not above."""
    wanted = (len(scores) + 1) * Fraction(str(coverage))
    enough = [score for score in scores if sum(other <= score for other in scores) >= wanted]
    return min(enough, default=max(scores))


def spread_of(squares, mean) -> float:
    """Root mean square of some distances and of 50 jobs at the mean of all."""
    return math.sqrt((sum(square / mean for square in squares) + 50) / (len(squares) + 50))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 4)), min_size=1, max_size=80),
    COVERAGES,
    st.integers(0, 2**32 - 1),
)
def test_factors_and_spread_are_those_of_brute_force(jobs, coverage, seed):
    ratios = [ratio for ratio, _ in jobs]
    kinds = sorted({kind for _, kind in jobs})
    row = [kinds.index(kind) for _, kind in jobs]
    predicted = np.random.default_rng(seed).uniform(10, 1000, len(jobs))
    actual = predicted * ratios
    found = fit_kill_time(predicted, actual, row, coverage)

    distances = [math.log(a / p) for a, p in zip(actual, predicted, strict=True)]
    mean = sum(distance**2 for distance in distances) / len(jobs) or 1.0
    spread = [
        spread_of([d**2 for d, of in zip(distances, row, strict=True) if of == number], mean)
        for number in range(len(kinds))
    ]
    assert found.spread == (*(pytest.approx(expected) for expected in spread), 1.0)
    # Each score is measured in the spread of the other jobs of its row.
    scores = []
    for job, distance in enumerate(distances):
        others = [distances[other] ** 2 for other in range(len(jobs)) if row[other] == row[job] and other != job]
        scores.append(distance / spread_of(others, mean))
    group = [sum(value > edge for edge in found.edges_s) for value in predicted]
    assert sum(found.jobs) == len(jobs)
    assert found.coverage == coverage
    for number, (factor, count) in enumerate(zip(found.factors, found.jobs, strict=True)):
        members = [score for score, of in zip(scores, group, strict=True) if of == number]
        assert len(members) == count
        assert factor == pytest.approx(math.exp(max(smallest_score(members, coverage), 0)))


# By hand: jobs * (1 - coverage) / 5, rounded down.
@pytest.mark.parametrize(
    ("jobs", "coverage", "groups"),
    [(1, 0.9, 1), (5, 0.9, 1), (99, 0.9, 1), (101, 0.9, 2), (520, 0.9, 10), (2_001, 0.99, 4), (12_000, 0.999, 2)],
)
def test_groups_are_equal_and_have_room_for_several_jobs_above_the_promise(jobs, coverage, groups):
    generator = np.random.default_rng(jobs)
    predicted = generator.permutation(np.arange(1.0, jobs + 1))
    found = fit_kill_time(predicted, generator.uniform(1, jobs, jobs), np.arange(jobs) % 7, coverage)
    assert len(found.factors) == groups
    assert max(found.jobs) - min(found.jobs) <= 1
    assert sum(found.jobs) == jobs
    # In a group of fewer jobs the promise would hang on the longest job alone.
    assert groups == 1 or min(found.jobs) * (1 - coverage) >= 4.99


def reach(coverage: float, new: int, calibrated: int) -> float:
    """Three standard errors of a share of new jobs, and as much again for the jobs that calibrate."""
    return 3 * math.sqrt(coverage * (1 - coverage) * (1 / new + 1 / calibrated))


@pytest.mark.parametrize("coverage", [0.9, 0.99])
def test_the_promised_share_of_new_jobs_ends_in_time(coverage):
    """Jobs drawn alike, where short jobs vary much more than long ones: the promise holds in each group."""
    generator = np.random.default_rng(20)

    def draw(jobs):
        predicted = np.exp(generator.uniform(np.log(2_000), np.log(20_000), jobs))
        return predicted, predicted * np.exp(generator.normal(-0.1, 0.6 * 2_000 / predicted))

    calibration = draw(12_000)
    found = fit_kill_time(*calibration, np.zeros(12_000, dtype=int), coverage)
    predicted, actual = draw(60_000)
    in_time = actual <= found.apply(predicted, np.zeros(60_000, dtype=int))
    group = np.searchsorted(found.edges_s, predicted)
    assert len(found.factors) > 20
    assert in_time.mean() >= coverage - reach(coverage, len(predicted), 12_000)
    for number, (jobs, factor) in enumerate(zip(found.jobs, found.factors, strict=True)):
        # How many of the new jobs are in time is known to the last job: their limit has a rank among the calibrated.
        rank = math.ceil((jobs + 1) * coverage)
        law = betabinom(np.sum(group == number), rank, jobs + 1 - rank)
        count = np.sum(in_time[group == number])
        assert law.cdf(count) > 1e-5
        # Not by reserving too much either, but where the prediction itself is more than enough.
        assert factor == 1 or law.sf(count - 1) > 1e-5


@pytest.mark.parametrize("coverage", [0.99, 0.999])
def test_rows_that_run_steadily_need_less_and_the_promise_holds_all_the_same(coverage):
    """Rows whose jobs lie from a fortieth to as much as twice around their prediction."""
    generator = np.random.default_rng(5)
    wobble = generator.permutation(np.geomspace(0.025, 0.7, 300))
    predicted_of_row = np.exp(generator.uniform(np.log(500), np.log(5_000), 300))
    often = generator.permutation(np.geomspace(3, 100, 300))

    def draw(jobs):
        row = generator.choice(300, jobs, p=often / often.sum())
        return predicted_of_row[row], predicted_of_row[row] * np.exp(generator.normal(0, wobble[row])), row

    calibration = draw(20_000)
    # Some rows have had too few jobs to say much, as in the archive.
    assert 1 <= np.bincount(calibration[2]).min() < 20
    by_row = fit_kill_time(*calibration, coverage)
    without = fit_kill_time(*calibration[:2], np.zeros(20_000, dtype=int), coverage)
    assert without.spread == (pytest.approx(1), 1)
    predicted, actual, row = draw(100_000)
    limits = by_row.apply(predicted, row), without.apply(predicted)
    in_time = [actual <= limit for limit in limits]
    for found in in_time:
        assert found.mean() == pytest.approx(coverage, abs=reach(coverage, 100_000, 20_000))
    assert limits[0].sum() < 0.9 * limits[1].sum()
    # What runs most unsteadily was let down for what runs steadily, and is less so now.
    unsteady = wobble[row] > 0.5
    assert np.mean(~in_time[0][unsteady]) < 0.85 * np.mean(~in_time[1][unsteady])


def test_jobs_that_end_exactly_as_predicted_get_what_was_predicted():
    found = fit_kill_time([100.0, 300.0, 100.0], [100.0, 300.0, 100.0], [0, 1, 0])
    assert found.factors == (1.0,)
    # Not even then is a row told to need nothing at all: the 50 jobs of the mean count.
    assert found.spread == (pytest.approx(math.sqrt(50 / 52)), pytest.approx(math.sqrt(50 / 51)), 1.0)
    assert found.apply([100.0, 300.0], np.array([0, 1])).tolist() == [100, 300]


def test_a_factor_is_raised_to_the_spread_of_its_row():
    table = KillTime((500.0,), (2.0, 4.0), 0.9, (1, 1), (0.0, 0.5, 2.0, 3.0))
    predicted = [100.0, 100.0, 100.0, 1000.0, 1000.0]
    # By hand: 2^0, 2^0.5, 2^2 below the edge; 4^0.5 and 4^2 above it.
    assert table.apply(predicted, np.array([0, 1, 2, 1, 2])).tolist() == [100, 142, 400, 2000, 16000]
    # A job like none takes the last; where rows are not known, all are like the mean.
    assert table.apply(predicted, np.full(5, -1)).tolist() == [800, 800, 800, 64000, 64000]
    assert table.apply(predicted).tolist() == [200, 200, 200, 4000, 4000]
    # So does a table that knows no rows.
    assert KillTime((500.0,), (2.0, 4.0), 0.9, (1, 1)).apply(predicted, np.arange(5)).tolist() == [200] * 3 + [4000] * 2


def test_kill_times_are_whole_seconds_of_a_minute_to_two_days():
    # A prediction on an edge belongs below it; one that is no number gets all the time there is.
    table = KillTime((100.0, 200.0), (2.0, 3.0, 4.0), 0.9, (1, 1, 1))
    found = table.apply([[0.0, 29.9, 30.2, 100.0, 100.5], [200.0, 201.0, 43_200.0, math.inf, math.nan]])
    assert found.tolist() == [[60, 60, 61, 200, 302], [600, 804, *[172_800] * 3]]
    assert found.dtype == np.int64


EDGES = st.lists(st.floats(1, 1e6), max_size=5, unique=True).map(sorted)
# In millionths, as they are written.
SPREAD = st.lists(st.integers(0, 999 * 10**6).map(lambda number: number / 10**6), max_size=6)


@given(EDGES, st.data(), st.floats(0.01, 0.999), SPREAD)
def test_a_table_is_what_it_was_after_a_round_trip(edges, data, coverage, spread):
    count = len(edges) + 1
    factors = data.draw(st.lists(st.floats(1, 100), min_size=count, max_size=count))
    jobs = data.draw(st.lists(st.integers(0, 10**6), min_size=count, max_size=count))
    table = KillTime(tuple(edges), tuple(factors), coverage, tuple(jobs), tuple(spread))
    assert KillTime.from_json(table.to_json()) == table


GOOD = {"edges_s": [10.0], "factors": [2.0, 3.0], "coverage": 0.9, "jobs": [5, 5]}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000,
        *(json.dumps({**GOOD, **change}).encode() for change in (
            {"edges_s": ["x"]}, {"edges_s": []}, {"edges_s": [1, 2]}, {"edges_s": [float("nan")]},
            {"factors": [2.0]}, {"factors": [2.0, 0.0]}, {"factors": [2.0, float("inf")]}, {"factors": [2.0, 10**400]},
            {"coverage": 0}, {"coverage": 1}, {"coverage": "most"}, {"jobs": [5]}, {"jobs": [5, float("inf")]},
            {"spread": [1, -0.1]}, {"spread": [1, 1000]}, {"spread": [None]}, {"spread": "1"}, {"spread": {"1": 1}},
        )),
        json.dumps({**GOOD, "edges_s": [20, 10], "factors": [1, 1, 1], "jobs": [1, 1, 1]}).encode(),
        *(json.dumps({key: value for key, value in GOOD.items() if key != left_out}).encode() for left_out in GOOD),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_told(text):
    # A table of an earlier release has no spread.
    assert KillTime.from_json(json.dumps(GOOD)) == KillTime((10.0,), (2.0, 3.0), 0.9, (5, 5))
    with pytest.raises(InputError, match=r"killtime\.json"):
        KillTime.from_json(text)


@pytest.mark.parametrize(("jobs", "held"), [((998,), 998 / 999), ((999,), 0.999), ((5000, 9), 0.9), ((0,), 0.0)])
def test_few_calibration_jobs_vouch_for_less(jobs, held):
    """The longest of n jobs is outlived by one in n + 1 to come."""
    table = KillTime((50.0,) * (len(jobs) - 1), (2.0,) * len(jobs), 0.999, jobs)
    assert table.held_coverage == pytest.approx(held)
