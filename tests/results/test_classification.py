import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.results.classification import classification_results

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ["j8c601020", "j8c601021", "o4qpkupdq", "ib1f01020", "la8q99030"]
HISTORY = {"val_loss": [3, 4], "loss": [1, 2], "val_accuracy": [0.7, 0.8], "accuracy": [0.5, 0.6]}
TRUE = [0, 0, 1, 1, 3]
# Right; too high; too high without a probability above one half; too low; right. No job needs bin 2.
SCORES = [[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.25, 0.25, 0.3, 0.2], [0.8, 0.2, 0, 0], [0, 0, 0, 1]]


def results_of(true=TRUE, scores=SCORES, history=HISTORY, names=None):
    test_idx = pd.Series(true, index=names or NAMES[: len(true)])
    return classification_results(test_idx, scores, history, train_scores=(0.9, 0.3))


def test_arrays_of_a_small_split():
    results = results_of()
    assert results.test_idx.name == "mem_bin"
    assert results.test_idx.index.name == "ipst"
    assert results.test_idx.to_dict() == dict(zip(NAMES, TRUE, strict=True))
    assert results.y_pred.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert list(results.y_onehot) == ["bin_0", "bin_1", "bin_2", "bin_3"]
    assert results.y_onehot.to_numpy().tolist() == np.eye(4, dtype=int)[TRUE].tolist()
    assert results.y_onehot.dtypes.eq(np.int64).all()
    assert results.cmx.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert results.cmx_norm.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_roc_auc_counts_ordered_pairs_and_is_nan_for_an_absent_bin():
    # Bin 0: of the six pairs of a job that needs it and one that does not, three are in order; bin 1: four.
    np.testing.assert_allclose(results_of().roc_auc, [3 / 6, 4 / 6, math.nan, 1])


def test_accuracy_and_loss():
    loss = -(math.log(0.7) + math.log(0.2) + math.log(0.25) + math.log(0.2)) / 5
    expected = {"train_acc": 0.9, "train_loss": 0.3, "test_acc": 0.4, "test_loss": loss}
    assert results_of().acc_loss == pytest.approx(expected)
    # A bin held impossible has a finite loss.
    assert results_of([1], [[1, 0, 0, 0]]).acc_loss["test_loss"] == pytest.approx(-math.log(1e-7))


def test_false_negatives_and_positives_by_true_bin():
    fnfp = results_of().fnfp
    assert fnfp.conf_idx.tolist() == [1, 2, 3]
    assert fnfp.conf_proba.tolist() == [0.6, 0.3, 0.8]
    assert fnfp.pred_proba.index.tolist() == NAMES[1:4]
    assert fnfp.pred_proba.to_dict("list") == {"y_true": [0, 1, 1], "y_pred": [1, 2, 0], "proba": [0.6, 0.3, 0.8]}
    names = {"0": [], "1": [], "2": [], "3": []}
    assert {label: found.tolist() for label, found in fnfp.fn_idx.items()} == names | {"1": [NAMES[3]]}
    assert {label: found.tolist() for label, found in fnfp.fp_idx.items()} == names | {"0": [NAMES[1]], "1": [NAMES[2]]}


def test_report_names_all_rungs_even_the_absent_one():
    rows = {line.split()[0]: line.split()[1:] for line in results_of().report.splitlines()[1:] if line.strip()}
    assert rows["2g"] == ["0.50", "0.50", "0.50", "2"]
    assert rows["16g"] == ["0.00", "0.00", "0.00", "0"]


def test_history_has_the_order_of_the_contract():
    history = results_of().history
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert {key: values.tolist() for key, values in history.items()} == HISTORY


def test_a_tie_goes_to_the_lowest_bin():
    assert results_of([3], [[0, 0.5, 0.5, 0]]).y_pred.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"true": [], "scores": np.empty((0, 4))}, "empty"),
        ({"true": [4, 0, 0, 0, 0]}, "0 to 3"),
        ({"true": [0.5, 0, 0, 0, 0]}, "0 to 3"),
        ({"true": [math.nan, 0, 0, 0, 0]}, "mem_bin"),
        ({"scores": SCORES[:4]}, "(4, 4)"),
        ({"scores": np.full((5, 4), 0.5)}, "softmax"),
        ({"scores": np.full((5, 4), math.nan)}, "softmax"),
        ({"history": {key: HISTORY[key] for key in ("loss", "accuracy", "val_loss")}}, "val_accuracy"),
        ({"history": HISTORY | {"loss": [1]}}, "history"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    with pytest.raises(InputError) as caught:
        results_of(**change)
    assert words in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.floats(-20, 20), min_size=4, max_size=4)), min_size=1))
def test_every_split_has_consistent_results_without_a_warning(jobs):
    true = np.array([needed for needed, _ in jobs])
    powers = np.exp(np.array([logits for _, logits in jobs]))
    scores = powers / powers.sum(axis=1, keepdims=True)
    names = [f"j{number:08d}" for number in range(len(jobs))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = results_of(true, scores.astype(np.float32), names=names)
    sure = scores.max(axis=1) > 0.501
    assert np.array_equal(results.y_pred[sure], np.round(scores[sure]))
    assert np.array_equal(results.cmx.sum(axis=1), np.bincount(true, minlength=4))
    assert np.trace(results.cmx) == len(jobs) - len(results.fnfp.conf_idx)
    assert np.array_equal(results.cmx_norm.sum(axis=1).round(9), np.isin(range(4), true))
    defined = [0 < np.sum(true == label) < len(true) for label in range(4)]
    assert np.array_equal(~np.isnan(results.roc_auc), defined)
    listed = [name for part in (results.fnfp.fn_idx, results.fnfp.fp_idx) for group in part.values() for name in group]
    assert sorted(listed) == results.fnfp.pred_proba.index.tolist()
    assert np.isfinite(list(results.acc_loss.values())).all()
