"""Charts of the memory-bin classifier on its test split."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.checks import N_BINS
from calmlflow.results.classification import CALIBRATION_BINS, ClassificationResults
from calmlflow.results.plots.charts import (
    BLUE,
    FOUR,
    GREY,
    ORANGE,
    VERMILION,
    Axis,
    Bars,
    Chart,
    Line,
    Matrix,
    Points,
    single,
)
from calmlflow.results.plots.common import (
    Predict,
    counted,
    epoch_charts,
    importance_chart,
    instruments,
    joined_jobs,
    n_jobs,
    thinned,
)


def classification_charts(
    results: ClassificationResults, jobs: pd.DataFrame | None = None, predict: Predict | None = None
) -> dict[str, Chart]:
    """Describe every chart of the classifier that its results allow.

    Parameters
    ----------
    results : ClassificationResults
    jobs : DataFrame, optional
        Job records with the features; needed for the importance of features.
    predict : callable, optional
        Raw features, shape (n, 9) -> probabilities, shape (n, 4); needed for the importance of features.

    Returns
    -------
    dict of str to Chart
        loss_per_epoch, accuracy_per_epoch, confusion_counts, confusion_shares, roc, precision_recall, calibration,
        errors_by_instrument, feature_importance. A chart that would be empty (no history; a split of one bin has no
        roc and no precision_recall) is left out.
    """
    y_true, chosen = results.test_idx.to_numpy(), results.y_pred.argmax(axis=1)
    charts = epoch_charts(results.history, {"loss": "nats", "accuracy": ""})
    charts |= _confusion(results.cmx)
    charts |= _curves(y_true, results.y_scores)
    charts["calibration"] = _calibration(y_true == results.y_scores.argmax(axis=1), results.y_scores.max(axis=1))
    charts["errors_by_instrument"] = _errors_by_instrument(instruments(results.test_idx.index), chosen - y_true)
    table = joined_jobs(jobs, results.test_idx)
    if predict and table is not None:
        charts["feature_importance"] = importance_chart(predict, table, "mem_bin")
    return charts


def _confusion(counts: NDArray[np.int64]) -> dict[str, Chart]:
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    needed = Axis("bin needed", labels=tuple(f"{b}\n{n_jobs(n)}" for b, n in zip(BIN_NAMES, totals, strict=True)))
    predicted = Axis("most probable bin", labels=BIN_NAMES)
    share_texts = [
        [f"{share:.1%}" if total else "no job" for share in row] for row, total in zip(shares, totals, strict=True)
    ]
    reading = (
        "Rows are the bins needed, columns the most probable ones; below the diagonal a job is killed and run again one"
        " bin up, above it memory is paid for and unused."
    )
    return {
        "confusion_counts": single(
            f"Confusion matrix: {counts.trace():,} of {n_jobs(counts.sum())} get the bin they need",
            reading,
            predicted,
            needed,
            Matrix(np.log1p(counts) / np.log1p(max(counts.max(), 1)), [[f"{n:,}" for n in row] for row in counts]),
        ),
        "confusion_shares": single(
            f"Confusion matrix, rows add up to 100%: recall {_recalls(shares, totals)}",
            f"{reading} The diagonal is the recall of each bin.",
            predicted,
            needed,
            Matrix(shares, share_texts),
        ),
    }


def _recalls(shares: NDArray[np.float64], totals: NDArray[np.int64]) -> str:
    return ", ".join(f"{BIN_NAMES[b]} {shares[b, b]:.0%}" for b in np.flatnonzero(totals))


def _curves(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, Chart]:
    """ROC and precision-recall of each bin that some jobs need and some do not; empty where there is no such bin."""
    roc, precision_recall, areas = [], [], {}
    for label in range(N_BINS):
        is_bin, score = y_true == label, probabilities[:, label]
        if not is_bin.any() or is_bin.all():
            continue
        name = f"{BIN_NAMES[label]} ({n_jobs(is_bin.sum())})"
        false, true, _ = roc_curve(is_bin, score)
        at = thinned(len(false))
        areas[BIN_NAMES[label]] = roc_auc_score(is_bin, score)
        roc.append(Line(false[at], true[at], f"{name}: area {areas[BIN_NAMES[label]]:.3f}", FOUR[label]))
        precision, recall, _ = precision_recall_curve(is_bin, score, drop_intermediate=True)
        at = thinned(len(recall))
        average = f"{name}: average precision {average_precision_score(is_bin, score):.3f}"
        precision_recall.append(Line(recall[at], precision[at], average, FOUR[label]))
    if not roc:
        return {}
    share = (-0.02, 1.03)
    lowest = min(areas, key=lambda name: areas[name])
    return {
        "roc": single(
            f"ROC of each bin against the rest: area at least {areas[lowest]:.3f} ({lowest})",
            "The closer to the upper left corner the better; on the dashed diagonal the probability says nothing.",
            Axis("false positive rate", percent=True, span=share),
            Axis("true positive rate", percent=True, span=share),
            Line([0, 1], [0, 1], color=GREY, dashed=True),
            *roc,
        ),
        "precision_recall": single(
            "Precision and recall of each bin, over all thresholds of its probability",
            "The closer to the upper right corner the better; for a rare bin this tells more than the ROC curve.",
            Axis("recall: share of the jobs that need the bin", percent=True, span=share),
            Axis("precision: share of the jobs put there", percent=True, span=share),
            *precision_recall,
        ),
    }


def _calibration(hit: NDArray[np.bool_], confidence: NDArray[np.float64]) -> Chart:
    """Share of hits over the greatest probability, in the same bins as the expected calibration error."""
    cell = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    n = np.bincount(cell, minlength=CALIBRATION_BINS)
    used = n > 0
    stated = np.bincount(cell, confidence, CALIBRATION_BINS)[used] / n[used]
    true = np.bincount(cell, hit, CALIBRATION_BINS)[used] / n[used]
    n = n[used]
    gap = np.sum(n * np.abs(true - stated)) / n.sum()
    # Wilson's interval holds for few jobs, and for shares near 0 and 1.
    z = 1.96
    middle = (true + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(true * (1 - true) / n + z**2 / (4 * n**2))
    texts = [f"probability {s:.1%}, right {t:.1%} of {n_jobs(k)}" for s, t, k in zip(stated, true, n, strict=True)]
    return single(
        f"Calibration: stated probability and true share differ by {gap:.1%} on average",
        "On the dashed line a probability can be taken at its word; below it the network is too sure of itself."
        " Bars are 95% intervals, larger circles hold more jobs.",
        Axis("probability of the predicted bin", percent=True, span=(0.22, 1.03)),
        Axis("share of jobs that needed it", percent=True, span=(-0.02, 1.03)),
        Line([0, 1], [0, 1], color=GREY, dashed=True),
        Points(
            stated, true, color=BLUE, size=7 + 3 * np.log10(n), texts=texts,
            error=np.maximum([true - (middle - half), middle + half - true], 0),
        ),
    )  # fmt: skip


def _errors_by_instrument(instrument: NDArray[np.str_], off: NDArray[np.int64]) -> Chart:
    errors = pd.DataFrame({"low": off < 0, "high": off > 0}).groupby(instrument)
    shares, counts = errors.mean(), errors.sum()
    at = np.arange(len(shares), dtype=np.float64)
    highest = max(float(shares.to_numpy().max()) * 1.15, 0.01)
    low, high = (int(counts[side].sum()) for side in ("low", "high"))

    def bars(side: str, name: str, color: str, shift: float) -> Bars:
        texts = [f"{share:.1%} ({count:,})" for share, count in zip(shares[side], counts[side], strict=True)]
        return Bars(at + shift, shares[side].to_numpy(), texts, name, color, width=0.38)

    return single(
        f"Wrong bins by instrument: {low:,} too low, {high:,} too high, of {n_jobs(len(off))}",
        "Of the most probable bins: a job put too low is killed and run again one bin up, one put too high pays for"
        " memory it leaves unused.",
        Axis("", labels=counted(shares.index, instrument), span=(-0.6, len(at) - 0.4)),
        Axis("share of the instrument's jobs", percent=True, span=(0, highest)),
        bars("low", "false negatives: predicted too low", VERMILION, -0.2),
        bars("high", "false positives: predicted too high", ORANGE, 0.2),
    )
