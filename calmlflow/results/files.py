"""Result folders: which file holds what. The formats are those of the earlier library, without its pickles."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.results.checks import CLASSIFIER_HISTORY, N_BINS, REGRESSOR_HISTORY, epochs, memory_bins, named_split
from calmlflow.results.classification import (
    ACC_LOSS,
    ONEHOT_COLUMNS,
    PROBA_COLUMNS,
    ClassificationResults,
    Misclassified,
)
from calmlflow.results.formats import (
    integers,
    numbers,
    read_csv,
    read_json_text,
    read_npy,
    read_npz,
    read_npz_unless_pickled,
    strings,
    write_file,
)
from calmlflow.results.regression import LOSS, REGRESSION_TARGETS, RegressionResults

_BINS = tuple(str(label) for label in range(N_BINS))


def write_results(results: ClassificationResults | RegressionResults, folder: str | Path) -> None:
    """Write results into a folder, which is made if need be.

    Each file is written aside and then renamed. A file whose field is None is removed, so that the folder never mixes
    two trainings.

    Raises
    ------
    CalmlflowError
        A file cannot be written; the error names it.
    """
    files = _classification_files(results) if isinstance(results, ClassificationResults) else _regression_files(results)
    for name, value in files.items():
        write_file(Path(folder) / name, value)


@overload
def read_results(folder: str | Path, target: Literal["mem_bin"]) -> ClassificationResults: ...
@overload
def read_results(folder: str | Path, target: Literal["memory", "wallclock"]) -> RegressionResults: ...
@overload
def read_results(folder: str | Path, target: str) -> ClassificationResults | RegressionResults: ...
def read_results(folder: str | Path, target: str) -> ClassificationResults | RegressionResults:
    """Read the results of one network, written by `write_results` or by the earlier library.

    For mem_bin the files test_idx, y_scores, y_pred, y_onehot, cmx and cmx_norm must be there; for a regressor
    predictions and residuals. The field of any other file is None where the file is absent. What the earlier library
    pickled (its false negatives and false positives) is skipped with a warning that names the file; where its
    ``test_idx`` of a regressor holds memory bins, the actual values are those in ``predictions``.

    Parameters
    ----------
    folder : path
        The folder of the target itself, such as ``results/mem_bin``.
    target : {"mem_bin", "memory", "wallclock"}
        Names the series in ``test_idx`` and tells which files to expect.

    Raises
    ------
    InputError
        A needed file is missing, or a file is damaged, holds pickled objects, or has the wrong shape; names the file.
    """
    if target == "mem_bin":
        return _read_classification(Path(folder))
    if target in REGRESSION_TARGETS:
        return _read_regression(Path(folder), target)
    raise InputError(f"target is {target!r}; expected mem_bin, {' or '.join(REGRESSION_TARGETS)}")


def _classification_files(results: ClassificationResults) -> dict[str, Any]:
    fnfp = results.fnfp
    table = fnfp.pred_proba if fnfp else None
    return {
        "test_idx.csv": results.test_idx.reset_index(),
        "y_scores.npy": results.y_scores,
        "y_pred.npy": results.y_pred,
        "y_onehot.csv": results.y_onehot,
        "cmx.npy": results.cmx,
        "cmx_norm.npy": results.cmx_norm,
        "roc_auc.npy": results.roc_auc,
        "report.json": results.report,
        "acc_loss.npz": results.acc_loss,
        "history.npz": results.history,
        "fnfp.npz": None
        if fnfp is None or fnfp.conf_idx is None
        else {"conf_idx": fnfp.conf_idx, "conf_proba": fnfp.conf_proba},
        "fnfp-pred_proba.npz": None
        if table is None
        else {
            "index": np.asarray(table.index, dtype=np.str_),
            "columns": np.asarray(table.columns, dtype=np.str_),
            "data": table.to_numpy(dtype=float),
        },
        "fnfp-fn_idx.npz": fnfp.fn_idx if fnfp else None,
        "fnfp-fp_idx.npz": fnfp.fp_idx if fnfp else None,
    }


def _regression_files(results: RegressionResults) -> dict[str, Any]:
    return {
        "test_idx.csv": None if results.test_idx is None else results.test_idx.reset_index(),
        "predictions.npy": results.predictions,
        "residuals.npy": results.residuals,
        "loss.npz": results.loss,
        "history.npz": results.history,
    }


def _read_classification(folder: Path) -> ClassificationResults:
    y_scores = read_npy(folder / "y_scores.npy", (None, N_BINS))
    n = len(y_scores)
    return ClassificationResults(
        test_idx=_read_split(folder / "test_idx.csv", "mem_bin", n).astype(np.int64),
        y_scores=y_scores,
        y_pred=integers(read_npy(folder / "y_pred.npy", (n, N_BINS)), str(folder / "y_pred.npy")),
        y_onehot=_read_onehot(folder / "y_onehot.csv", n),
        cmx=integers(read_npy(folder / "cmx.npy", (N_BINS, N_BINS)), str(folder / "cmx.npy")),
        cmx_norm=read_npy(folder / "cmx_norm.npy", (N_BINS, N_BINS)),
        roc_auc=_if_there(folder / "roc_auc.npy", lambda path: read_npy(path, (N_BINS,))),
        report=_if_there(folder / "report.json", read_json_text),
        acc_loss=_if_there(folder / "acc_loss.npz", lambda path: _read_scalars(path, ACC_LOSS)),
        history=_if_there(folder / "history.npz", lambda path: _read_history(path, CLASSIFIER_HISTORY)),
        fnfp=_read_misclassified(folder),
    )


def _read_regression(folder: Path, target: str) -> RegressionResults:
    predictions = read_npy(folder / "predictions.npy", (None, 2))
    n = len(predictions)
    return RegressionResults(
        test_idx=_if_there(folder / "test_idx.csv", lambda path: _read_regression_split(path, target, predictions)),
        predictions=predictions,
        residuals=read_npy(folder / "residuals.npy", (n,)),
        loss=_if_there(folder / "loss.npz", lambda path: _read_scalars(path, LOSS)),
        history=_if_there(folder / "history.npz", lambda path: _read_history(path, REGRESSOR_HISTORY)),
    )


def _if_there(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None


def _read_split(path: Path, target: str, n: int) -> pd.Series:
    table = read_csv(path, ("ipst", target))
    if len(table) != n:
        raise InputError(f"{path} has {len(table)} rows; expected {n}, one per prediction")
    try:
        split = named_split(table.set_index("ipst")[target], target)
        if target == "mem_bin":
            memory_bins(split, "column mem_bin")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return split


def _read_regression_split(path: Path, target: str, predictions: NDArray[np.float64]) -> pd.Series:
    table = read_csv(path, ("ipst",))
    if target not in table and "mem_bin" in table:
        # The earlier library splits once and leaves the memory bins in the folder of every network: the names hold.
        names = _read_split(path, "mem_bin", len(predictions)).index
        return pd.Series(predictions[:, 1], index=names, name=target)
    return _read_split(path, target, len(predictions))


def _read_onehot(path: Path, n: int) -> pd.DataFrame:
    # The earlier library writes True and False where pandas gives it booleans.
    table = read_csv(path, ONEHOT_COLUMNS)[list(ONEHOT_COLUMNS)].replace({"True": "1", "False": "0"})
    if len(table) != n or not table.isin(["0", "1"]).all(axis=None):
        raise InputError(f"{path} has {len(table)} rows; expected {n} of 0 and 1, one per prediction")
    return table.astype(np.int64)


def _read_scalars(path: Path, keys: tuple[str, ...]) -> dict[str, float]:
    members = read_npz(path, keys)
    return {key: float(numbers(members[key], (), f"{path}, {key}")) for key in keys}


def _read_history(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    arrays = {key: numbers(array, (None,), f"{path}, {key}") for key, array in read_npz(path, keys).items()}
    return epochs(arrays, keys, where=str(path))


def _read_misclassified(folder: Path) -> Misclassified | None:
    paths = [folder / f"fnfp{part}.npz" for part in ("", "-pred_proba", "-fn_idx", "-fp_idx")]
    if not any(path.exists() for path in paths):
        return None
    conf_idx, conf_proba = _if_there(paths[0], _read_confused) or (None, None)
    return Misclassified(
        conf_idx=conf_idx,
        conf_proba=conf_proba,
        pred_proba=_if_there(paths[1], _read_pred_proba),
        fn_idx=_if_there(paths[2], _read_names),
        fp_idx=_if_there(paths[3], _read_names),
    )


def _read_confused(path: Path) -> tuple[Any, Any] | None:
    members = read_npz_unless_pickled(path, ("conf_idx", "conf_proba"))
    if members is None:
        return None
    conf_idx = integers(numbers(members["conf_idx"], (None,), f"{path}, conf_idx"), f"{path}, conf_idx")
    return conf_idx, numbers(members["conf_proba"], (len(conf_idx),), f"{path}, conf_proba")


def _read_pred_proba(path: Path) -> pd.DataFrame | None:
    members = read_npz_unless_pickled(path, ("index", "columns", "data"))
    if members is None:
        return None
    columns = strings(members["columns"], f"{path}, columns")
    if tuple(columns) != PROBA_COLUMNS:
        raise InputError(f"{path} has columns {columns.tolist()}; expected {list(PROBA_COLUMNS)}")
    names = strings(members["index"], f"{path}, index")
    data = members["data"]
    if data.size == 0:
        # An empty table of the earlier library has lost its second dimension.
        data = data.reshape(0, len(PROBA_COLUMNS))
    data = numbers(data, (len(names), len(PROBA_COLUMNS)), f"{path}, data")
    table = pd.DataFrame(
        data, columns=list(PROBA_COLUMNS), index=pd.Index(names.astype(object), dtype="str", name="ipst")
    )
    return table.assign(**{bins: integers(table[bins].to_numpy(), f"{path}, {bins}") for bins in ("y_true", "y_pred")})


def _read_names(path: Path) -> dict[str, Any] | None:
    members = read_npz_unless_pickled(path)
    if members is None:
        return None
    # The earlier library leaves out a bin without such jobs.
    none: Any = np.array([], dtype=np.str_)
    return {label: strings(members.get(label, none), f"{path}, {label}") for label in _BINS}
