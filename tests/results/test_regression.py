import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.results.regression import regression_results

HISTORY = {"val_rmse": [7, 8], "val_loss": [5, 6], "rmse": [3, 4], "loss": [1, 2]}
ACTUAL = pd.Series([100, 200, 300, 400], index=["j8c601020", "j8c601021", "o4qpkupdq", "ib1f01020"], name="wallclock")


def test_results_of_a_small_split():
    results = regression_results(ACTUAL, [[103], [200], [296], [400]], HISTORY, train_mse=16)
    assert results.predictions.tolist() == [[103, 100], [200, 200], [296, 300], [400, 400]]
    assert results.residuals.tolist() == [3, 0, -4, 0]
    assert results.test_idx.name == "wallclock"
    assert results.test_idx.index.name == "ipst"
    assert results.test_idx.to_dict() == ACTUAL.to_dict()
    losses = {"train_loss": 16, "train_rmse": 4, "test_loss": 25 / 4, "test_rmse": 5 / 2}
    losses |= {"rmse_pos": 3, "rmse_neg": 4 / math.sqrt(3), "l2_norm": 5, "l2_pos": 3, "l2_neg": 4}
    assert results.loss == pytest.approx(losses)
    assert list(results.history) == ["loss", "rmse", "val_loss", "val_rmse"]
    assert {key: values.tolist() for key, values in results.history.items()} == HISTORY


@given(
    st.lists(st.tuples(st.floats(0.2, 1e6), st.floats(-1e6, 1e6)), min_size=1),
    st.sampled_from(["memory", "wallclock"]),
)
def test_every_split_has_finite_losses_without_a_warning(jobs, target):
    actual, predicted = (np.array(column) for column in zip(*jobs, strict=True))
    split = pd.Series(actual, index=[f"j{number:08d}" for number in range(len(jobs))], name=target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = regression_results(split, predicted, HISTORY, train_mse=1)
    loss = results.loss
    assert np.isfinite(list(loss.values())).all()
    assert np.array_equal(results.predictions, np.column_stack([predicted, actual]))
    assert loss["test_loss"] == pytest.approx(loss["test_rmse"] ** 2)
    assert loss["l2_norm"] == pytest.approx(math.hypot(loss["l2_pos"], loss["l2_neg"]))
    assert (loss["rmse_pos"] > 0) == bool((predicted > actual).any())


@pytest.mark.parametrize(
    ("split", "predicted", "history", "words"),
    [
        (ACTUAL.rename("mem_bin"), [1, 2, 3, 4], HISTORY, "memory or wallclock"),
        (ACTUAL.iloc[:0], [], HISTORY, "empty"),
        (ACTUAL, [1, 2, 3], HISTORY, "(4,)"),
        (ACTUAL, [1, 2, 3, math.nan], HISTORY, "predictions of wallclock"),
        (ACTUAL.replace(400, math.inf), [1, 2, 3, 4], HISTORY, "test split of wallclock"),
        (ACTUAL, [1, 2, 3, 4], {"loss": [1]}, "rmse"),
    ],
)
def test_what_does_not_fit_is_named(split, predicted, history, words):
    with pytest.raises(InputError) as caught:
        regression_results(split, predicted, history, train_mse=1)
    assert words in str(caught.value)
