import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.ladder import excess_cost
from calmlflow.results.classification import classification_scores
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.regression import regression_scores
from calmlflow.results.scores import FEWEST_JOBS, SCORES, headlines, score_predictions

pytestmark = pytest.mark.filterwarnings("error")

CHANCE, SURE = (-0.01, 0.03), (0.005, 0.03)


@pytest.mark.parametrize(
    ("target", "name", "difference", "interval", "jobs", "margin", "verdict"),
    [
        ("mem_bin", "accuracy", 0.01, SURE, 100, 0, "better"),
        ("mem_bin", "accuracy", 0.01, CHANCE, 100, 0, "no difference"),
        ("mem_bin", "accuracy", 0.01, SURE, 100, 0.01, "no difference"),
        ("mem_bin", "accuracy", 0.01, (math.nan, math.nan), 100, 0, "no difference"),
        ("mem_bin", "accuracy", 0.01, SURE, FEWEST_JOBS - 1, 0, "too few jobs"),
        ("mem_bin", "recall_64g", 0.01, SURE, FEWEST_JOBS, 0, "better"),
        ("mem_bin", "excess_cost", 0.01, SURE, 100, 0, "worse"),
        ("wallclock", "kill_time_reserved", 0.01, SURE, 100, 0.2, "no difference"),
        ("wallclock", "r2", 0.01, None, None, 0, "better"),
        ("wallclock", "r2", 0, None, None, 0, "no difference"),
    ],
)
def test_a_difference_counts_beyond_chance_and_margin(target, name, difference, interval, jobs, margin, verdict):
    assert SCORES[target][name].verdict(difference, interval, jobs, margin) == verdict


@pytest.mark.parametrize(("programmes", "verdict"), [(4, "too few programmes"), (5, "better")])
def test_few_programmes_give_no_verdict(programmes, verdict):
    assert SCORES["mem_bin"]["accuracy"].verdict(0.01, SURE, 100, 0, programmes) == verdict


@pytest.mark.parametrize(
    ("target", "name", "value", "text", "difference"),
    [
        ("mem_bin", "accuracy", 0.954, "95.40%", "+95.40 pp"),
        ("mem_bin", "log_loss", -0.07, "-0.0700 nats", "-0.0700 nats"),
        ("mem_bin", "f1_macro", 0, "0.0000", "0.0000"),
        ("memory", "rmse", 0.4871, "0.487 GB", "+0.487 GB"),
        ("wallclock", "rmse", -1234.5, "-1,234 s", "-1,234 s"),
        ("wallclock", "kill_time_6x_reserved", 6.2, "6.20 x", "+6.20 x"),
    ],
)
def test_a_score_is_written_with_its_unit(target, name, value, text, difference):
    score = SCORES[target][name]
    assert (score.text(value), score.difference_text(value)) == (text, difference)


def test_the_table_holds_every_score_and_floor_that_there_is():
    bins, values = np.arange(8) % 4, 1.0 + np.arange(8)
    jobs = pd.DataFrame({"mem_bin": bins, "memory": values, "wallclock": values})
    predictions = {"probabilities": np.eye(4)[bins], "bin_pred": bins, "mem_pred": values, "wall_pred": values}
    rows = np.eye(9)[bins]
    floors = {
        "mem_bin": classification_floor(rows, bins, values),
        "memory": regression_floor(rows, values),
        "wallclock": regression_floor(rows, values),
    }
    for target, scores in SCORES.items():
        found = score_predictions(target, jobs, predictions | {"kill_time": 2 * values})
        assert found.keys() | floors[target].keys() == scores.keys()
        assert set(headlines(target)) <= {score.name for score in scores.values() if score.summary}


ROW_A, ROW_B, ROW_C = np.eye(9)[:3]


def test_classification_scores_of_four_jobs():
    y_true, decided = [0, 0, 1, 3], [0, 1, 1, 1]
    # Most probable: 0, 0, 1, 1.
    probabilities = [[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0.4, 0.6, 0, 0], [0, 0.9, 0, 0.1]]
    scores = classification_scores(y_true, probabilities, decided, [3600, 3600, 3600, 3600])
    # Dollars per hour and job on the four rungs.
    price = [0.308 / 8, 0.344 / 4, 0.226 / 2, 0.452]
    best = 2 * price[0] + price[1] + price[3]
    killed_twice = price[1] + price[2] + price[3]
    expected = {
        "accuracy": 3 / 4,
        "balanced_accuracy": 2 / 3,
        "f1_macro": (1 + 2 / 3 + 0) / 3,
        **{"precision_2g": 1, "precision_8g": 1 / 2, "precision_64g": 0},
        **{"recall_2g": 1, "recall_8g": 1, "recall_64g": 0},
        **{"roc_auc_2g": 1, "roc_auc_8g": 2 / 3, "roc_auc_64g": 1},
        "log_loss": -(2 * math.log(0.9) + math.log(0.6) + math.log(0.1)) / 4,
        # Greatest probabilities 0.9, 0.9, 0.9 (right, right, wrong) and 0.6 (right).
        "ece": (abs(2 - 3 * 0.9) + 0.4) / 4,
        **{"underallocated": 1 / 4, "overallocated": 1 / 4},
        "excess_cost": (price[0] + 2 * price[1] + killed_twice) / best - 1,
        "excess_cost_argmax": (2 * price[0] + price[1] + killed_twice) / best - 1,
    }
    assert scores == pytest.approx(expected)


def test_a_split_of_one_bin_has_no_score_of_the_others():
    scores = classification_scores([1], [[0, 1, 0, 0]], [1], [10])
    assert {key for key in scores if key.endswith("g")} == {"precision_8g", "recall_8g"}
    assert scores["accuracy"] == scores["balanced_accuracy"] == scores["f1_macro"] == 1
    assert scores["ece"] == scores["excess_cost"] == 0


def test_jobs_that_took_no_time_have_no_excess_cost():
    assert "excess_cost" not in classification_scores([1], [[0, 1, 0, 0]], [1], [0])
    assert "excess_cost" not in classification_floor([ROW_A], [1], [0])


def test_regression_scores_of_three_jobs():
    log = math.log(2)
    expected = {"rmse": math.sqrt(5 / 3), "mae": 1, "r2": 1 - 5 / (42 / 9)}
    expected |= {"log_rmse": log * math.sqrt(2 / 3), "log_mae": log * 2 / 3, "log_r2": 0}
    expected |= {"ape_mean": 0.5, "ape_median": 0.5, "ape_p95": 0.95, "ape_p99": 0.99}
    assert regression_scores([1, 2, 4], [2, 2, 2]) == pytest.approx(expected)
    # Predictions of zero and less have a logarithm; equal values have no r2.
    assert regression_scores([1, 1], [0, -5])["log_mae"] == pytest.approx(math.log(1000))
    assert not {"r2", "log_r2"} & set(regression_scores([0.1, 0.1, 0.1], [0.1, 0.2, 0.1]))


FEATURES = [ROW_A, ROW_B, ROW_A, ROW_C, ROW_A, ROW_B]


def test_floor_of_the_classifier():
    # Row A needs 0, 0, 1; row B 1, 3; row C 2. An hour each, but the job of row A that needs bin 1 takes ten.
    floor = classification_floor(FEATURES, [0, 1, 0, 2, 1, 3], [3600, 3600, 3600, 3600, 36_000, 3600])
    price = [0.308 / 8, 0.344 / 4, 0.226 / 2, 0.452]
    best = 2 * price[0] + 11 * price[1] + price[2] + price[3]
    row_a = min(2 * price[0] + 10 * (price[0] + price[1]), 12 * price[1], 12 * price[2], 12 * price[3])
    # The two jobs of row B are cheapest on rung 2, which is too much for the one and too little for the other.
    row_b = 2 * price[2] + price[3]
    assert row_b < min(2 * price[0] + 2 * price[1] + price[2] + price[3], 2 * price[1] + price[2] + price[3])
    assert floor == pytest.approx({"accuracy": 4 / 6, "excess_cost": (row_a + row_b + price[2]) / best - 1})


def test_floor_of_a_regressor():
    # Row A took 1, 2, 6; row B 4, 4; row C 5.
    floor = regression_floor(FEATURES, [1, 4, 2, 5, 6, 4])
    expected = {"rmse": math.sqrt(14 / 6), "mae": 5 / 6, "log_mae": math.log(6) / 6, "rmse_unbiased": math.sqrt(14 / 3)}
    assert floor == pytest.approx(expected)


def test_rows_seen_once_have_no_unbiased_floor():
    assert regression_floor([ROW_A, ROW_B], [3, 5]) == {"rmse": 0, "mae": 0, "log_mae": 0}


jobs_of_three_rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.floats(1, 1e5)), min_size=1, max_size=12
)


@given(jobs_of_three_rows)
def test_the_floor_is_the_best_of_all_choices_by_row(jobs):
    row, needed, wallclock_s = (np.array(column) for column in zip(*jobs, strict=True))
    floor = classification_floor(np.eye(9)[row], needed, wallclock_s)
    choices = [np.array(choice)[row] for choice in itertools.product(range(4), repeat=3)]
    assert floor["accuracy"] == pytest.approx(max(np.mean(chosen == needed) for chosen in choices))
    cheapest = min(excess_cost(chosen, needed, wallclock_s) for chosen in choices)
    assert floor["excess_cost"] == pytest.approx(cheapest, abs=1e-9)


@given(jobs_of_three_rows, st.tuples(*[st.floats(1, 1e5)] * 3))
def test_no_prediction_by_row_is_below_the_floor(jobs, predictions):
    row, _, actual = (np.array(column) for column in zip(*jobs, strict=True))
    floor = regression_floor(np.eye(9)[row], actual)
    scores = regression_scores(actual, np.array(predictions)[row])
    assert all(floor[key] <= scores[key] * (1 + 1e-9) + 1e-9 for key in ("rmse", "mae", "log_mae"))


@given(jobs_of_three_rows, st.data())
def test_scores_are_finite_and_the_shares_add_up(jobs, data):
    _, needed, wallclock_s = (np.array(column) for column in zip(*jobs, strict=True))
    chosen = data.draw(st.lists(st.integers(0, 3), min_size=len(jobs), max_size=len(jobs)))
    scores = classification_scores(needed, np.eye(4)[chosen], chosen, wallclock_s)
    assert np.isfinite(list(scores.values())).all()
    assert scores["accuracy"] + scores["underallocated"] + scores["overallocated"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: classification_scores([], np.empty((0, 4)), [], []), "at least one job"),
        (lambda: classification_scores([5], [[1, 0, 0, 0]], [0], [1]), "y_true"),
        (lambda: classification_scores([0], [[1, 0, 0, 0]], [0], [-1]), "wallclock_s"),
        (lambda: regression_scores([0], [1]), "above 0"),
        (lambda: regression_scores([1], [1, 2]), "predictions"),
        (lambda: regression_scores([1], [math.nan]), "predictions"),
        (lambda: regression_floor([[1, 2, 3]], [1]), "features"),
        (lambda: classification_floor([ROW_A, ROW_B], [1], [1]), "features"),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
