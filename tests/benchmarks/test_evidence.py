"""The benchmark of evidence: splits, rivals and verdicts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Benchmarks are no part of the installed package.
from benchmarks.evidence import (
    FIRST,
    LIMITS,
    PROGRAMMES,
    RANDOM,
    SCORED,
    SEEDS,
    Split,
    fold_of_programme,
    reach,
    score_table,
    splits_of,
)
from benchmarks.rivals import random_forest
from benchmarks.scores import score_of
from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.architectures import HIDDEN
from calmlflow.runs.data import load_training_data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return load_training_data("sample:600", seed=0, test_size=0.2, split="job")


# -- Splits ---------------------------------------------------------------------------------------------------------


def test_no_programme_is_on_both_sides_and_every_job_is_tested_once(data):
    parts = splits_of(data)[PROGRAMMES]
    programme = data.jobs["ipst"].str[:4].to_numpy()
    for part in parts:
        assert not set(programme[part.train]) & set(programme[part.test])
        assert len(part.train) + len(part.test) == len(data.jobs)
    assert sorted(np.concatenate([part.test for part in parts])) == list(range(len(data.jobs)))


def test_the_fold_of_a_programme_depends_on_its_name_alone(data):
    some = data.jobs.iloc[::7]
    np.testing.assert_array_equal(fold_of_programme(some), fold_of_programme(data.jobs)[::7])


def test_later_collections_are_tested_by_earlier_ones(data):
    assert not any(title.startswith("collection") for title in splits_of(data))
    time = np.repeat([10, 20, 30], 200)
    splits = splits_of(replace(data, jobs=data.jobs.assign(timestamp=time)))
    (first,), (later,) = splits[FIRST], splits["collections 1, 2 -> 3"]
    for part, train, test in ((first, {10}, {20}), (later, {10, 20}, {30})):
        assert (set(time[part.train]), set(time[part.test])) == (train, test)
    assert (len(first.test), len(later.train)) == (200, 400)


def test_random_splits_are_those_of_main(data):
    (part,) = splits_of(data)[RANDOM.format(0)]
    np.testing.assert_array_equal(part.test, data.test)
    assert part.scaling == data.scaling


# -- Rivals ---------------------------------------------------------------------------------------------------------


def test_out_of_bag_answers_do_not_know_their_own_job(data):
    jobs, odd = data.jobs.copy(), data.train[7]
    jobs.loc[jobs.index[odd], "wallclock"] = 10**9
    found = random_forest(replace(data, jobs=jobs), 0, out_of_bag=True)
    usual = random_forest(data, 0, out_of_bag=True)
    assert found.left_out.shape == (len(data.train), 6)
    assert found.left_out[7, 5] == pytest.approx(usual.left_out[7, 5])
    np.testing.assert_allclose(found.left_out[:, :4].sum(axis=1), 1)
    assert random_forest(data, 0).left_out is None


# -- Verdicts -------------------------------------------------------------------------------------------------------


def scores(**difference):
    """Scores that reach every limit, and differ from a rival's by as much; with an interval of 0.01 about it."""
    limits = {key: limit for limits in reversed(LIMITS.values()) for key, limit in limits.items()}
    values = pd.Series({key: limits.get(key, 1.0) for key in SCORED})
    away = pd.Series(difference, dtype=float).reindex(SCORED).fillna(0)
    columns = {"this": values, "other": values - away, "difference": away, "low": away - 0.01, "high": away + 0.01}
    return pd.DataFrame({**columns, "jobs": 100})


def splits(**difference):
    return {
        title: Split(10, (11.0, 10.0), {rival: scores(**difference) for rival in ("networks", "random forest")})
        for title in (*(RANDOM.format(seed) for seed in SEEDS), PROGRAMMES)
    }


def test_everything_can_be_reached():
    figures = reach(splits(), {})
    assert all(figure.reached for figure in figures)
    assert {figure.name.partition(":")[0] for figure in figures} == {
        "fifth of the jobs, worst of the seeds", PROGRAMMES, "fit with evidence over without",
    }  # fmt: skip


@pytest.mark.parametrize("key", LIMITS[RANDOM])
def test_the_worst_seed_decides(key):
    found = splits()
    table = found[RANDOM.format(1)].rivals["networks"]
    table.loc[key, "this"] *= 0.9 if score_of(key).higher_is_better else 1.1
    assert [figure.value for figure in reach(found, {}) if not figure.reached] == [table.loc[key, "this"]]


def test_a_score_is_worse_only_beyond_its_interval_and_counts_for_each_rival():
    assert all(figure.reached for figure in reach(splits(memory_mae=0.005), {}))
    missed = [figure for figure in reach(splits(memory_mae=0.02, mem_bin_accuracy=-0.02), {}) if not figure.reached]
    assert [(figure.name, figure.value) for figure in missed] == [
        (f"{PROGRAMMES}: scores worse than {rival}, by programmes", 2) for rival in ("networks", "random forest")
    ]
    better = splits(memory_mae=-0.02, mem_bin_accuracy=0.02)
    assert all(figure.reached for figure in reach(better, {}))


def test_the_last_run_is_judged_by_its_share():
    table = scores()
    table["other"] = 1.0
    table["this"] = 0.7
    figures = [figure for figure in reach(splits(), {"networks": scores(), "answer": table}) if "run" in figure.name]
    assert [figure.value for figure in figures] == pytest.approx([-0.3] * 3)
    assert all(figure.reached for figure in figures)


def test_the_table_has_everybody_and_marks_what_differs():
    table = score_table("some", {"networks": scores(memory_mae=0.02), "random forest": scores().iloc[:-2]})
    cells = dict(
        zip((column.header for column in table.columns), (list(one.cells) for one in table.columns), strict=True)
    )
    row = cells["score"].index("memory MAE, GB")
    assert (cells["answer"][row], cells["networks"][row]) == ("0.0400", "0.0200")
    assert cells["less networks, 95 %"][row] == "0.0100 to 0.0300 worse"
    assert cells["less random forest, 95 %"][row] == "-0.0100 to 0.0100"
    assert cells["random forest"][-1] == "-"


@pytest.mark.slow
def test_the_whole_benchmark_from_the_command_line(tmp_path):
    config, reruns, output = tmp_path / "config.json", tmp_path / "reruns.csv", tmp_path / "found.json"
    brief = {"epochs": 1, "refit_epochs": 0, "members": 2}
    config.write_text(json.dumps(dict.fromkeys(HIDDEN, brief)))
    twice = draw_sample(300, seed=1)[["ipst", *FEATURES, "memory", "wallclock"]]
    again = twice.rename(columns={"memory": "memory_1", "wallclock": "wallclock_1"})
    again.assign(memory_2=twice["memory"], wallclock_2=1.1 * twice["wallclock"]).to_csv(reruns, index=False)
    command = [sys.executable, "-m", "benchmarks.evidence", "--data", "sample:400", "--config", str(config)]
    command += ["--reruns", str(reruns), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    assert set(written["splits"]) == {*(RANDOM.format(seed) for seed in SEEDS), PROGRAMMES}
    assert written["splits"][PROGRAMMES]["jobs"] == 400
    last_run = written["reruns"]["answer"]["wallclock_mae"]
    assert last_run["this"] < last_run["other"]
    assert sum("last run" in figure["name"] for figure in written["figures"]) == 3
