import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.results.table import training_table

JOBS = pd.DataFrame(
    {"ipst": ["a", "b", "c", "d"], "wallclock": [10, 50, 14, 18], "wc_mean": 1, "memory": [1.0, 2.0, 3.0, 4.0]},
    index=[7, 3, 5, 1],
)
SPLIT = ["train", "test", "train", "train"]


def test_statistics_over_the_jobs_that_share_a_prediction():
    table = training_table(
        JOBS, {"bin_pred": [0, 1, 0, 0], "mem_pred": [1, 2, 1, 1], "wall_pred": [12.5, 60, 12.5, 12.5]}, SPLIT
    )
    assert list(table) == [
        "ipst", "wallclock", "memory", "bin_pred", "mem_pred", "wall_pred", "wc_mean", "wc_std", "wc_err", "split",
    ]  # fmt: skip
    assert table.index.tolist() == [7, 3, 5, 1]
    # 10, 14, 18: squares of the distances 16 + 0 + 16, over two.
    assert table["wc_mean"].tolist() == [14, 50, 14, 14]
    assert table["wc_std"].tolist() == [4, 0, 4, 4]
    assert table["wc_err"].tolist() == pytest.approx([4 / 3**0.5, 0, 4 / 3**0.5, 4 / 3**0.5])
    assert table["split"].tolist() == SPLIT
    assert JOBS["wc_mean"].tolist() == [1, 1, 1, 1], "the caller's table was changed"


@given(st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 4)), min_size=1))
def test_statistics_of_any_table(rows):
    wallclock, prediction = (np.array(column) for column in zip(*rows, strict=True))
    ones = np.ones(len(rows))
    table = training_table(pd.DataFrame({"wallclock": wallclock}), {"wall_pred": prediction}, ones.astype(str))
    for number, row in enumerate(table.itertuples()):
        group = wallclock[prediction == prediction[number]]
        assert row.wc_mean == pytest.approx(np.mean(group))
        assert row.wc_std == pytest.approx(np.std(group, ddof=1) if len(group) > 1 else 0, abs=1e-6)
        assert row.wc_err == pytest.approx(row.wc_std / np.sqrt(len(group)))


def test_a_network_that_was_not_trained_has_no_columns():
    table = training_table(JOBS, {"bin_pred": [0, 1, 0, 0]}, SPLIT)
    assert list(table) == ["ipst", "wallclock", "memory", "bin_pred", "split"]


@pytest.mark.parametrize("prediction", [{"bin_pred": [0, 1, 2, 4]}, {"wall_pred": [1, 2, 3, np.nan]}])
def test_a_prediction_that_is_none_is_named(prediction):
    with pytest.raises(InputError, match=next(iter(prediction))):
        training_table(JOBS, prediction, SPLIT)
