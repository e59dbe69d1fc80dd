"""Kill times hold what they promise."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.hst.errors import InputError
from calmlflow.predictor.killtime import KillTime, fit_kill_time

COVERAGES = st.sampled_from([0.5, 0.75, 0.8, 0.95, 0.99])


def smallest_factor(ratios, coverage) -> float:
    """Brute force: the smallest ratio that enough of the jobs, and the job to come, are not above."""
    wanted = (len(ratios) + 1) * Fraction(str(coverage))
    enough = [ratio for ratio in ratios if sum(other <= ratio for other in ratios) >= wanted]
    return max(min(enough, default=max(ratios)), 1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=80), COVERAGES, st.integers(0, 2**32 - 1))
def test_factors_are_those_of_brute_force(ratios, coverage, seed):
    predicted = np.random.default_rng(seed).uniform(10, 1000, len(ratios))
    actual = predicted * ratios
    found = fit_kill_time(predicted, actual, coverage)
    group = [sum(value > edge for edge in found.edges_s) for value in predicted]
    assert sum(found.jobs) == len(ratios)
    for number, (factor, jobs) in enumerate(zip(found.factors, found.jobs, strict=True)):
        members = [a / p for a, p, of in zip(actual, predicted, group, strict=True) if of == number]
        assert len(members) == jobs
        assert factor == pytest.approx(smallest_factor(members, coverage))


@pytest.mark.parametrize(("jobs", "coverage"), [(5, 0.9), (19, 0.95), (500, 0.9), (2001, 0.99), (5000, 0.999)])
def test_groups_are_equal_and_large_enough_for_the_promise(jobs, coverage):
    generator = np.random.default_rng(jobs)
    found = fit_kill_time(generator.permutation(np.arange(1, jobs + 1)), generator.uniform(1, jobs, jobs), coverage)
    needed = round(coverage / (1 - coverage))
    assert len(found.factors) >= max(1, jobs // (needed + 2))
    assert len(found.factors) == 1 or min(found.jobs) >= needed
    assert max(found.jobs) - min(found.jobs) <= 1
    assert sum(found.jobs) == jobs


def test_groups_differ_where_jobs_do():
    predicted = np.arange(1.0, 401)
    actual = predicted * np.where(predicted <= 200, 3.0, 1.5)
    found = fit_kill_time(predicted, actual, 0.99)
    assert found.factors[0] == 3
    assert found.factors[-1] == 1.5
    assert found.apply([100.0, 350.0]).tolist() == [300, 525]


def test_predictions_that_are_all_alike_are_one_group():
    found = fit_kill_time(np.full(1000, 50.0), np.linspace(1, 100, 1000), 0.9)
    assert sum(found.jobs) == 1000
    assert found.apply([50.0]).tolist() == [91]


@pytest.mark.parametrize("coverage", [0.9, 0.99])
def test_the_promised_share_of_new_jobs_ends_in_time(coverage):
    """Jobs drawn alike, where short jobs vary much more than long ones: the promise holds in each group."""
    generator = np.random.default_rng(20)

    def draw(jobs):
        predicted = np.exp(generator.uniform(np.log(2_000), np.log(20_000), jobs))
        return predicted, predicted * np.exp(generator.normal(-0.1, 0.6 * 2_000 / predicted))

    calibration = draw(3_000)
    found = fit_kill_time(*calibration, coverage)
    predicted, actual = draw(60_000)
    in_time = actual <= found.apply(predicted)
    group = np.searchsorted(found.edges_s, predicted)
    assert len(found.factors) > 20
    # Over all groups: binomial error of the new jobs, and as much again per calibration job.
    error = math.sqrt(coverage * (1 - coverage) * (1 / len(predicted) + 1 / 3_000))
    assert in_time.mean() >= coverage - 3 * error
    if coverage == 0.9:
        # Not by reserving too much either: a group of n jobs promises at most 1 / (n + 1) more.
        assert in_time.mean() <= coverage + 1 / min(found.jobs) + 3 * error
    for number, jobs in enumerate(found.jobs):
        share = in_time[group == number].mean()
        assert share >= coverage - 5 * math.sqrt(coverage * (1 - coverage) / jobs)


def test_a_factor_is_never_below_one():
    assert fit_kill_time([100.0] * 30, [10.0] * 30).factors == (1.0,)


def test_too_few_jobs_for_the_promise_give_the_largest_ratio():
    assert fit_kill_time([100.0] * 3, [150.0, 420.0, 200.0], 0.999).factors == (4.2,)


def test_a_prediction_on_an_edge_belongs_below_it():
    table = KillTime((100.0, 200.0), (2.0, 3.0, 4.0), 0.9, (1, 1, 1))
    assert table.apply([100.0, 100.5, 200.0, 201.0]).tolist() == [200, 302, 600, 804]


def test_kill_times_are_whole_seconds_of_a_minute_to_two_days():
    table = KillTime((), (2.0,), 0.9, (1,))
    found = table.apply([[0.0, 29.9, 30.2], [86_399.8, 86_400.0, 1e9]])
    assert found.tolist() == [[60, 60, 61], [172_800, 172_800, 172_800]]
    assert found.dtype == np.int64


EDGES = st.lists(st.floats(1, 1e6), max_size=5, unique=True).map(sorted)


@given(EDGES, st.data(), st.floats(0.01, 0.999))
def test_a_table_is_what_it_was_after_a_round_trip(edges, data, coverage):
    count = len(edges) + 1
    factors = data.draw(st.lists(st.floats(1, 100), min_size=count, max_size=count))
    jobs = data.draw(st.lists(st.integers(0, 10**6), min_size=count, max_size=count))
    table = KillTime(tuple(edges), tuple(factors), coverage, tuple(jobs))
    assert KillTime.from_json(table.to_json()) == table


GOOD = {"edges_s": [10.0], "factors": [2.0, 3.0], "coverage": 0.9, "jobs": [5, 5]}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000,
        *(json.dumps({**GOOD, **change}).encode() for change in (
            {"edges_s": None}, {"edges_s": ["x"]}, {"edges_s": []}, {"edges_s": [1, 2]}, {"edges_s": [float("nan")]},
            {"factors": []}, {"factors": [2.0]}, {"factors": [2.0, 0.0]}, {"factors": [2.0, -1.0]},
            {"factors": [2.0, float("inf")]}, {"factors": [2.0, float("nan")]}, {"coverage": 0}, {"coverage": 1},
            {"coverage": "most"}, {"coverage": float("nan")}, {"jobs": [5]}, {"jobs": [5, "x"]},
            {"jobs": [5, float("inf")]}, {"factors": [2.0, 10**400]},
        )),
        json.dumps({**GOOD, "edges_s": [20, 10], "factors": [1, 1, 1], "jobs": [1, 1, 1]}).encode(),
        *(json.dumps({key: value for key, value in GOOD.items() if key != left_out}).encode() for left_out in GOOD),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_told(text):
    assert KillTime.from_json(json.dumps(GOOD)).factors == (2.0, 3.0)
    with pytest.raises(InputError, match=r"killtime\.json"):
        KillTime.from_json(text)
