"""Judging answers: each score failing alone, what is not decided, slices, rungs, and small losses in a row."""

import numpy as np
import pandas as pd
import pytest

from calmlflow.hst.ladder import LADDER
from calmlflow.registry.against import SLICES, champion_checks, limit_checks, rung_checks, settled
from calmlflow.registry.checks import Check, counted
from calmlflow.registry.limits import Bounds, Limits

STRICT = Limits()
"""No margins."""


def judged(jobs: int = 400) -> tuple[pd.DataFrame, dict]:
    """Jobs of bins 0, 1 and 2, and answers: nine of ten bins right, small errors but for each twentieth job."""
    generator = np.random.default_rng(3)
    bins = np.repeat([0, 1, 2, 2], jobs // 4)
    table = pd.DataFrame(
        {
            # Each of a programme of its own.
            "ipst": [f"{number:04}01010" for number in range(jobs)],
            "instr": np.arange(jobs) % 4,
            "detector": np.arange(jobs) % 8 // 4,
            "dtype": 0,
            "mem_bin": bins,
            "memory": np.array([1.0, 4.0, 10.0])[bins],
            "wallclock": generator.uniform(100, 1000, jobs),
        }
    )
    said = np.where(generator.random(jobs) < 0.9, bins, (bins + 1) % 3)
    error = generator.uniform(0.5, 1.5, jobs) * np.where(far_off(jobs), 12, 1)
    answers = {
        "probabilities": np.eye(len(LADDER))[said] * 0.96 + 0.01,
        "bin_pred": said,
        "mem_pred": table["memory"].to_numpy() + 0.05 * error,
        "wall_pred": table["wallclock"].to_numpy() + 10 * error,
        "kill_time": np.full(jobs, 990),
    }
    return table, answers


def far_off(jobs: int) -> np.ndarray:
    return np.arange(jobs) % 20 == 0


def worse_bin(answers: dict, table: pd.DataFrame, of_bin: int) -> dict:
    """Some jobs of one bin get the bin above, and as many of the others, that were wrong, are right."""
    likeliest, needed = answers["probabilities"].argmax(axis=1), table["mem_bin"].to_numpy()
    probabilities = answers["probabilities"].copy()
    wrong = np.flatnonzero((likeliest != needed) & (needed != of_bin))
    probabilities[wrong] = np.eye(4)[needed[wrong]] * 0.96 + 0.01
    right = np.flatnonzero((likeliest == needed) & (needed == of_bin))[: len(wrong)]
    probabilities[right] = np.roll(probabilities[right], 1, axis=1)
    return {**answers, "probabilities": probabilities}


def dearer(answers: dict, table: pd.DataFrame) -> dict:
    return {**answers, "bin_pred": np.minimum(answers["bin_pred"] + (np.arange(len(table)) % 3 == 0), 3)}


def all_worse(answers: dict, table: pd.DataFrame) -> dict:
    wrong = answers["probabilities"].copy()
    wrong[::3] = np.eye(4)[(table["mem_bin"].to_numpy()[::3] + 1) % 3] * 0.96 + 0.01
    return {**answers, "probabilities": wrong}


def errors_times(answers: dict, table: pd.DataFrame, name: str, small: float, large: float) -> dict:
    """Small errors make the mae, large ones the rmse."""
    actual = table[{"mem_pred": "memory", "wall_pred": "wallclock"}[name]].to_numpy()
    factor = np.where(far_off(len(table)), large, small)
    return {**answers, name: actual + factor * (answers[name] - actual)}


WORSE = {
    "champion.mem_bin.excess_cost": dearer,
    "champion.mem_bin.recall_16g": lambda answers, table: worse_bin(answers, table, 2),
    "champion.mem_bin.recall_2g": lambda answers, table: worse_bin(answers, table, 0),
    "champion.memory.mae": lambda answers, table: errors_times(answers, table, "mem_pred", 1.5, 0.9),
    "champion.memory.rmse": lambda answers, table: errors_times(answers, table, "mem_pred", 0.5, 1.2),
    "champion.wallclock.mae": lambda answers, table: errors_times(answers, table, "wall_pred", 1.5, 0.9),
    "champion.wallclock.rmse": lambda answers, table: errors_times(answers, table, "wall_pred", 0.5, 1.2),
    "champion.wallclock.kill_time_reserved": lambda answers, table: {**answers, "kill_time": 2 * answers["kill_time"]},
    "champion.wallclock.kill_time_coverage": lambda answers, table: answers | {"kill_time": answers["kill_time"] - 100},
}


@pytest.mark.parametrize("name", WORSE)
def test_each_score_that_is_worse_by_more_than_its_margin_fails_alone(name):
    table, answers = judged()
    worse = WORSE[name](answers, table)
    checks, metrics = champion_checks("version 1", table, worse, answers, STRICT)
    (failed,) = [check for check in checks if check.passed is False]
    assert (failed.name, failed.expected) == (name, "not worse than version 1")
    # The other way round it is better, and passes.
    back, _ = champion_checks("version 1", table, answers, worse, STRICT)
    assert name not in {check.name for check in back if check.passed is False}
    _, target, score = name.split(".")
    lost, upper = (
        max(abs(metrics[f"{end}_{target}_{score}"]) for end in ends)
        for ends in (["difference"], ["difference_low", "difference_high"])
    )
    is_share = score in ("rmse", "mae", "kill_time_reserved")
    share = metrics[f"champion_{target}_{score}"] if is_share else 1.0
    for margin, fails in ((upper / share * 1.001, False), (lost / share * 0.999, True)):
        limits = Limits(margins={target: {score: margin}})
        checks, _ = champion_checks("v", table, worse, answers, limits)
        assert [check.name for check in checks if check.passed is False] == [name] * fails


def test_a_worse_classifier_fails_by_its_accuracy():
    table, answers = judged()
    checks, _ = champion_checks("v", table, all_worse(answers, table), answers, STRICT)
    failed = {check.name for check in checks if check.passed is False}
    assert "champion.mem_bin.accuracy" in failed
    assert "champion.memory.rmse" not in failed


def test_what_may_be_chance_passes():
    table, answers = judged()
    probabilities = answers["probabilities"].copy()
    right = np.flatnonzero(probabilities.argmax(axis=1) == table["mem_bin"])[:2]
    probabilities[right] = np.roll(probabilities[right], 1, axis=1)
    checks, metrics = champion_checks("v", table, {**answers, "probabilities": probabilities}, answers, STRICT)
    assert all(check.passed is not False for check in checks)
    assert metrics["difference_mem_bin_accuracy"] == pytest.approx(-2 / 400)
    assert metrics["difference_low_mem_bin_accuracy"] < -2 / 400 < metrics["difference_high_mem_bin_accuracy"] + 1e-12


# -- Too little evidence, and enough of it -----------------------------------------------------------------------------


def found(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


def test_a_bin_of_a_few_jobs_decides_nothing():
    table, answers = judged()
    table.loc[[0, 1], "mem_bin"] = 3
    right = answers["probabilities"].copy()
    right[[0, 1]] = np.eye(4)[3] * 0.96 + 0.01
    checks, _ = champion_checks("v", table, answers, {**answers, "probabilities": right}, STRICT)
    recall = found(checks, "champion.mem_bin.recall_64g")
    assert (recall.passed, recall.verdict) == (None, "not decided")
    assert "too few jobs (2 of 2 programmes) to tell" in recall.figure


def test_jobs_of_a_few_programmes_decide_nothing():
    table, answers = judged()
    worse = dearer(answers, table)
    for programmes, passed in ((4, None), (8, False)):
        table["ipst"] = [f"{number % programmes:04}{number:05}" for number in range(len(table))]
        checks, _ = champion_checks("v", table, worse, answers, STRICT)
        assert found(checks, "champion.mem_bin.excess_cost").passed is passed


def test_a_bin_that_no_job_needs_is_not_decided():
    table, answers = judged()
    checks, _ = champion_checks("v", table, answers, answers, STRICT)
    recall = found(checks, "champion.mem_bin.recall_64g")
    assert (recall.passed, recall.figure) == (None, "no job needs it")


def test_what_is_not_decided_is_decided_on_more_jobs():
    few = [
        Check("a", None, "1", "e"),
        Check("b", True, "1", "e"),
        Check("c", None, "1", "e"),
        Check("d", None, "1", "e"),
    ]
    few += [Check("s" + SLICES, True, "1", "e"), Check("t" + SLICES, False, "1", "e")]
    more = [Check("a", False, "9", "e"), Check("b", False, "9", "e"), Check("c", None, "9", "e")]
    more += [Check("s" + SLICES, False, "9", "e"), Check("t" + SLICES, True, "9", "e")]
    assert [(check.name[0], check.passed, check.figure) for check in settled(few, more, "of all")] == [
        ("a", False, "9, of all"), ("b", True, "1"), ("c", None, "1"), ("d", None, "1"),
        ("s", False, "9, of all"), ("t", False, "1"),
    ]  # fmt: skip
    assert counted(settled(few, more, "of all")) == "1 of 6 checks passed, 3 failed, 2 not decided"


def slower(table: pd.DataFrame, answers: dict, one_in: int, seconds: float) -> dict:
    """One in some jobs is answered so many seconds worse."""
    late = np.arange(len(table)) % one_in == 0
    return {**answers, "wall_pred": answers["wall_pred"] + seconds * late}


def test_where_jobs_are_many_the_whole_interval_must_be_within_the_margin():
    table, answers = judged(4000)
    checks, metrics = champion_checks("v", table, slower(table, answers, 2, 4.0), answers, STRICT)
    lost, high = (metrics[f"{end}_wallclock_mae"] for end in ("difference", "difference_high"))
    assert 0 < lost < high < 1.5 * lost
    for seconds, passed in (((lost + high) / 2, False), (high * 1.01, True)):
        limits = Limits(margins={"wallclock": {"mae": seconds / metrics["champion_wallclock_mae"]}})
        checks, _ = champion_checks("v", table, slower(table, answers, 2, 4.0), answers, limits)
        assert found(checks, "champion.wallclock.mae").passed is passed


def test_an_interval_wider_than_the_margin_that_reaches_beyond_it_decides_nothing():
    table, answers = judged()
    worse = slower(table, answers, 40, 60.0)
    _, metrics = champion_checks("v", table, worse, answers, STRICT)
    lost, low, high = (metrics[f"difference{end}_wallclock_mae"] for end in ("", "_low", "_high"))
    assert 0 < low < lost * 1.01 < high - low
    limits = Limits(margins={"wallclock": {"mae": lost * 1.01 / metrics["champion_wallclock_mae"]}})
    checks, _ = champion_checks("v", table, worse, answers, limits)
    mae = found(checks, "champion.wallclock.mae")
    assert (mae.passed, mae.figure.endswith("too wide to tell")) == (None, True)
    assert found(settled([mae], [Check(mae.name, False, "1", "e")], "of all"), mae.name).passed is False


# -- Slices and rungs --------------------------------------------------------------------------------------------------


def test_a_slice_has_margins_of_its_own():
    table, answers = judged(1600)
    stis = ((table["instr"] == 2) & (table["detector"] == 1)).to_numpy()
    worse = {**answers, "wall_pred": np.where(stis, 1.2, 1.0) * answers["wall_pred"]}
    limits = Limits(margins={"wallclock": {"mae": 10, "rmse": 10}}, slices={"wallclock": {"log_mae": 0.05}})
    checks, _ = champion_checks("v", table, worse, answers, limits)
    (failed,) = [check for check in checks if check.passed is False]
    assert failed.name == "champion.wallclock.log_mae.slices"
    assert failed.figure.startswith("STIS detector 1 ")
    assert ";" not in failed.figure
    checks, _ = champion_checks("v", table, answers, answers, limits)
    assert found(checks, failed.name) == Check(failed.name, True, "holds in 9 slices", failed.expected)
    # Of 39 jobs it is too small to be judged.
    kept = ~stis | (np.cumsum(stis) < 40)
    few = ({name: column[kept] for name, column in side.items()} for side in (worse, answers))
    checks, _ = champion_checks("v", table[kept], *few, limits)
    assert found(checks, failed.name).figure == "holds in 8 slices"


def test_a_rung_that_jobs_need_must_be_given():
    table, answers = judged()
    assert [check.passed for check in rung_checks(table, answers)] == [True, True, True, None]
    never = {**answers, "bin_pred": np.where(answers["bin_pred"] == 2, 1, answers["bin_pred"])}
    (failed,) = [check for check in rung_checks(table, never) if check.passed is False]
    assert (failed.name, failed.figure) == ("mem_bin.rung_16g", "given to 0 of 200 jobs that need it")
    assert rung_checks(table, {"mem_pred": answers["mem_pred"]}) == []


def test_a_limit_of_a_bin_is_decided_where_ten_jobs_need_it():
    table, answers = judged()
    limits = Limits(scores={"mem_bin": {"recall_64g": Bounds(min=0.5), "accuracy": Bounds(min=0.5)}})
    for jobs, passed in ((0, None), (9, None), (10, False)):
        needed = table.assign(mem_bin=np.where(np.arange(len(table)) < jobs, 3, table["mem_bin"]))
        recall, accuracy = limit_checks(needed, answers, limits)
        assert (recall.passed, accuracy.passed) == (passed, True)


# -- Many small losses -------------------------------------------------------------------------------------------------


def test_eleven_small_losses_in_a_row_do_not_pass():
    """Each version loses 0.3 of a margin to the one before; the first one stays the best that was in Production."""
    table, best = judged(4000)
    limits = Limits(margins={"wallclock": {"mae": 0.1, "rmse": 10}})

    def version(number: int) -> dict:
        actual = table["wallclock"].to_numpy()
        return {**best, "wall_pred": actual + 1.03**number * (best["wall_pred"] - actual)}

    def passes(number: int, other: int, role: str) -> bool:
        checks, _ = champion_checks("v", table, version(number), version(other), limits, role)
        return not [check for check in checks if check.passed is False]

    assert all(passes(number, number - 1, "champion") for number in range(1, 12))
    assert [passes(number, 0, "reference") for number in range(1, 12)] == [True] * 3 + [False] * 8


def test_the_reference_has_figures_of_its_own():
    table, answers = judged()
    checks, metrics = champion_checks("v", table, answers, dearer(answers, table), STRICT, "reference")
    assert {check.name.split(".")[0] for check in checks} == {"reference"}
    assert metrics["reference_difference_mem_bin_excess_cost"] < 0 < metrics["reference_mem_bin_excess_cost"]
    assert not [name for name in metrics if name.startswith(("champion", "difference"))]
