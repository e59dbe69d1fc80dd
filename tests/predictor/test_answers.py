"""Answers in words: they do not contradict themselves, and count the jobs behind them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.answers import as_answers, fallback_policy, mosaic_policy


def answer(chosen=0, memory_gb=1.0, unseen=False, **more):
    found = {
        "bin_pred": np.array([chosen]), "probabilities": np.full((1, 4), 0.25), "mem_pred": np.array([memory_gb]),
        "wall_pred": np.array([100.9]), "kill_time": np.array([300]), "unseen": np.array([unseen]), **more,
    }  # fmt: skip
    return as_answers(found)[0]


@given(st.integers(0, 3), st.floats(0, allow_infinity=True))
def test_a_rung_that_the_memory_does_not_fit_in_is_told(chosen, memory_gb):
    found = answer(chosen, memory_gb)
    # What is said counts: 7.166 GB fit into 7.168, but are told as 7.17.
    fits = found["memVal"] < LADDER[chosen].limit_gb
    beyond = found["memVal"] >= LADDER[3].limit_gb
    warnings = found["warnings"]
    assert (warnings == []) == fits
    assert any("needs rung" in text for text in warnings) == (not fits and chosen < 3)
    assert any("beyond the largest rung, 64g with 57.344 GB" in text for text in warnings) == beyond
    assert all(text.endswith(".") for text in warnings)


def test_the_warning_names_both_rungs_and_the_reason():
    assert answer(0, 2.104)["warnings"] == [
        "The memory of 2.10 GB needs rung 8g, but by the probabilities of the rungs 2g is the better choice."
    ]
    # The limit itself needs the next rung.
    assert "needs rung 16g" in answer(1, 7.168)["warnings"][0]


def test_a_job_unlike_any_seen_is_told():
    (text,) = answer(unseen=True)["warnings"]
    assert text.startswith("No job that a network learned from is like this one")


def test_the_jobs_behind_an_answer_are_counted_by_level():
    assert answer()["evidence"] == {"row": 0, "programme": 0, "visit": 0, "run": 0}
    counted = answer(evidence=np.array([[41, 7, 2, 1]]))
    assert counted["evidence"] == {"row": 41, "programme": 7, "visit": 2, "run": 1}
    assert (counted["memBin"], counted["memVal"], counted["clockTime"], counted["killTime"]) == (0, 1.0, 100, 300)


@pytest.mark.parametrize("policy", [mosaic_policy, fallback_policy])
def test_a_policy_has_the_keys_of_an_answer(policy):
    assert set(policy()) >= set(answer())
    assert policy()["memVal"] < LADDER[policy()["memBin"]].limit_gb
    assert policy()["evidence"] == {"row": 0, "programme": 0, "visit": 0, "run": 0}
