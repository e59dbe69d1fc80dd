"""Read and write result folders, in the formats of the earlier library without its pickles."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from calmlflow.results.regression import LOSS, REGRESSION_TARGETS, RegressionResults
from calmlflow.storage.files import replacing

MAX_UNPACKED_BYTES = 2_000_000_000
"""A million jobs make files of 50 MB."""

Shape = tuple[int | None, ...]
"""None stands for any length."""


class _PickledError(InputError):
    """A file holds pickled objects."""


def write_results(results: ClassificationResults | RegressionResults, folder: str | Path) -> None:
    """Write results into a folder, which is made if need be.

    A file whose field is None is removed, so that the folder never mixes two trainings. A CalmlflowError names a file
    that cannot be written.
    """
    if isinstance(results, RegressionResults):
        files: dict[str, Any] = {"predictions.npy": results.predictions, "residuals.npy": results.residuals}
        files |= {"loss.npz": results.loss, "history.npz": results.history}
    else:
        arrays = ("y_scores", "y_pred", "cmx", "cmx_norm", "roc_auc")
        files = {f"{name}.npy": getattr(results, name) for name in arrays}
        files |= {"acc_loss.npz": results.acc_loss, "history.npz": results.history}
        files |= {"y_onehot.csv": results.y_onehot, "report.json": results.report}
        files |= _misclassified_files(results.fnfp)
    files["test_idx.csv"] = None if results.test_idx is None else results.test_idx.reset_index()
    for name, value in files.items():
        path = Path(folder) / name
        if value is None:
            path.unlink(missing_ok=True)
            continue
        with replacing(path, "wb") as file:
            match path.suffix:
                case ".npy":
                    np.save(file, value, allow_pickle=False)
                case ".npz":
                    np.savez(file, allow_pickle=False, **value)
                case ".csv":
                    value.to_csv(file, index=False)
                case _:
                    file.write(json.dumps(value).encode())


def read_results(folder: str | Path, target: str) -> ClassificationResults | RegressionResults:
    """Read the results of one network, written by `write_results` or by the earlier library.

    For mem_bin the files test_idx, y_scores, y_pred, y_onehot, cmx and cmx_norm must be there; for a regressor
    predictions and residuals. The field of any other file is None where the file is absent. Pickles of the earlier
    library (its false negatives and false positives) are skipped with a warning that names the file. An InputError
    names a needed file that is missing, and a file that is damaged, pickled, or of the wrong shape.
    """
    folder = Path(folder)
    if target == "mem_bin":
        return _read_classification(folder)
    if target not in REGRESSION_TARGETS:
        raise InputError(f"target is {target!r}; expected mem_bin, {' or '.join(REGRESSION_TARGETS)}")
    predictions = _array(folder / "predictions.npy", (None, 2))
    return RegressionResults(
        test_idx=_if_there(folder / "test_idx.csv", lambda path: _regression_split(path, target, predictions)),
        predictions=predictions,
        residuals=_array(folder / "residuals.npy", (len(predictions),)),
        loss=_if_there(folder / "loss.npz", lambda path: _scalars(path, LOSS)),
        history=_if_there(folder / "history.npz", lambda path: _history(path, REGRESSOR_HISTORY)),
    )


def _read_classification(folder: Path) -> ClassificationResults:
    y_scores = _array(folder / "y_scores.npy", (None, N_BINS))
    n = len(y_scores)
    return ClassificationResults(
        test_idx=_split(folder / "test_idx.csv", "mem_bin", n).astype(np.int64),
        y_scores=y_scores,
        y_pred=_array(folder / "y_pred.npy", (n, N_BINS), whole=True),
        y_onehot=_onehot(folder / "y_onehot.csv", n),
        cmx=_array(folder / "cmx.npy", (N_BINS, N_BINS), whole=True),
        cmx_norm=_array(folder / "cmx_norm.npy", (N_BINS, N_BINS)),
        roc_auc=_if_there(folder / "roc_auc.npy", lambda path: _array(path, (N_BINS,))),
        report=_if_there(folder / "report.json", _json_text),
        acc_loss=_if_there(folder / "acc_loss.npz", lambda path: _scalars(path, ACC_LOSS)),
        history=_if_there(folder / "history.npz", lambda path: _history(path, CLASSIFIER_HISTORY)),
        fnfp=_read_misclassified(folder),
    )


def _if_there(path: Path, read: Callable[[Path], Any]) -> Any:
    return read(path) if path.exists() else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; expected a results file there") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _damaged(path: Path, error: Exception, expected: str) -> InputError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"{path} is damaged ({reason}); expected {expected}")


# -- Arrays ---------------------------------------------------------------------------------------------------------


def _arrays(path: Path, keys: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, these keys among them, or the one of a .npy file under ""."""
    data = _bytes(path)
    try:
        # numpy takes any other bytes for a pickle.
        if not data.startswith(b"\x93NUMPY" if path.suffix == ".npy" else b"PK"):
            raise ValueError("its first bytes are those of another format")
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        unpacked = sum(member.file_size for member in found.zip.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to {unpacked} bytes, more than {MAX_UNPACKED_BYTES}")
        arrays = {name: np.asarray(found[name]) for name in found.files}
    # numpy and zipfile raise errors of many kinds on damaged bytes.
    except Exception as error:
        if "Object arrays cannot be loaded" in str(error):
            raise _PickledError(f"{path} is pickled, and pickles are never read; expected numbers or text") from error
        raise _damaged(path, error, f"a {path.suffix} file") from error
    if absent := [key for key in keys if key not in arrays]:
        raise InputError(f"{path} has no {absent[0]!r}; expected {', '.join(keys)}")
    return arrays


def _array(path: Path, shape: Shape, whole: bool = False) -> NDArray[Any]:
    return _numbers(_arrays(path)[""], shape, str(path), whole)


def _numbers(array: NDArray[Any], shape: Shape, where: str, whole: bool = False) -> NDArray[Any]:
    """The numbers of an array, as float64, or as int64 where they must be whole."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {array.dtype} values; expected numbers")
    if array.ndim != len(shape) or any(want not in (None, have) for have, want in zip(array.shape, shape, strict=True)):
        expected = ", ".join("n" if want is None else str(want) for want in shape)
        raise InputError(f"{where} has shape {array.shape}; expected ({expected})")
    if whole and not np.all(np.isfinite(array) & (array == np.round(array))):
        raise InputError(f"{where} holds a value that is no whole number; expected whole numbers only")
    return array.astype(np.int64 if whole else np.float64)


def _strings(array: NDArray[Any], where: str) -> NDArray[np.str_]:
    """One row of text; an empty array of any kind counts as such."""
    if array.ndim != 1 or (array.dtype.kind != "U" and array.size > 0):
        raise InputError(f"{where} holds {array.dtype} values of shape {array.shape}; expected one row of text")
    return array.astype(np.str_)


def _scalars(path: Path, keys: tuple[str, ...]) -> dict[str, float]:
    arrays = _arrays(path, keys)
    return {key: float(_numbers(arrays[key], (), f"{path}, {key}")) for key in keys}


def _history(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    arrays = {key: _numbers(array, (None,), f"{path}, {key}") for key, array in _arrays(path, keys).items()}
    return epochs(arrays, keys, where=str(path))


# -- Tables and texts -----------------------------------------------------------------------------------------------


def read_csv(path: Path, columns: tuple[str, ...], dtype: Any = str) -> pd.DataFrame:
    """The table in a .csv file, as text or as the dtypes that pandas is told; ``columns`` must be among its own."""
    data, expected = _bytes(path), f"columns {', '.join(columns)}"
    # A file cut in the middle of its last number would still parse; writers end every row with a newline.
    if not data.endswith(b"\n"):
        raise InputError(f"{path} is damaged (its last line has no end); expected {expected}")
    try:
        table = pd.read_csv(io.BytesIO(data), dtype=dtype, keep_default_na=False, low_memory=False)
    except ValueError as error:
        raise _damaged(path, error, expected) from error
    if absent := [column for column in columns if column not in table.columns]:
        raise InputError(f"{path} has no column {absent[0]!r}; expected {expected}")
    return table


def _json_text(path: Path) -> str:
    try:
        text = json.loads(_bytes(path))
        if not isinstance(text, str):
            raise ValueError("it holds JSON of another kind")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error, "one JSON string") from error
    return text


def _split(path: Path, target: str, n: int) -> pd.Series:
    table = read_csv(path, ("ipst", target))
    if len(table) != n:
        raise InputError(f"{path} has {len(table)} rows; expected {n}, one per prediction")
    try:
        split = named_split(table.set_index("ipst")[target], target)
        if target == "mem_bin":
            memory_bins(split, "column mem_bin")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return split


def _regression_split(path: Path, target: str, predictions: NDArray[np.float64]) -> pd.Series:
    table = read_csv(path, ("ipst",))
    if target not in table and "mem_bin" in table:
        # The earlier library splits once and leaves the memory bins in the folder of every network: the names hold.
        names = _split(path, "mem_bin", len(predictions)).index
        return pd.Series(predictions[:, 1], index=names, name=target)
    return _split(path, target, len(predictions))


def _onehot(path: Path, n: int) -> pd.DataFrame:
    # The earlier library writes True and False where pandas gives it booleans.
    table = read_csv(path, ONEHOT_COLUMNS)[list(ONEHOT_COLUMNS)].replace({"True": "1", "False": "0"})
    if len(table) != n or not table.isin(["0", "1"]).all(axis=None):
        raise InputError(f"{path} has {len(table)} rows; expected {n} of 0 and 1, one per prediction")
    return table.astype(np.int64)


# -- Misclassified jobs, which the earlier library pickled ----------------------------------------------------------


def _misclassified_files(fnfp: Misclassified | None) -> dict[str, Any]:
    files: dict[str, Any] = dict.fromkeys(("fnfp.npz", "fnfp-pred_proba.npz", "fnfp-fn_idx.npz", "fnfp-fp_idx.npz"))
    if fnfp is None:
        return files
    if fnfp.conf_idx is not None:
        files["fnfp.npz"] = {"conf_idx": fnfp.conf_idx, "conf_proba": fnfp.conf_proba}
    if (table := fnfp.pred_proba) is not None:
        names = {"index": np.asarray(table.index, dtype=np.str_), "columns": np.asarray(table.columns, dtype=np.str_)}
        files["fnfp-pred_proba.npz"] = {**names, "data": table.to_numpy(dtype=float)}
    return files | {"fnfp-fn_idx.npz": fnfp.fn_idx, "fnfp-fp_idx.npz": fnfp.fp_idx}


def _read_misclassified(folder: Path) -> Misclassified | None:
    readers = {"fnfp": _confused, "fnfp-pred_proba": _pred_proba, "fnfp-fn_idx": _names, "fnfp-fp_idx": _names}
    found: dict[str, Any] = {}
    for name, read in readers.items():
        path = folder / f"{name}.npz"
        if path.exists():
            try:
                found[name] = read(path)
            except _PickledError as error:
                warnings.warn(f"{error}; skipped", stacklevel=2)
                found[name] = None
    if not found:
        return None
    conf_idx, conf_proba = found.pop("fnfp", None) or (None, None)
    return Misclassified(conf_idx, conf_proba, *(found.get(name) for name in list(readers)[1:]))


def _confused(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    arrays = _arrays(path, ("conf_idx", "conf_proba"))
    conf_idx = _numbers(arrays["conf_idx"], (None,), f"{path}, conf_idx", whole=True)
    return conf_idx, _numbers(arrays["conf_proba"], (len(conf_idx),), f"{path}, conf_proba")


def _pred_proba(path: Path) -> pd.DataFrame:
    arrays = _arrays(path, ("index", "data"))
    names = _strings(arrays["index"], f"{path}, index")
    # An empty table of the earlier library has lost its second dimension.
    data = arrays["data"] if arrays["data"].size else arrays["data"].reshape(0, len(PROBA_COLUMNS))
    data = _numbers(data, (len(names), len(PROBA_COLUMNS)), f"{path}, data")
    index = pd.Index(names.astype(object), dtype="str", name="ipst")
    table = pd.DataFrame(data, columns=list(PROBA_COLUMNS), index=index)
    bins = {
        name: _numbers(table[name].to_numpy(), (None,), f"{path}, {name}", whole=True) for name in PROBA_COLUMNS[:2]
    }
    return table.assign(**bins)


def _names(path: Path) -> dict[str, NDArray[np.str_]]:
    arrays = _arrays(path)
    # The earlier library leaves out a bin without such jobs.
    none: NDArray[np.str_] = np.array([], dtype=np.str_)
    return {str(label): _strings(arrays.get(str(label), none), f"{path}, {label}") for label in range(N_BINS)}
