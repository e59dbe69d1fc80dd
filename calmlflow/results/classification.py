"""Scores and results of the memory-bin classifier on its test split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES, excess_cost
from calmlflow.results.checks import (
    CLASSIFIER_HISTORY,
    N_BINS,
    amounts,
    epochs,
    memory_bins,
    named_split,
    probability_rows,
)

CALIBRATION_BINS = 15
ONEHOT_COLUMNS = tuple(f"bin_{label}" for label in range(N_BINS))
PROBA_COLUMNS = ("y_true", "y_pred", "proba")
ACC_LOSS = ("train_acc", "train_loss", "test_acc", "test_loss")

# Keras clips here too, so that the test loss can be compared with the training loss.
SMALLEST_PROBABILITY = 1e-7


# -- Scores ---------------------------------------------------------------------------------------------------------


def classification_scores(
    y_true: ArrayLike, probabilities: ArrayLike, decided: ArrayLike, wallclock_s: ArrayLike | None = None
) -> dict[str, float]:
    """Score the most probable bins, the bins decided on, and the probabilities of a classifier.

    Of the most probable bins: accuracy; balanced_accuracy and f1_macro (means over the bins that the split has);
    precision and recall of each bin (precision is 0 for a bin never chosen); excess_cost_argmax. Of the bins decided
    on: underallocated and overallocated (shares of jobs); excess_cost (0.03: 3 % dearer than always choosing the needed
    bin). Of the probabilities: roc_auc of each bin; log_loss (nats); ece, the expected calibration error (Guo et al.,
    On calibration of modern neural networks, ICML 2017). Undefined scores are left out: those of a bin that the split
    lacks, the roc_auc of a bin that all its jobs need, and costs without ``wallclock_s`` (seconds).
    """
    y_true, decided = memory_bins(y_true, "y_true"), memory_bins(decided, "decided")
    if len(y_true) == 0:
        raise InputError("y_true is empty; expected at least one job")
    probabilities = probability_rows(probabilities, len(y_true))
    chosen = probabilities.argmax(axis=1)
    _, n, stated, true = calibration_cells(probabilities.max(axis=1), chosen == y_true)
    counts = confusion_matrix(y_true, chosen, labels=range(N_BINS))
    hits, needed, picked = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    present = needed > 0
    recall = hits / np.maximum(needed, 1)
    scores = {
        "accuracy": hits.sum() / len(y_true),
        "balanced_accuracy": recall[present].mean(),
        "f1_macro": (2 * hits / np.maximum(needed + picked, 1))[present].mean(),
        "log_loss": cross_entropy(y_true, probabilities),
        "ece": np.sum(n * np.abs(true - stated)) / len(y_true),
        "underallocated": np.mean(decided < y_true),
        "overallocated": np.mean(decided > y_true),
    }
    if wallclock_s is not None:
        wallclock_s = amounts(wallclock_s, "wallclock_s")
        scores["excess_cost"] = excess_cost(decided, y_true, wallclock_s)
        scores["excess_cost_argmax"] = excess_cost(chosen, y_true, wallclock_s)
    by_bin = {
        "precision": np.where(present, hits / np.maximum(picked, 1), np.nan),
        "recall": np.where(present, recall, np.nan),
        "roc_auc": roc_auc_by_bin(y_true, probabilities),
    }
    for score, values in by_bin.items():
        scores |= {f"{score}_{name}": value for name, value in zip(BIN_NAMES, values, strict=True)}
    return {name: float(score) for name, score in scores.items() if not np.isnan(score)}


def roc_auc_by_bin(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each bin against the rest, shape (4,); NaN where no job or every job has the bin."""
    areas = np.full(N_BINS, np.nan)
    for label in np.unique(y_true):
        if np.any(y_true != label):
            areas[label] = roc_auc_score(y_true == label, probabilities[:, label])
    return areas


def log_losses(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Negative logarithm (nats) of the probability given to the true bin, with probabilities kept above 1e-7."""
    given = probabilities[np.arange(len(y_true)), y_true]
    return -np.log(np.clip(given, SMALLEST_PROBABILITY, 1))


def cross_entropy(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Mean of `log_losses`."""
    return float(log_losses(y_true, probabilities).mean())


def calibration_cells(
    probability: NDArray[np.float64], hit: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Group n jobs by their probability of an event into equally wide cells, and keep those that have jobs.

    Returns the cell of each job, shape (n,), and for each cell its jobs, their mean probability and their share of
    hits, that is of jobs for which the event came true.
    """
    cell = np.clip(np.ceil(probability * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    _, cell = np.unique(cell, return_inverse=True)
    n = np.bincount(cell)
    return cell, n, np.bincount(cell, probability) / n, np.bincount(cell, hit) / n


# -- Results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Misclassified:
    """The jobs of the test split whose most probable bin is wrong; a field is None where a folder holds its pickle."""

    conf_idx: NDArray[np.int64] | None  # positions in the test split
    conf_proba: NDArray[np.float64] | None  # probability of the bin that was predicted
    pred_proba: pd.DataFrame | None  # columns y_true, y_pred, proba; the index holds the dataset names
    # True bin, "0" to "3" -> names of its datasets whose predicted bin is too low (fn), too high (fp).
    fn_idx: dict[str, NDArray[np.str_]] | None
    fp_idx: dict[str, NDArray[np.str_]] | None


@dataclass(frozen=True, eq=False)
class ClassificationResults:
    """Results of the classifier on the n jobs of its test split.

    The fields from ``roc_auc`` on are None where an older folder lacks their file, or the training is not known.
    """

    test_idx: pd.Series  # actual bins, named mem_bin; the index, named ipst, holds the dataset names
    y_scores: NDArray[np.float64]  # probabilities, shape (n, 4)
    y_pred: NDArray[np.int64]  # one-hot of the most probable bin, the lowest one where several tie, shape (n, 4)
    y_onehot: pd.DataFrame  # one-hot of the actual bin, columns bin_0 to bin_3
    cmx: NDArray[np.int64]  # confusion matrix, shape (4, 4); rows are true bins
    cmx_norm: NDArray[np.float64]  # the same as shares of each row; zeros for a bin absent from the split
    roc_auc: NDArray[np.float64] | None  # see `roc_auc_by_bin`
    report: str | None  # scikit-learn's classification report
    acc_loss: dict[str, float] | None  # accuracy of the most probable bin, and cross-entropy in nats
    history: dict[str, NDArray[np.float64]] | None  # one value per epoch; keys as in `CLASSIFIER_HISTORY`
    fnfp: Misclassified | None


def classification_results(
    test_idx: pd.Series,
    y_scores: ArrayLike,
    history: Mapping[str, Any] | None,
    train_scores: tuple[float, float] | None,
) -> ClassificationResults:
    """Compute the results of the classifier from its answers for the test split.

    ``test_idx`` holds the needed bins by dataset name, ``y_scores`` a row of probabilities for each, ``history`` the
    values per epoch, and ``train_scores`` accuracy and cross-entropy (nats) on the training split. The last two are
    None if the training is not known.
    """
    split = named_split(test_idx, "mem_bin")
    y_true = memory_bins(split, "test split of mem_bin")
    split = split.astype(np.int64)
    probabilities = probability_rows(y_scores, len(y_true))
    chosen = probabilities.argmax(axis=1)
    one_hot = np.eye(N_BINS, dtype=np.int64)
    counts = confusion_matrix(y_true, chosen, labels=range(N_BINS))
    test_scores = float(np.mean(chosen == y_true)), cross_entropy(y_true, probabilities)
    return ClassificationResults(
        test_idx=split,
        y_scores=probabilities,
        y_pred=one_hot[chosen],
        y_onehot=pd.DataFrame(one_hot[y_true], columns=list(ONEHOT_COLUMNS)),
        cmx=counts,
        cmx_norm=counts / np.maximum(counts.sum(axis=1, keepdims=True), 1),
        roc_auc=roc_auc_by_bin(y_true, probabilities),
        report=classification_report(y_true, chosen, labels=range(N_BINS), target_names=BIN_NAMES, zero_division=0),
        acc_loss=dict(zip(ACC_LOSS, (*map(float, train_scores), *test_scores), strict=True)) if train_scores else None,
        history=None if history is None else epochs(history, CLASSIFIER_HISTORY),
        fnfp=_misclassified(split, chosen, probabilities.max(axis=1)),
    )


def _misclassified(split: pd.Series, chosen: NDArray[np.int64], proba: NDArray[np.float64]) -> Misclassified:
    y_true, names = split.to_numpy(), np.asarray(split.index, dtype=np.str_)
    wrong = np.flatnonzero(chosen != y_true)
    columns = zip(PROBA_COLUMNS, (y_true[wrong], chosen[wrong], proba[wrong]), strict=True)
    return Misclassified(
        conf_idx=wrong,
        conf_proba=proba[wrong],
        pred_proba=pd.DataFrame(dict(columns), index=split.index[wrong]),
        fn_idx={str(label): names[(y_true == label) & (chosen < label)] for label in range(N_BINS)},
        fp_idx={str(label): names[(y_true == label) & (chosen > label)] for label in range(N_BINS)},
    )
