"""Kill times hold what they promise."""

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom

from benchmarks.killed_jobs import SCORES, simulate
from calmlflow.errors import InputError
from calmlflow.predictor.killtime import PROGRAMME_JOBS, KillTime, Known, fit_kill_time

COVERAGES = st.sampled_from([0.5, 0.75, 0.8, 0.95, 0.99])


def smallest_score(scores, weights, coverage) -> float:
    """Brute force: the smallest score that enough of the jobs, and the job to come, are not above."""
    wanted = (sum(weights) + 1) * Fraction(str(coverage))
    not_above = {limit: sum(w for score, w in zip(scores, weights, strict=True) if score <= limit) for limit in scores}
    return min((limit for limit, weight in not_above.items() if weight >= wanted), default=max(scores))


def weights_of(kinds) -> list[Fraction]:
    """Of each job, such that none of the kinds counts as more than 150 jobs."""
    jobs = Counter(kinds)
    return [min(Fraction(1), Fraction(150, jobs[kind])) for kind in kinds]


def spread_of(squares, weights, mean) -> float:
    """Root mean square of some distances and of 50 jobs at the mean of all."""
    total = sum(weight * square / mean for square, weight in zip(squares, weights, strict=True))
    return math.sqrt((total + 50) / (sum(weights) + 50))


@settings(deadline=None)
@given(
    # Ratio, row and programme.
    st.lists(st.tuples(st.floats(0.05, 20), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60),
    # How many more jobs are like the first: with more than 150 a programme weighs less.
    st.sampled_from([0, 200]),
    COVERAGES,
    st.integers(0, 2**32 - 1),
)
def test_factors_and_spread_are_those_of_brute_force(jobs, more, coverage, seed):
    jobs = [*jobs, *jobs[:1] * more]
    ratios, kinds, programme = zip(*jobs, strict=True)
    row = [sorted(set(kinds)).index(kind) for kind in kinds]
    # Few different predictions: many jobs are at the same one.
    predicted = np.random.default_rng(seed).integers(10, 30, len(jobs)).astype(float)
    actual = predicted * ratios
    found = fit_kill_time(predicted, actual, row, programme, coverage=coverage)

    distances = [math.log(a / p) for a, p in zip(actual, predicted, strict=True)]
    cells = list(zip(row, programme, strict=True))
    in_cell = dict(zip(cells, weights_of(cells), strict=True))
    squares = [distance**2 * in_cell[cell] for distance, cell in zip(distances, cells, strict=True)]
    mean = sum(squares) / sum(in_cell[cell] for cell in cells) or 1.0

    def spread_in(members) -> float:
        return spread_of([distances[job] ** 2 for job in members], [in_cell[cells[job]] for job in members], mean)

    everyone = range(len(jobs))
    spread = [spread_in([job for job in everyone if row[job] == number]) for number in range(max(row) + 1)]
    assert found.spread == (*(pytest.approx(expected) for expected in spread), 1.0)
    # Each score is measured in the spread of the other programmes of its row.
    of_others = {
        (number, name): spread_in([job for job in everyone if row[job] == number and programme[job] != name])
        for number, name in in_cell
    }
    scores = [distances[job] / of_others[cells[job]] for job in everyone]
    weights = weights_of(programme)
    group = [sum(value > edge for edge in found.edges_s) for value in predicted]
    assert found.coverage == coverage
    assert set(group) == set(range(len(found.factors)))
    for number, (factor, count) in enumerate(zip(found.factors, found.jobs, strict=True)):
        members = [job for job in everyone if group[job] == number]
        of_members = [weights[job] for job in members]
        assert count == int(sum(of_members))
        expected = smallest_score([scores[job] for job in members], of_members, coverage)
        assert factor == pytest.approx(math.exp(max(expected, 0)))


# By hand: jobs * (1 - coverage) / 5, rounded down.
@pytest.mark.parametrize(
    ("jobs", "coverage", "groups"),
    [(1, 0.9, 1), (5, 0.9, 1), (99, 0.9, 1), (101, 0.9, 2), (520, 0.9, 10), (2_001, 0.99, 4), (12_000, 0.999, 2)],
)
def test_groups_are_equal_and_have_room_for_several_jobs_above_the_promise(jobs, coverage, groups):
    generator = np.random.default_rng(jobs)
    predicted = generator.permutation(np.arange(1.0, jobs + 1))
    found = fit_kill_time(predicted, generator.uniform(1, jobs, jobs), np.arange(jobs) % 7, coverage=coverage)
    assert len(found.factors) == groups
    assert max(found.jobs) - min(found.jobs) <= groups
    assert sum(found.jobs) == jobs
    # In a group of fewer jobs the promise would hang on the longest job alone.
    assert groups == 1 or min(found.jobs) * (1 - coverage) >= 4.97


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 400)), min_size=1, max_size=20, unique_by=lambda tie: tie[0])
)
def test_equal_predictions_share_a_group_and_no_group_is_small(ties):
    """Not even where most jobs have one prediction, or the longest is the most frequent."""
    predicted = np.repeat([float(value) for value, _ in ties], [jobs for _, jobs in ties])
    found = fit_kill_time(predicted, predicted, np.zeros(len(predicted), dtype=int), coverage=0.9)
    assert sum(found.jobs) == len(predicted)
    # Half the least size, 5 / (1 - coverage).
    assert min(found.jobs) >= min(25, len(predicted))
    assert max(found.edges_s, default=0) < predicted.max()


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
    found = fit_kill_time(*calibration, np.zeros(12_000, dtype=int), coverage=coverage)
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
    by_row = fit_kill_time(*calibration, coverage=coverage)
    without = fit_kill_time(*calibration[:2], np.zeros(20_000, dtype=int), coverage=coverage)
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


def draw_programmes(generator, programmes, jobs_of_each, deviation):
    """Jobs of programmes that each run longer or shorter than predicted as a whole, and their programmes."""
    jobs = np.repeat(np.arange(programmes), jobs_of_each)
    return np.exp(generator.normal(0, deviation, programmes))[jobs] * np.exp(generator.normal(0, 0.05, len(jobs))), jobs


def test_a_programme_of_many_equal_jobs_does_not_vouch_for_others():
    """500 jobs of one programme as predicted, and 300 programmes of one job each."""
    generator = np.random.default_rng(3)
    ratio, programme = draw_programmes(generator, 300, 1, 0.5)
    ratio, programme = np.append(ratio, np.ones(500)), np.append(programme, np.full(500, 300))
    predicted, row = np.full(800, 100.0), np.zeros(800, dtype=int)
    new = 100 * draw_programmes(generator, 50_000, 1, 0.5)[0]
    by_programme, by_job = (
        fit_kill_time(predicted, 100 * ratio, row, *kind, coverage=0.95) for kind in ((programme,), ())
    )
    assert by_programme.jobs == (300 + PROGRAMME_JOBS,)
    # By hand: of 300 + 150 jobs that count 95 % end in time, 150 of them in the large programme.
    shares = [np.mean(new <= found.apply(np.full(50_000, 100.0))) for found in (by_programme, by_job)]
    assert shares[0] >= (0.95 * 450 - 150) / 300 - reach(0.95, 50_000, 300)
    assert shares[0] > shares[1] + 0.04


def test_known_and_new_programmes_each_get_what_they_need():
    """Programmes of 20 and of 60 jobs: with some jobs known, the mean of a programme is known nearly."""
    generator = np.random.default_rng(4)
    actual, programme = draw_programmes(generator, 600, np.tile([20, 60], 300), 0.5)
    count = np.bincount(programme)[programme] - 1
    without_job = np.exp((np.bincount(programme, np.log(actual))[programme] - np.log(actual)) / count)
    row = np.zeros(len(actual), dtype=int)
    found = fit_kill_time(np.full(len(actual), 1e3), 1e3 * actual, row, programme, (1e3 * without_job, count), 0.99)
    assert [groups.from_jobs for groups in found.known] == [1, 30]

    # New jobs: of programmes that are known from the calibration, and of others.
    mean = np.exp(np.bincount(programme, np.log(actual)) / np.bincount(programme))
    of_known = np.repeat(np.arange(600), 50)
    true = mean[of_known] * np.exp(generator.normal(0, 0.05, len(of_known)))
    limit = found.apply(1e3 * mean[of_known], np.zeros(len(of_known), dtype=int), np.bincount(programme)[of_known])
    assert np.mean(1e3 * true <= limit) >= 0.99 - reach(0.99, len(of_known), len(actual))
    assert limit.sum() < 1.5 * 1e3 * true.sum()
    others = 1e3 * draw_programmes(generator, 20_000, 1, 0.5)[0]
    limit = found.apply(np.full(20_000, 1e3), np.zeros(20_000, dtype=int), np.zeros(20_000, dtype=int))
    # 600 programmes are what a new one is measured by.
    assert np.mean(others <= limit) >= 0.99 - reach(0.99, 20_000, 600)


def test_a_state_of_too_few_jobs_is_that_of_the_jobs_known_less_well():
    """99 jobs can promise 99 %, 98 cannot."""
    row = np.zeros(300, dtype=int)
    for known_well, starts in ((98, [1]), (99, [1, 30])):
        in_programme = np.repeat([0, 29, 30], [0, 300 - known_well, known_well])
        found = fit_kill_time(np.full(300, 9.0), np.full(300, 9.0), row, None, (np.full(300, 9.0), in_programme), 0.99)
        assert [groups.from_jobs for groups in found.known] == starts
        assert found.held_coverage == 0.99
    # A few dozen jobs: none of the states, and it is told.
    few = fit_kill_time(np.full(30, 9.0), np.full(30, 9.0), row[:30], None, (np.full(30, 9.0), np.full(30, 29)), 0.99)
    assert few.known == ()
    assert few.held_coverage == pytest.approx(30 / 31)


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


def test_jobs_of_known_programmes_have_factors_of_their_own():
    known = Known(1, (), (1.5,), (1,)), Known(30, (50.0, 200.0), (1.1, 1.2, 1.3), (1, 1, 1))
    table = KillTime((500.0,), (2.0, 4.0), 0.9, (1, 1), (0.0, 2.0, 1.0), known)
    # By hand; 1.3 * 1.3 is a little above 1.69.
    predicted, in_programme = np.array([1000.0, 100, 1000, 100, 200, 1000]), np.array([0, 1, 29, 30, 30, 99])
    assert table.apply(predicted, None, in_programme).tolist() == [4000, 150, 1500, 120, 240, 1300]
    assert table.apply(predicted, np.full(6, 1), in_programme).tolist() == [16000, 225, 2250, 144, 288, 1691]
    groups = zip(predicted.tolist(), in_programme.tolist(), strict=True)
    assert [table.group_of(*job)[0] for job in groups] == [4, 1.5, 1.5, 1.2, 1.2, 1.3]
    # Where names are not known, no programme is.
    assert table.apply(predicted).tolist() == [4000, 200, 4000, 200, 400, 4000]
    assert table.apply([math.nan], None, np.array([30])).tolist() == [172_800]
    # A table without evidence treats all alike.
    assert KillTime((), (2.0,), 0.9, (1,)).apply([100.0], None, np.array([50])).tolist() == [200]


def test_kill_times_are_whole_seconds_of_a_minute_to_two_days():
    # A prediction on an edge belongs below it; one that is no number gets all the time there is.
    table = KillTime((100.0, 200.0), (2.0, 3.0, 4.0), 0.9, (1, 1, 1))
    found = table.apply([[0.0, 29.9, 30.2, 100.0, 100.5], [200.0, 201.0, 43_200.0, math.inf, math.nan]])
    assert found.tolist() == [[60, 60, 61, 200, 302], [600, 804, *[172_800] * 3]]
    assert found.dtype == np.int64


EDGES = st.lists(st.floats(1, 1e6), max_size=5, unique=True).map(sorted)
# In millionths, as they are written.
SPREAD = st.lists(st.integers(0, 999 * 10**6).map(lambda number: number / 10**6), max_size=6)


@st.composite
def groups(draw):
    edges = draw(EDGES)
    count = len(edges) + 1
    factors = draw(st.lists(st.floats(1, 100), min_size=count, max_size=count))
    jobs = draw(st.lists(st.integers(0, 10**6), min_size=count, max_size=count))
    return tuple(edges), tuple(factors), tuple(jobs)


@given(groups(), st.dictionaries(st.integers(1, 10**6), groups(), max_size=3), st.floats(0.01, 0.999), SPREAD)
def test_a_table_is_what_it_was_after_a_round_trip(new, known, coverage, spread):
    states = tuple(Known(from_jobs, *known[from_jobs]) for from_jobs in sorted(known))
    table = KillTime(*new[:2], coverage, new[2], tuple(spread), states)
    assert KillTime.from_json(table.to_json()) == table


KNOWN = {"from_jobs": 1, "edges_s": [], "factors": [1.5], "jobs": [9]}
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
            {"known": None}, {"known": "1"}, {"known": [1]}, {"known": [KNOWN, KNOWN]}, {"known": [{}]},
            *({"known": [{**KNOWN, **damage}]} for damage in (
                {"from_jobs": 0}, {"from_jobs": "some"}, {"from_jobs": 10**30}, {"edges_s": [1]}, {"factors": [0]},
                {"jobs": []}, {"edges_s": [2, 1], "factors": [1, 1, 1], "jobs": [1, 1, 1]},
            )),
        )),
        json.dumps({**GOOD, "edges_s": [20, 10], "factors": [1, 1, 1], "jobs": [1, 1, 1]}).encode(),
        *(json.dumps({key: value for key, value in GOOD.items() if key != left_out}).encode() for left_out in GOOD),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_told(text):
    # Tables of earlier releases have no known programmes, or no spread either.
    assert KillTime.from_json(json.dumps({**GOOD, "spread": [2]})).spread == (2.0,)
    assert KillTime.from_json(json.dumps({**GOOD, "known": [KNOWN]})).known == (Known(1, (), (1.5,), (9,)),)
    assert KillTime.from_json(json.dumps(GOOD)) == KillTime((10.0,), (2.0, 3.0), 0.9, (5, 5))
    with pytest.raises(InputError, match=r"killtime\.json"):
        KillTime.from_json(text)


@pytest.mark.parametrize(("jobs", "held"), [((998,), 998 / 999), ((999,), 0.999), ((5000, 9), 0.9), ((0,), 0.0)])
def test_few_calibration_jobs_vouch_for_less(jobs, held):
    """The longest of n jobs is outlived by one in n + 1 to come."""
    table = KillTime((50.0,) * (len(jobs) - 1), (2.0,) * len(jobs), 0.999, jobs)
    assert table.held_coverage == pytest.approx(held)


# -- Killed jobs ------------------------------------------------------------------------------------------------------


def drawn(jobs=20_000, seed=0):
    generator = np.random.default_rng(seed)
    predicted_s = np.exp(generator.normal(6, 1, jobs))
    return predicted_s, predicted_s * np.exp(generator.laplace(0, 0.2, jobs))


def test_jobs_killed_at_their_kill_time_count_as_longer_than_it():
    predicted_s, actual_s = drawn()
    rows = np.zeros(len(predicted_s), dtype=int)
    truth = fit_kill_time(predicted_s, actual_s, rows)
    # One in two hundred is killed.
    limit_s = truth.apply(predicted_s) * 0.7
    killed = actual_s > limit_s
    assert 0.002 < killed.mean() < 0.01
    reached_s = np.minimum(actual_s, limit_s)
    kept = fit_kill_time(predicted_s, reached_s, rows, was_killed=killed)
    survivors = fit_kill_time(predicted_s[~killed], actual_s[~killed], rows[~killed])
    later_s, used_s = drawn(400_000, seed=1)
    covered = {one: np.mean(used_s <= one.apply(later_s)) for one in (truth, kept, survivors)}
    assert covered[survivors] < 0.9960
    assert covered[kept] == pytest.approx(0.999, abs=0.0005)


def test_a_job_that_its_machine_ended_early_changes_little():
    predicted_s, actual_s = drawn()
    rows = np.zeros(len(predicted_s), dtype=int)
    generator = np.random.default_rng(2)
    ended = generator.random(len(rows)) < 0.2
    reached_s = np.where(ended, actual_s * generator.uniform(0.01, 1, len(rows)), actual_s)
    found = fit_kill_time(predicted_s, reached_s, rows, was_killed=ended)
    later_s, used_s = drawn(400_000, seed=1)
    assert np.mean(used_s <= found.apply(later_s)) == pytest.approx(0.999, abs=0.0005)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=60), st.floats(0.5, 0.95))
def test_a_kill_never_lowers_a_kill_time(scores, coverage):
    actual_s = 1000 * np.exp(scores)
    predicted_s, rows = np.full(len(scores), 1000.0), np.zeros(len(scores), dtype=int)
    kill_time = fit_kill_time(predicted_s, actual_s, rows, coverage=coverage).apply([1000.0])[0]
    killed = actual_s >= np.quantile(actual_s, 0.5)
    assert fit_kill_time(
        predicted_s, actual_s, rows, coverage=coverage, was_killed=killed
    ).apply([1000.0])[0] >= kill_time  # fmt: skip


def test_kill_times_hold_over_many_retrainings_where_kills_are_kept():
    kept, left_out = (simulate(SCORES["Laplace"], keep, rounds=10, jobs=10_000) for keep in (True, False))
    assert np.mean([one.coverage for one in kept[-5:]]) == pytest.approx(0.999, abs=0.0005)
    assert kept[-1].reserved < 1.15 * kept[0].reserved
    assert left_out[-1].coverage < 0.995
