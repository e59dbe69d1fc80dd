"""Dollars and counts of predictions, by hand; the page and the figures, from a year of sample jobs."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from calmlflow.hst.ladder import LADDER
from calmlflow.jobs.predictions import Recorded
from calmlflow.jobs.sample import draw_sample
from calmlflow.results.report.realised import (
    RealisedContent,
    realised_html,
    realised_runs,
    realised_verdict,
)
from tests.samples.prediction_samples import predicted, recorded
from tests.samples.realised_samples import JANUARY_S, killed, killed_table, sampled_realised

PRICES = [rung.usd_per_hour / rung.jobs_at_once / 3600 for rung in LADDER]
ENDED_S = JANUARY_S + 40 * 86_400  # 2026-02-10
JOB = draw_sample(1).iloc[0].to_dict() | {"ipst": "j8c601020", "timestamp": ENDED_S, "wallclock": 500.0, "mem_bin": 1}


@pytest.fixture(scope="module")
def content():
    return sampled_realised()


def runs_of(jobs=(), kills=(), **answer) -> list[dict]:
    """Runs of one dataset that ended as told, all with one answer given before any of them ended."""
    told = predicted(pd.Series(JOB), **{"timestamp": float(JANUARY_S - 1), "kill_time": 600, **answer})
    table = pd.DataFrame([{**JOB, **job} for job in jobs], columns=list(JOB))
    runs, _ = realised_runs(table, killed_table(*(killed(**kill) for kill in kills)), recorded(told).predictions)
    return runs.to_dict("records")


def dollars(run: dict) -> list[float]:
    return [run[name] for name in ("paid", "perfect", "lost_to_kills", "lost_to_air")]


# -- Dollars and counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rung", "paid", "to_kills", "to_air"),
    [(1, PRICES[1], 0, 0), (0, PRICES[0] + PRICES[1], PRICES[0], 0), (3, PRICES[3], 0, PRICES[3] - PRICES[1])],
)
def test_a_finished_job_climbs_from_the_predicted_rung_to_the_needed_one(rung, paid, to_kills, to_air):
    (run,) = runs_of([{}], bin_pred=rung)
    assert dollars(run) == pytest.approx([500 * value for value in (paid, PRICES[1], to_kills, to_air)])
    assert [run["too_low"], run["too_high"], run["finished"]] == [rung < 1, rung > 1, True]
    assert (run["month"], run["instrument"]) == ("2026-02", "ACS")


@pytest.mark.parametrize("kind", ["time", "memory"])
def test_a_killed_job_loses_what_it_had_reached_on_the_predicted_rung(kind):
    (run,) = runs_of(kills=[{"kind": kind, "wallclock": 80.0}], bin_pred=2)
    assert dollars(run) == pytest.approx([80 * PRICES[2], 0, 80 * PRICES[2], 0])
    assert run["month"] == "2026-01"
    assert [run["judged"], run["covered"], run["too_low"]] == [kind == "time", False, kind == "memory"]
    (unknown,) = runs_of(kills=[{"kind": kind, "wallclock": None}], bin_pred=2)
    assert dollars(unknown) == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["machine", "failed"])
def test_what_no_prediction_prevents_is_counted_and_costs_nothing(kind):
    (run,) = runs_of(kills=[{"kind": kind}])
    assert [*dollars(run), run["judged"], run["too_low"]] == [0] * 6
    assert run[f"killed_{kind}"]


def test_a_kill_by_memory_is_in_the_cost_of_the_job_that_climbed():
    finished, kill = runs_of([{}], [{"kind": "memory"}], bin_pred=0)
    assert finished["paid"] == pytest.approx(500 * (PRICES[0] + PRICES[1]))
    assert [*dollars(kill), kill["killed_memory"], kill["too_low"]] == [0, 0, 0, 0, True, False]
    # The rung was high enough for the job that finished, so the kill was not part of its way.
    assert sum(run["paid"] for run in runs_of([{}], [{"kind": "memory"}], bin_pred=1)) > 500 * PRICES[1]


def test_an_answer_is_judged_once_by_its_kill_time():
    runs = runs_of([{}], [{}, {"timestamp": JANUARY_S + 900}])
    assert [sum(run[name] for run in runs) for name in ("judged", "covered", "killed_time")] == [1, 0, 2]
    (slow,), (quick,) = runs_of([{}], kill_time=499), runs_of([{}], kill_time=500)
    assert [slow["covered"], quick["covered"]] == [False, True]


def test_each_run_is_held_against_the_latest_answer_before_its_end():
    job = pd.Series(JOB)
    answers = recorded(
        predicted(job, timestamp=float(JANUARY_S - 9), bin_pred=0, version="1"),
        predicted(job, timestamp=float(JANUARY_S + 9), bin_pred=2, version="2"),
        predicted(job, timestamp=float(ENDED_S + 9), bin_pred=3),
    ).predictions
    runs, left_out = realised_runs(pd.DataFrame([JOB]), killed_table(killed(kind="memory")), answers)
    by_month = runs.set_index("month")["paid"].to_dict()
    assert by_month == pytest.approx({"2026-01": 100 * PRICES[0], "2026-02": 500 * PRICES[2]})
    assert left_out == 0
    policy = recorded(predicted(job, source="policy", version=None)).predictions
    runs, left_out = realised_runs(pd.DataFrame([JOB]), killed_table(), policy)
    assert (len(runs), left_out) == (0, 1)


# -- Figures ----------------------------------------------------------------------------------------------------------


def test_groups_add_up_and_what_was_paid_is_what_was_needed_and_lost(content):
    found = json.loads(json.dumps(content.figures, allow_nan=False))
    total = found["all"]
    for rows in (found["by_month"], found["by_instrument"], found["by_month_and_instrument"]):
        for name in ("finished", "killed_time", "too_low", "judged", "covered", "paid", "lost_to_air"):
            assert sum(row[name] for row in rows) == pytest.approx(total[name])
        for row in rows:
            assert row["paid"] == pytest.approx(row["perfect"] + row["lost_to_kills"] + row["lost_to_air"])
    assert [row["month"] for row in found["by_month"]] == [f"2026-{month:02}" for month in range(1, 13)]
    assert {row["instrument"] for row in found["by_instrument"]} == {"ACS", "COS", "STIS", "WFC3"}
    assert total["excess_cost"] == pytest.approx(total["paid"] / total["perfect"] - 1)
    assert total["excess_cost_low"] < total["excess_cost"] < total["excess_cost_high"]
    assert total["coverage"] == total["covered"] / total["judged"]
    assert total["coverage_low"] < total["coverage"] < total["coverage_high"]


def test_few_programmes_get_no_interval(content):
    runs = content.runs
    programmes = runs["ipst"].str[:4]
    for count, known in ((4, False), (5, True)):
        of_some = runs[programmes.isin(programmes[runs["finished"]].unique()[:count])]
        found = replace(content, runs=of_some).figures["all"]
        assert found["programmes"] == count
        assert [found[name] is not None for name in ("excess_cost_low", "coverage_high")] == [known, known]


# -- Words and the page -----------------------------------------------------------------------------------------------


def test_where_nothing_ended_or_nothing_was_predicted_the_page_says_so():
    nothing, _ = realised_runs(pd.DataFrame(columns=list(JOB)), killed_table(), Recorded().predictions)
    for ended, said in ((0, "holds no job that has ended"), (7, "any of 7 jobs")):
        empty = RealisedContent("sqlite:///jobs.db", "now", nothing, ended)
        assert said in realised_verdict(empty)
        page = realised_html(empty)
        assert said in page
        assert len(page) < 20_000
        found = json.loads(json.dumps(empty.figures, allow_nan=False))
        assert (found["by_month"], found["all"]["paid"], found["all"]["coverage"]) == ([], 0, None)


def test_where_all_jobs_were_killed_there_is_no_perfect_choice(content):
    runs = content.runs
    page = realised_html(replace(content, runs=runs[runs["killed_time"] | runs["killed_memory"]]))
    assert "No job with a prediction has finished" in page
    assert 'id="coverage"' in page
    assert 'id="excess"' not in page


def test_the_page_has_every_month_and_instrument_and_reads_no_text_as_html(content):
    page = realised_html(replace(content, data="<script>alert(1)</script>", left_out=3, unreadable=2))
    assert "<script>alert" not in page
    assert "3 jobs ran with an answer by policy" in page
    assert "2 recorded predictions cannot be read" in page
    assert realised_verdict(content).split(": ")[0] in page
    found = content.figures["all"]
    said = (
        f"Put too low: {found['too_low']}. Killed: {found['killed_time']} (time), {found['killed_memory']} (memory), "
    )
    assert said in realised_verdict(content)
    for name in (
        "2026\N{NON-BREAKING HYPHEN}01",
        "2026\N{NON-BREAKING HYPHEN}12",
        "WFC3",
        'id="lost"',
        'id="excess"',
        'id="coverage"',
    ):
        assert name in page
    # Three headings; months and instruments with a row for all; every pair.
    assert page.count("<tr>") == 3 + 13 + 5 + 48
