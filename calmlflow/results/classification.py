"""Results of the memory-bin classifier on its test split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.checks import CLASSIFIER_HISTORY, N_BINS, epochs, memory_bins, named_split, probability_rows

ONEHOT_COLUMNS = tuple(f"bin_{label}" for label in range(N_BINS))
PROBA_COLUMNS = ("y_true", "y_pred", "proba")
ACC_LOSS = ("train_acc", "train_loss", "test_acc", "test_loss")

# Keras clips here too, so that the test loss can be held against the training loss.
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True, eq=False)
class Misclassified:
    """Jobs of the test split whose bin was not predicted. k is their number.

    A field is None where it was read from a folder of the earlier library, which pickled it.

    Attributes
    ----------
    conf_idx : ndarray of int64, shape (k,)
        Their positions in the test split.
    conf_proba : ndarray of float64, shape (k,)
        Probability of the bin that was predicted.
    pred_proba : DataFrame of k rows
        Columns y_true, y_pred, proba; the index holds the dataset names.
    fn_idx, fp_idx : dict of str to ndarray of str
        True bin, ``"0"`` to ``"3"`` -> names of its datasets whose predicted bin is too low, too high. All four
        keys are there.
    """

    conf_idx: NDArray[np.int64] | None
    conf_proba: NDArray[np.float64] | None
    pred_proba: pd.DataFrame | None
    fn_idx: dict[str, NDArray[np.str_]] | None
    fp_idx: dict[str, NDArray[np.str_]] | None


@dataclass(frozen=True, eq=False)
class ClassificationResults:
    """What a training of the classifier leaves behind. n is the number of jobs in the test split.

    The fields from ``roc_auc`` on are None where an older folder lacks their file.

    Attributes
    ----------
    test_idx : Series of int64, length n
        Actual bins, named ``mem_bin``; the index, named ``ipst``, holds the dataset names.
    y_scores : ndarray of float64, shape (n, 4)
        Probabilities (softmax).
    y_pred : ndarray of int64, shape (n, 4)
        One-hot of the most probable bin (of the lowest one where several tie). That is ``y_scores`` rounded to 0 or 1
        wherever a probability exceeds one half; a row without such a probability, which rounding would leave all
        zero, keeps its most probable bin.
    y_onehot : DataFrame of int64, shape (n, 4)
        One-hot of the actual bin; columns bin_0 to bin_3.
    cmx : ndarray of int64, shape (4, 4)
        Confusion matrix; rows are true bins.
    cmx_norm : ndarray of float64, shape (4, 4)
        The same, as shares of each row; zeros for a bin absent from the split.
    roc_auc : ndarray of float64, shape (4,)
        Area under the ROC curve, one bin against the rest; NaN for a bin that no job of the split has, or all have.
    report : str
        scikit-learn's classification report, with the labels 2g, 8g, 16g, 64g.
    acc_loss : dict of str to float
        train_acc, train_loss, test_acc, test_loss: accuracy of the most probable bin, and cross-entropy in nats.
    history : dict of str to ndarray, one value per epoch
        loss, accuracy, val_loss, val_accuracy, in this order.
    fnfp : Misclassified
        The false negatives and false positives.
    """

    test_idx: pd.Series
    y_scores: NDArray[np.float64]
    y_pred: NDArray[np.int64]
    y_onehot: pd.DataFrame
    cmx: NDArray[np.int64]
    cmx_norm: NDArray[np.float64]
    roc_auc: NDArray[np.float64] | None
    report: str | None
    acc_loss: dict[str, float] | None
    history: dict[str, NDArray[np.float64]] | None
    fnfp: Misclassified | None


def classification_results(
    test_idx: pd.Series, y_scores: ArrayLike, history: Mapping[str, Any], train_scores: tuple[float, float]
) -> ClassificationResults:
    """Compute the results of the classifier from what it says about its test split.

    Parameters
    ----------
    test_idx : Series, length n
        Actual memory bins, 0..3; the index holds the dataset names.
    y_scores : array_like, shape (n, 4)
        Probabilities (softmax), rows in the order of ``test_idx``.
    history : mapping of str to array_like
        loss, accuracy, val_loss, val_accuracy; one value per epoch in each. Other keys are ignored.
    train_scores : tuple of 2 floats
        Accuracy and cross-entropy loss (nats) on the training split.

    Raises
    ------
    InputError
        An empty split, a bin that is none, rows that are no probabilities, or an incomplete history.
    """
    split = named_split(test_idx, "mem_bin")
    y_true = memory_bins(split, "test split of mem_bin")
    split = split.astype(np.int64)
    probabilities = probability_rows(y_scores, len(y_true))
    chosen = probabilities.argmax(axis=1)
    counts = confusion_matrix(y_true, chosen, labels=range(N_BINS))
    row_sums = counts.sum(axis=1, keepdims=True)
    test_scores = float(np.mean(chosen == y_true)), cross_entropy(y_true, probabilities)
    return ClassificationResults(
        test_idx=split,
        y_scores=probabilities,
        y_pred=_one_hot(chosen),
        y_onehot=pd.DataFrame(_one_hot(y_true), columns=list(ONEHOT_COLUMNS)),
        cmx=counts,
        cmx_norm=counts / np.maximum(row_sums, 1),
        roc_auc=roc_auc_by_bin(y_true, probabilities),
        report=classification_report(y_true, chosen, labels=range(N_BINS), target_names=BIN_NAMES, zero_division=0),
        acc_loss=dict(zip(ACC_LOSS, (*map(float, train_scores), *test_scores), strict=True)),
        history=epochs(history, CLASSIFIER_HISTORY),
        fnfp=_misclassified(split, chosen, probabilities.max(axis=1)),
    )


def roc_auc_by_bin(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each bin against the rest, shape (4,); NaN where no job or every job has the bin."""
    is_bin = y_true[:, None] == np.arange(N_BINS)
    defined = is_bin.any(axis=0) & ~is_bin.all(axis=0)
    areas = np.full(N_BINS, np.nan)
    for label in np.flatnonzero(defined):
        areas[label] = roc_auc_score(is_bin[:, label], probabilities[:, label])
    return areas


def cross_entropy(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Mean negative logarithm (nats) of the probability given to the true bin, with probabilities kept above 1e-7."""
    given = probabilities[np.arange(len(y_true)), y_true]
    return float(-np.log(np.clip(given, SMALLEST_PROBABILITY, 1)).mean())


def _one_hot(bins: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.eye(N_BINS, dtype=np.int64)[bins]


def _misclassified(split: pd.Series, chosen: NDArray[np.int64], proba: NDArray[np.float64]) -> Misclassified:
    y_true = split.to_numpy()
    conf_idx = np.flatnonzero(chosen != y_true)
    names = np.asarray(split.index, dtype=np.str_)
    return Misclassified(
        conf_idx=conf_idx,
        conf_proba=proba[conf_idx],
        pred_proba=pd.DataFrame(
            dict(zip(PROBA_COLUMNS, (y_true[conf_idx], chosen[conf_idx], proba[conf_idx]), strict=True)),
            index=split.index[conf_idx],
        ),
        fn_idx={str(label): names[(y_true == label) & (chosen < label)] for label in range(N_BINS)},
        fp_idx={str(label): names[(y_true == label) & (chosen > label)] for label in range(N_BINS)},
    )
