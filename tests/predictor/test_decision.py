import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.ladder import allocation_cost
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.decision import (
    MAX_DISTANCE,
    MAX_LOG_SIZE,
    UNSEEN_JOBS,
    Decision,
    SeenRows,
    fit_decision,
    widen,
)

SCALING = Scaling((1.0, 1.0), (0.0, 0.0), (1.0, 1.0))
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda values: sum(values) > 0.01)


@given(shares, st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_no_other_rung_is_cheaper_in_expectation(values, ratio):
    probabilities = np.array([values]) / sum(values)
    decision = Decision(np.array([ratio]))
    (chosen,) = decision.choose(probabilities, np.array([-1]))

    def price(rung):
        return sum(
            p * float(allocation_cost(rung, n, r)) for n, (p, r) in enumerate(zip(probabilities[0], ratio, strict=True))
        )

    assert price(chosen) <= min(map(price, range(4))) * (1 + 1e-9)


@given(shares, st.floats(0, 50), st.floats(0, 50))
def test_more_risk_aversion_never_moves_down_the_ladder(values, risk, more):
    probabilities, nearest = np.array([values]) / sum(values), np.array([-1])
    calm = Decision(np.ones((1, 4)), risk).choose(probabilities, nearest)
    careful = Decision(np.ones((1, 4)), risk + more).choose(probabilities, nearest)
    assert careful >= calm


def test_the_ratio_of_a_row_is_that_of_its_jobs_where_they_are_many():
    # Row 0: half of 2000 jobs need bin 1 and run three times as long; row 1: a single job.
    bins = np.array([0] * 1000 + [1] * 1000 + [0])
    wallclock_s = np.array([100.0] * 1000 + [300.0] * 1000 + [50.0])
    decision = fit_decision(bins, wallclock_s, np.array([0] * 2000 + [1]))
    assert decision.wallclock_ratio.shape == (3, 4)
    assert decision.wallclock_ratio[0, :2] == pytest.approx([0.5, 1.5], abs=0.01)
    # One job says little: its row stays near the mean of all.
    assert decision.wallclock_ratio[1] == pytest.approx(decision.wallclock_ratio[2], abs=0.06)
    # A rung that no job needed has no ratio of its own.
    assert decision.wallclock_ratio[2, 2:].tolist() == [1, 1]


def test_a_job_is_unlike_any_seen_by_its_flags_or_by_its_size():
    row = [2, 4, 0, 1, 2, 0, 1, 0, 3]
    rows = np.array([row, [5, 60, 0, 1, 2, 0, 1, 0, 3]], dtype=float)
    seen = SeenRows(rows, SCALING.apply(rows))
    jobs = np.array([row, [5, 60.2, *row[2:]], [2, 4 + 2 * MAX_DISTANCE, *row[2:]], [*row[:8], 0]], dtype=float)
    assert seen.nearest(jobs, SCALING.apply(jobs)).tolist() == [0, 1, -1, -1]
    # Alone as among others.
    assert [seen.nearest(job[None], SCALING.apply(job[None])).item() for job in jobs] == [0, 1, -1, -1]


@given(st.integers(2, 1000), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 1))
def test_a_transform_that_saturates_hides_no_size(largest, rows, factor, column):
    # With a power of -9 all sizes above a few are the same point.
    saturating = Scaling((-9.0, -9.0), (0.0, 0.0), (1.0, 1.0))
    known = np.tile([3.0, 3, 0, 0, 0, 0, 0, 0, 0], (rows, 1))
    known[:, column] = np.linspace(3, largest, rows)
    job = known[-1:].copy()
    job[0, column] = (1 + known[:, column].max()) * factor - 1
    seen = SeenRows(known, saturating.apply(known))
    beyond = factor > np.exp(MAX_LOG_SIZE) * (1 + 1e-9)
    assert seen.nearest(job, saturating.apply(job))[0] == -1 or not beyond


@given(shares)
def test_wider_probabilities_stay_probabilities_in_the_same_order(values):
    probabilities = np.array([values]) / sum(values)
    wide = widen(probabilities)
    assert wide.sum() == pytest.approx(1)
    assert wide.min() >= 0.25 / (UNSEEN_JOBS + 1)
    assert np.all(np.sign(np.diff(wide)) * np.sign(np.diff(probabilities)) >= 0)


def test_json_round_trip():
    decision = Decision(np.array([[1.0, 1.5, 1.0, 1.0], [0.9, 1.1, 1.0, 1.0]]), 0.5)
    found = Decision.from_json(decision.to_json())
    assert found.risk == 0.5
    assert found.wallclock_ratio.tolist() == decision.wallclock_ratio.tolist()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"risk": 0, "wallclock_ratio": []}', '{"risk": -1, "wallclock_ratio": [[1, 1, 1, 1]]}']
    + [json.dumps({"risk": 0, "wallclock_ratio": [line]}) for line in ([1, 1, 1], [1, 1, 1, 0], [1, 1, 1, "x"])],
)
def test_a_damaged_table_is_named(text):
    with pytest.raises(InputError, match=r"decision\.json"):
        Decision.from_json(text)


@pytest.mark.parametrize("content", [b"", b"[]", b"[[1, 2]]", b"{}", b"[[1,2,3,4,5,6,7,8,null]]"])
def test_damaged_rows_are_named(content):
    with pytest.raises(InputError, match=r"seen_rows\.json"):
        SeenRows.read(content, SCALING)
