"""The benchmark of trainings: rivals, scores, verdicts and tables."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Benchmarks are no part of the installed package.
from benchmarks.growth import Fit, enlarged
from benchmarks.reach import Reach, beside, coverage_limit, fixed, verdicts
from benchmarks.rivals import log_linear, networks_and_answer, random_forest
from benchmarks.scores import floor_of, paired_scores, scores_of
from benchmarks.seed_recipe import (
    SeedRecipe,
    build,
    digest,
    full_length_seconds,
    load_jobs,
    read_stored,
    store,
    train_fully,
)
from benchmarks.tables import RIVALS, ROWS, Measured, growth_table, print_tables, reach_table, score_table
from calmlflow.hst.features import FEATURES
from calmlflow.networks.architectures import HIDDEN
from calmlflow.runs.train import TrainingRequest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return load_jobs("sample:400", seed=0, test_size=0.2)


@pytest.fixture(scope="module")
def forest(data):
    return random_forest(data, seed=0)


# -- Rivals ---------------------------------------------------------------------------------------------------------


def test_the_log_linear_fit_finds_a_law_of_its_kind(data):
    column = {name: data.features[:, index] for index, name in enumerate(FEATURES)}
    megabytes, files, corrected = column["total_mb"] / 1000, column["n_files"] / 100, column["pctecorr"]
    instrument = np.array([0.1, 2.0, -1.0, 0.5])[column["instr"].astype(int)]
    law = 4 + 0.3 * megabytes + (0.7 * megabytes - 0.2 * files) * corrected + instrument - 0.4 * column["drizcorr"]
    lawful = replace(data, jobs=data.jobs.assign(wallclock=np.exp(law)))
    assert log_linear(lawful).predictions["wall_pred"] == pytest.approx(np.exp(law[data.test]), rel=1e-6)
    assert set(log_linear(lawful).predictions) == {"wall_pred"}


def test_the_forest_answers_for_the_test_jobs(data, forest):
    n = len(data.test)
    assert forest.predictions["probabilities"].shape == (n, 4)
    assert forest.predictions["probabilities"].sum(axis=1) == pytest.approx(1)
    test = data.jobs.iloc[data.test]
    scores = scores_of(test, forest.predictions)
    commonest = np.bincount(test["mem_bin"]).max() / n
    assert scores["mem_bin_accuracy"] > commonest
    assert scores["wallclock_rmse"] < test["wallclock"].std()
    assert scores["memory_rmse"] < test["memory"].std()


def test_no_rival_looks_at_the_test_jobs(data, forest):
    jobs = data.jobs.copy()
    jobs.loc[jobs.index[data.test], ["wallclock", "memory", "mem_bin"]] = [9999, 50.0, 3]
    blind = replace(data, jobs=jobs)
    for before, after in ((forest, random_forest(blind, seed=0)), (log_linear(data), log_linear(blind))):
        for name, values in before.predictions.items():
            # Trees are summed in the order in which their threads end.
            np.testing.assert_allclose(values, after.predictions[name], rtol=1e-9)


# -- Seed recipe ----------------------------------------------------------------------------------------------------


def test_the_seed_recipe_has_the_layers_of_the_network():
    for network, outputs in {"mem_clf": 4, "mem_reg": 1, "wall_reg": 1}.items():
        assert tuple(layer.units for layer in build(network).layers) == (*HIDDEN[network], outputs)
    found = full_length_seconds({"mem_clf": 1.5, "mem_reg": 2.0, "wall_reg": 0.5})
    assert found == {"mem_clf": 90, "mem_reg": 120, "wall_reg": 150}


@pytest.mark.slow
def test_a_stored_run_counts_for_its_own_jobs_only(data, tmp_path):
    path = tmp_path / "run.json"
    assert read_stored(data, path) is None
    run = train_fully(data, 0, {"mem_clf": 1, "mem_reg": 1, "wall_reg": 1})
    store(run, data, 0, path)
    found = read_stored(data, path)
    assert isinstance(found, SeedRecipe)
    for name, values in run.by_row.items():
        np.testing.assert_allclose(found.by_row[name], values, rtol=1e-5, atol=1e-12)
    assert read_stored(replace(data, test=data.test[1:]), path) is None
    assert not set(data.jobs["ipst"]) & set(path.read_text().split('"'))


def test_the_digest_knows_jobs_and_split(data):
    longer = data.jobs.assign(wallclock=data.jobs["wallclock"] + 1)
    more_files = replace(data.rows, features=data.rows.features + 1)
    others = [replace(data, jobs=longer), replace(data, rows=more_files), replace(data, test=data.train)]
    assert len({digest(each) for each in (data, *others)}) == 4


# -- Scores ---------------------------------------------------------------------------------------------------------


def test_multiples_of_the_prediction_stand_for_a_kill_time():
    jobs, wall_pred = pd.DataFrame({"wallclock": [100.0, 300, 650, 10]}), np.array([100.0, 100, 100, 1])
    scores = scores_of(jobs, {"wall_pred": wall_pred})
    # 3 x: 300, 300, 300, and 60 at least.
    assert scores["wallclock_kill_time_3x_coverage"] == 0.75
    assert scores["wallclock_kill_time_6x_reserved"] == pytest.approx(1860 / 1060)
    assert "wallclock_kill_time_coverage" not in scores
    own = scores_of(jobs, {"wall_pred": wall_pred, "kill_time": np.array([99, 300, 700, 60])})
    assert (own["wallclock_kill_time_coverage"], own["wallclock_kill_time_3x_coverage"]) == (0.75, 0.75)


COMPARED = [
    *("mem_bin_accuracy", "mem_bin_excess_cost", "memory_rmse", "memory_mae"),
    *("wallclock_rmse", "wallclock_mae", "wallclock_log_mae"),
]


def test_paired_scores_are_the_scores_themselves(data, forest):
    test = data.jobs.iloc[data.test]
    # The rung decided on is not the most probable one here.
    predictions = forest.predictions | {"bin_pred": np.minimum(forest.predictions["bin_pred"] + 1, 3)}
    for key in COMPARED:
        found = paired_scores(key, test, predictions, predictions, seed=0)
        assert found["this"] == pytest.approx(scores_of(test, predictions)[key])
        assert (found["low"], found["high"]) == (0, 0)


# -- Verdicts -------------------------------------------------------------------------------------------------------


def never(key, rival):
    raise AssertionError("no interval is asked for where the score is better")


@pytest.mark.parametrize(
    ("key", "ours", "others", "interval", "expected"),
    [
        ("memory_mae", 0.2, {"a": 0.3, "b": 0.2}, None, ("pass", "b", 0.2, "<=")),
        ("mem_bin_accuracy", 0.9, {"a": 0.8}, None, ("pass", "a", 0.8, ">=")),
        ("memory_mae", 0.4, {"a": 0.3, "b": 0.2}, (-0.1, 0.3), ("tie", "b", 0.2, "<=")),
        ("memory_mae", 0.4, {"a": 0.3, "b": 0.2}, (0.1, 0.3), ("miss", "b", 0.2, "<=")),
        ("mem_bin_accuracy", 0.90, {"a": 0.95}, (-0.07, -0.03), ("miss", "a", 0.95, ">=")),
    ],
)
def test_worse_than_the_better_rival_is_a_tie_only_within_the_interval(key, ours, others, interval, expected):
    scores = {"networks": {key: ours}, "b": {}, **{name: {key: value} for name, value in others.items()}}
    asked = []
    found = beside(key, scores, ("a", "b"), lambda key, rival: asked.append((key, rival)) or interval)
    assert (found.verdict, found.rival, found.limit, found.sign) == expected
    assert asked == ([(key, expected[1])] if interval else [])


def test_fixed_limits():
    assert [fixed("x", value, "<=", 1.0).verdict for value in (1.0, 1.1)] == ["pass", "miss"]
    assert [fixed("x", value, "<", 1.0).verdict for value in (0.9, 1.0)] == ["pass", "miss"]
    assert [fixed("x", value, ">=", 1.0).verdict for value in (1.0, 0.9, float("nan"))] == ["pass", "miss", "miss"]
    # Of 9,990 jobs, a share of 0.999 has the standard error sqrt(0.999 * 0.001 / 9990) = 1 / sqrt(1e7).
    assert coverage_limit(9990) == pytest.approx(0.999 - 10**-3.5)


def some_scores(**ours):
    rival = dict.fromkeys(COMPARED, 0.5) | {"fit_seconds": 1000.0}
    good = {key: 0.9 if key == "mem_bin_accuracy" else 0.03 for key in COMPARED} | {
        "fit_seconds": 19.0,
        "mem_bin_recall_16g": 0.8,
        "wallclock_kill_time_coverage": 0.9992,
        "wallclock_kill_time_reserved": 3.5,
    }
    return {
        "answer": good,
        "networks": good | ours,
        "seed recipe": rival,
        "random forest": rival,
        "log-linear": {},
        "floor": {},
    }


@pytest.mark.parametrize(
    ("score", "value"),
    [
        ("mem_bin_excess_cost", 0.036),
        ("mem_bin_recall_16g", 0.74),
        ("wallclock_kill_time_coverage", 0.998),
        ("wallclock_kill_time_reserved", 4.1),
        ("wallclock_log_mae", 0.6),
    ],
)
def test_each_figure_can_be_missed(score, value):
    reached = verdicts(some_scores(**{score: value}), 1.4, 9000, lambda key, rival: (0.01, 0.1))
    assert [reach.name for reach in reached if reach.verdict != "pass"] == [score]


def test_all_figures_can_be_reached_and_growth_is_one():
    assert [reach.verdict for reach in verdicts(some_scores(), 1.4, 9000, never)] == ["pass"] * 13
    missed = [reach for reach in verdicts(some_scores(fit_seconds=21.0), 1.6, 9000, never) if reach.verdict == "miss"]
    assert [(reach.value, reach.limit) for reach in missed] == [(0.021, 0.02), (1.6, 1.5)]


# -- Growth ---------------------------------------------------------------------------------------------------------


def test_more_jobs_are_drawn_from_the_training_split(data):
    larger = enlarged(data, 3, seed=0)
    assert len(larger.train) == 3 * len(data.train)
    assert set(larger.train) <= set(data.train)
    np.testing.assert_array_equal(larger.test, data.test)
    assert enlarged(data, 1, seed=0) is data


@pytest.mark.slow
def test_calmlflow_is_fitted_as_main_does(data, tmp_path):
    config = tmp_path / "config.json"
    brief = {"epochs": 1, "refit_epochs": 0, "members": 2}
    config.write_text(json.dumps(dict.fromkeys(HIDDEN, brief)))
    networks, answer, fit = networks_and_answer(data, TrainingRequest(config=str(config)), tmp_path / "models")
    assert (fit.factor, fit.train_jobs, fit.epochs) == (1, len(data.train), 3)
    assert 0 < networks.fit_seconds < answer.fit_seconds
    assert networks.fit_seconds < fit.total_seconds
    for rival in (networks, answer):
        scores = {"fit_seconds": rival.fit_seconds, **scores_of(data.jobs.iloc[data.test], rival.predictions)}
        assert set(ROWS) <= set(scores)


# -- Tables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def found():
    scores = some_scores()
    scores["networks"] |= {key: 0.125 for key in ROWS if key not in scores["networks"]}
    growth = [Fit(1, 100, 10, 70, 2.0, 3.0), Fit(3, 300, 10, 80, 2.5, 4.0), Fit(10, 1000, 10, 90, 3.0, 5.0)]
    reach = [*verdicts(scores, 1.5, 9000, never), Reach("memory_mae", 0.4, 0.3, "<=", "tie", "a rival", (-0.1, 0.2))]
    machine = {"cpus": 2, "python": "3.11", "load": [0.5, 1.5]}
    recipe = {"epoch_seconds": {}, "scores_of": "none"}
    return Measured("some/jobs.csv", 0, {"n_jobs": 100}, machine, recipe, scores, growth, reach)


def cells(table):
    return [list(column.cells) for column in table.columns]


def test_tables_have_every_score_of_everybody_and_go_to_standard_output(found, capsys):
    names, _, ours, seed_recipe, *_, floor = cells(score_table(found))
    assert len(names) == len(set(names)) == len(ROWS)
    assert "-" not in ours
    assert (ours[0], seed_recipe[0], floor[0]) == ("19.00", "1000.00", "-")
    last = [column[-1] for column in cells(reach_table(found))]
    assert last == ["memory MAE, GB", "0.4000", "<= 0.3000 (a rival)", "tie", "-0.1000 to 0.2000"]
    assert cells(growth_table(found))[-2] == ["1.00", "1.25", "1.50"]
    print_tables(found)
    printed = capsys.readouterr().out
    assert "jobs.csv: n_jobs 100" in printed
    assert all(label in printed for label, _ in ROWS.values())


def test_the_floor_has_scores_of_the_table(data):
    assert set(floor_of(data)) & set(ROWS) == {*COMPARED, "memory_log_mae"}


@pytest.mark.slow
def test_the_whole_benchmark_from_the_command_line(tmp_path):
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--data", "sample:400", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "Reach" in done.stdout
    written = json.loads(path.read_text())
    assert set(written["scores"]) == set(RIVALS)
    assert all(set(ROWS) <= set(written["scores"][name]) for name in ("answer", "networks"))
    assert [fit["factor"] for fit in written["growth"]] == [1, 3, 10]
    assert len(written["reach"]) == 13
