"""Realised scores by brute force, and their intervals by published figures and the delta method."""

import math

import numpy as np
import pandas as pd
import pytest

from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.sample import draw_sample
from calmlflow.results.realised import Realised, count_runs, ended_runs, join_predictions, realised_scores
from tests.samples.prediction_samples import predicted, recorded
from tests.samples.realised_samples import killed, killed_table, sampled_realised

JOBS = draw_sample(2000)


def ended(jobs: pd.DataFrame, *kills: dict) -> pd.DataFrame:
    return ended_runs(jobs, killed_table(*kills))


def test_the_latest_prediction_before_the_end_is_joined_and_only_the_version_asked_for_is_judged():
    jobs = JOBS.iloc[:7]
    first, second, third, fourth, fifth, sixth, seventh = (row for _, row in jobs.iterrows())
    end = float(first["timestamp"])
    joined = join_predictions(
        ended(jobs),
        recorded(
            predicted(first, timestamp=end - 5, bin_pred=0),
            predicted(first, timestamp=end, bin_pred=2),
            predicted(first, timestamp=end + 1, bin_pred=3),
            # No job ran with a shadow answer.
            predicted(first, timestamp=end, bin_pred=1, source="shadow"),
            # It ran with the answer of another version: the earlier one of this version does not count.
            predicted(second, timestamp=1.0),
            predicted(second, version="2"),
            predicted(third, version="2"),
            predicted(fourth, source="policy", version=None),
            predicted(fifth, kill_time=None),
            predicted(sixth, source="cache"),
            predicted(JOBS.iloc[100]),
        ).predictions,
        "3",
    )
    assert joined.judged.set_index("ipst")["bin_pred"].to_dict() == {first["ipst"]: 2, sixth["ipst"]: sixth["mem_bin"]}
    assert joined.others == {"2": 2}
    assert joined.left_out == 2
    assert seventh["ipst"] not in set(joined.judged["ipst"])


def brute_force(judged: pd.DataFrame) -> dict[str, float]:
    hits = spent = best = in_time = too_low = 0.0
    for _, job in judged.iterrows():
        probabilities = [job[f"prob_{rung.name}"] for rung in LADDER]
        hits += probabilities.index(max(probabilities)) == job["mem_bin"]
        in_time += job["wallclock"] <= job["kill_time"]
        prices = [rung.usd_per_hour / rung.jobs_at_once / 3600 for rung in LADDER]
        chosen, needed = int(job["bin_pred"]), int(job["mem_bin"])
        too_low += chosen < needed
        rungs = [chosen] if chosen >= needed else range(chosen, needed + 1)
        spent += sum(prices[rung] for rung in rungs) * job["wallclock"]
        best += prices[needed] * job["wallclock"]
    n = len(judged)
    shares = {"accuracy": hits / n, "kill_time_coverage": in_time / n, "underallocated": too_low / n}
    return {**shares, "excess_cost": spent / best - 1}


def answered(jobs: pd.DataFrame, seed: int = 0, wrong: float = 0.3) -> pd.DataFrame:
    """Predictions of which about a share is wrong in each way."""
    draw = np.random.default_rng(seed)
    records = [
        predicted(
            job,
            bin_pred=int(draw.integers(4)) if draw.random() < wrong else int(job["mem_bin"]),
            prob_8g=0.9 if draw.random() < wrong else 0.1,
            kill_time=int(job["wallclock"] * (0.9 if draw.random() < wrong else 2)) + 1,
        )
        for _, job in jobs.iterrows()
    ]
    return recorded(*records).predictions


def apart(jobs: pd.DataFrame) -> pd.DataFrame:
    """The jobs, each of a programme of its own."""
    return jobs.assign(ipst=[f"j{number:03}00000" for number in range(len(jobs))])


def held_out(jobs: pd.DataFrame) -> pd.DataFrame:
    """Their bins are known, and of hits the shares alone, as older trainings left them."""
    return jobs[["ipst", "timestamp", "mem_bin", "wallclock"]].assign(bin_pred=jobs["mem_bin"], split="test")


def test_realised_figures_are_those_of_brute_force():
    jobs = JOBS.iloc[:60]
    judged = join_predictions(ended(jobs), answered(jobs), "3").judged
    found = realised_scores(judged, held_out(JOBS.iloc[60:200]), {"accuracy": 1.0, "kill_time_coverage": 1.0})
    assert {one.score.name: one.found for one in found} == pytest.approx(brute_force(judged))
    assert {one.score.name: one.held_out for one in found} == {
        **dict.fromkeys(("accuracy", "kill_time_coverage"), 1),
        **dict.fromkeys(("underallocated", "excess_cost"), 0),
    }
    assert all(one.low < one.found - one.held_out < one.high for one in found)
    assert {(one.jobs, one.programmes) for one in found} == {(60, jobs["ipst"].str[:4].nunique())}


def test_hits_of_held_out_jobs_come_from_their_answers():
    answers = join_predictions(ended(JOBS.iloc[60:200]), answered(JOBS.iloc[60:200]), "3").judged
    found = realised_scores(join_predictions(ended(JOBS.iloc[:60]), answered(JOBS.iloc[:60]), "3").judged, answers, {})
    assert {one.score.name: one.held_out for one in found} == pytest.approx(brute_force(answers))


@pytest.mark.parametrize(
    ("kind", "worse"),
    [
        ("time", {"kill_time_coverage": 0.8, "excess_cost": 0.25}),
        ("memory", {"accuracy": 0.8, "underallocated": 0.2, "excess_cost": 0.25}),
        ("machine", {}),
        ("failed", {}),
    ],
)
def test_a_killed_job_counts_in_the_scores_of_what_killed_it(kind, worse):
    """Of 50 right answers 10 ended in a kill, after as long as a finished job takes; five were tried twice."""
    jobs = apart(JOBS.iloc[:50]).assign(wallclock=500.0, mem_bin=0)
    kills = [
        killed(ipst=job["ipst"], timestamp=job["timestamp"], kind=kind, wallclock=500.0) for _, job in jobs.iterrows()
    ]
    again = [{**kill, "timestamp": kill["timestamp"] + 900, "wallclock": 0.0} for kill in kills[40:45]]
    runs = join_predictions(ended(jobs.iloc[:40], *kills[40:], *again), answered(jobs, wrong=0)).judged
    base = join_predictions(ended(JOBS.iloc[50:150]), answered(JOBS.iloc[50:150], wrong=0)).judged
    found = {one.score.name: one for one in realised_scores(runs, base, {})}
    right = {"accuracy": 1.0, "underallocated": 0.0, "kill_time_coverage": 1.0, "excess_cost": 0.0}
    assert {name: one.found for name, one in found.items()} == pytest.approx({**right, **worse})
    assert {name: one.jobs for name, one in found.items()} == {
        **{name: 50 if name in worse else 40 for name in right},
        "excess_cost": 55 if worse else 40,
    }


def test_the_page_and_the_scores_agree():
    content = sampled_realised()
    base = join_predictions(ended(JOBS.iloc[:500]), answered(JOBS.iloc[:500])).judged
    found = {one.score.name: one for one in realised_scores(content.runs, base, {})}
    every = content.figures["all"]
    assert found["kill_time_coverage"].found == every["coverage"] < 1
    assert found["kill_time_coverage"].jobs == every["judged"]
    assert found["excess_cost"].found == every["excess_cost"]


def of_programmes(jobs: pd.DataFrame, size: int, failed: int) -> pd.DataFrame:
    """The jobs dealt to programmes, of which the first ones failed as a whole."""
    number = np.arange(len(jobs))
    names = [f"j{programme:03}{job:05}" for programme, job in zip(number // size, number, strict=True)]
    return jobs.assign(ipst=names, kill_time=jobs["wallclock"] + np.where(number < failed * size, -1, 1))


def test_a_programme_that_failed_is_one_failure_not_forty():
    answers = join_predictions(ended(JOBS.iloc[:1240]), answered(JOBS.iloc[:1240], wrong=0), "3").judged
    # One programme of 6 was killed, and 3 of 50 of those held out: that is perhaps by chance.
    judged, base = of_programmes(answers[:240], 40, 1), of_programmes(answers[240:], 20, 3)

    def coverage(judged: pd.DataFrame, base: pd.DataFrame) -> Realised:
        return next(
            one for one in realised_scores(count_runs(judged), base, {}) if one.score.name == "kill_time_coverage"
        )

    found = coverage(judged, base)
    assert (found.found, found.held_out, found.verdict()) == (200 / 240, 0.94, "no difference")
    assert coverage(apart(judged), apart(base)).verdict() == "worse"
    assert coverage(judged[:160], base).verdict() == "too few programmes"


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II, method 10, example a: 56/70 against 48/80 is 0.2 (0.0524 to 0.3339)."""
    jobs = JOBS.iloc[:80]
    judged = apart(join_predictions(ended(jobs), answered(jobs, wrong=0), "3").judged)
    judged["kill_time"] = judged["wallclock"] + np.where(np.arange(80) < 48, 1, -1)
    base = apart(JOBS.iloc[80:150]).assign(kill_time=JOBS["wallclock"] + np.where(np.arange(len(JOBS)) < 136, 1, -1))
    (found,) = realised_scores(count_runs(judged), base, {})
    # A little wider, for the t quantiles of 70 and 80 programmes.
    assert (found.low, found.high) == pytest.approx((-0.3339, -0.0524), abs=4e-3)
    assert [found.verdict(margin) for margin in (0, 0.19, 0.21)] == ["worse", "worse", "no difference"]


def test_the_interval_of_the_excess_cost_holds_what_both_sides_draw():
    """Against the delta method: the excess is a ratio of sums, whose standard error follows from its residuals."""
    jobs, others = JOBS.iloc[:1000], JOBS.iloc[1000:2000]
    judged = apart(join_predictions(ended(jobs), answered(jobs), "3").judged)
    base = held_out(apart(others)).assign(bin_pred=answered(others, seed=5)["bin_pred"].to_numpy())
    found = {one.score.name: one for one in realised_scores(judged, base, {})}["excess_cost"]
    variance = 0.0
    for side in (judged, base):
        prices = np.array([rung.usd_per_hour / rung.jobs_at_once for rung in LADDER])
        climb = np.array([[prices[c : max(c, n) + 1].sum() for n in range(4)] for c in range(4)])
        needed = side["mem_bin"].to_numpy(dtype=int)
        spent = climb[side["bin_pred"].to_numpy(dtype=int), needed] * side["wallclock"].to_numpy()
        best = prices[needed] * side["wallclock"].to_numpy()
        residuals = spent - spent.sum() / best.sum() * best
        variance += np.sum(residuals**2) / best.sum() ** 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.25)
