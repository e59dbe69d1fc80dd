"""Small results, and what the tests of results folders share."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.results.classification import classification_results
from calmlflow.results.files import write_results
from calmlflow.results.regression import regression_results
from calmlflow.results.table import training_table
from calmlflow.settings import TARGETS

NEEDED = {
    "mem_bin": ["test_idx.csv", "y_scores.npy", "y_pred.npy", "y_onehot.csv", "cmx.npy", "cmx_norm.npy"],
    "memory": ["predictions.npy", "residuals.npy"],
}
OPTIONAL = {
    "mem_bin": {
        "roc_auc.npy": "roc_auc", "report.json": "report", "acc_loss.npz": "acc_loss", "history.npz": "history",
    },
    "memory": {"test_idx.csv": "test_idx", "loss.npz": "loss", "history.npz": "history"},
}  # fmt: skip
FNFP = {
    "fnfp.npz": "conf_idx",
    "fnfp-pred_proba.npz": "pred_proba",
    "fnfp-fn_idx.npz": "fn_idx",
    "fnfp-fp_idx.npz": "fp_idx",
}
FILES = [(target, name) for target in NEEDED for name in [*NEEDED[target], *OPTIONAL[target]]]
FILES += [("mem_bin", name) for name in FNFP]


def classifier(names, true, scores, epochs=3):
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    history = {key: np.linspace(number, 0.1, epochs) for number, key in enumerate(keys)}
    return classification_results(pd.Series(true, index=names), scores, history, (0.9, 0.25))


def regressor(names, actual, predicted, target="memory", epochs=3):
    keys = ("loss", "rmse", "val_loss", "val_rmse")
    history = {key: np.linspace(number, 0.1, epochs) for number, key in enumerate(keys)}
    return regression_results(pd.Series(actual, index=names, name=target), predicted, history, 2.5)


def small(target):
    names = ["j8c601020", "o4qpkupdq", "ib1f01020"]
    if target == "mem_bin":
        return classifier(names, [0, 1, 3], [[0.1, 0.9, 0, 0], [0.6, 0.4, 0, 0], [0, 0, 0.25, 0.75]])
    return regressor(names, [0.5, 1.5, 20], [0.75, 1.5, 18.5], target)


def same(left, right):
    """Equal to the last digit, type by type; NaN equals NaN."""
    assert type(left) is type(right)
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, check_exact=True)
    elif isinstance(left, pd.Series):
        pd.testing.assert_series_equal(left, right, check_exact=True)
    elif isinstance(left, np.ndarray):
        assert left.dtype.kind == right.dtype.kind
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def save_objects(path, key, value):
    array = np.empty((), dtype=object)
    array[()] = value
    np.savez(path, allow_pickle=True, **{key: array})


def some_jobs():
    """The three test jobs of `small`, and one that was trained on; with the bins that were decided on."""
    features = {
        "n_files": [17, 2, 4, 1], "total_mb": [10.0, 3.0, 60.0, 2.0], "drizcorr": [1, 0, 1, 0], "pctecorr": 0,
        "crsplit": [0, 1, 2, 0], "subarray": 0, "detector": [0, 0, 1, 0], "dtype": [1, 0, 1, 0], "instr": [0, 2, 3, 1],
    }  # fmt: skip
    names = ["j8c601020", "o4qpkupdq", "ib1f01020", "lbek01xyz"]
    jobs = pd.DataFrame({"ipst": names, "timestamp": 0, **features})
    jobs = jobs.assign(wallclock=[100.0, 200.0, 300.0, 50.0], memory=[0.5, 1.5, 20.0, 0.4], mem_bin=[0, 1, 3, 0])
    predictions = {"bin_pred": [0, 1, 2, 0], "mem_pred": [0.75, 1.5, 18.5, 0.4], "wall_pred": [90.0, 90, 310, 50]}
    return training_table(jobs, predictions, ["test", "test", "test", "train"])


def write_tree(folder):
    """The results of a training of three networks in a folder, with their jobs."""
    for target in TARGETS.values():
        write_results(small(target), folder / "results" / target)
    (folder / "data").mkdir()
    some_jobs().to_csv(folder / "data" / "latest.csv", index=False)
    return folder
