"""Plots of the memory-bin classifier on its test split."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_curve

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.classification import ClassificationResults, calibration_cells, roc_auc_by_bin
from calmlflow.results.plots import theme
from calmlflow.results.plots.common import Predict, counted, epoch_plots, importance_plot, instruments, n_jobs, thinned


def classification_plots(
    results: ClassificationResults,
    jobs: pd.DataFrame | None = None,
    predict: Predict | None = None,
    decided: NDArray[np.int64] | None = None,
) -> dict[str, go.Figure]:
    """Draw every plot of memory bins that their results allow; one that would be empty is left out.

    ``jobs`` are needed with ``predict`` for the importance of features. ``predict`` takes raw features, shape (n, 9),
    and gives probabilities, shape (n, 4). ``decided``, shape (k,), are the bins decided on for the k test jobs.
    """
    y_true, chosen = results.test_idx.to_numpy(), results.y_pred.argmax(axis=1)
    of_decision = {}
    if decided is not None:
        counts = confusion_matrix(y_true, decided, labels=range(len(BIN_NAMES)))
        of_decision = {"confusion_decided": _confusion(counts, "bin decided on")["confusion_counts"]}
    return {
        **epoch_plots(results.history, {"loss": "nats", "accuracy": ""}),
        **of_decision,
        **_confusion(results.cmx, "most probable bin"),
        **_curves(y_true, results.y_scores),
        "calibration": _calibration(y_true, results.y_scores),
        "errors_by_instrument": _errors_by_instrument(instruments(results.test_idx.index), chosen - y_true),
        **importance_plot(predict, jobs, results.test_idx),
    }


def _confusion(counts: NDArray[np.int64], given: str) -> dict[str, go.Figure]:
    """Confusion matrix in counts and in shares; ``given`` names its columns."""
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    share_texts = [[f"{share:.1%}" if n else "no job" for share in row] for row, n in zip(shares, totals, strict=True)]
    recalls = ", ".join(f"{BIN_NAMES[label]} {shares[label, label]:.0%}" for label in np.flatnonzero(totals))
    reading = (
        f"Rows: bin needed, columns: {given}. Below the diagonal a job is killed and run again one bin up, above it"
        " memory is paid for and unused."
    )
    needed = theme.category_axis(
        [f"{name}\n{n_jobs(n)}" for name, n in zip(BIN_NAMES, totals, strict=True)], "bin needed"
    ) | {"range": None, "autorange": "reversed"}  # fmt: skip

    def matrix(title: str, reading: str, shades: NDArray[np.float64], texts: list[list[str]]) -> go.Figure:
        cells = go.Heatmap(
            z=shades, zmin=0, zmax=1, colorscale=list(theme.SHADES), showscale=False, xgap=2, ygap=2, text=texts,
            texttemplate="%{text}", textfont={"size": 16}, hoverinfo="skip",
        )  # fmt: skip
        predicted = theme.category_axis(BIN_NAMES, given) | {"range": (-0.5, len(BIN_NAMES) - 0.5)}
        return theme.figure(title, reading, [cells], xaxis=predicted, yaxis=needed)

    return {
        "confusion_counts": matrix(
            f"Confusion matrix: {given} is right for {counts.trace():,} of {n_jobs(counts.sum())}",
            reading,
            np.log1p(counts) / np.log1p(max(counts.max(), 1)),
            [[f"{n:,}" for n in row] for row in counts],
        ),
        "confusion_shares": matrix(
            f"Confusion matrix, rows add up to 100%: recall {recalls}",
            f"{reading} The diagonal is the recall of each bin.",
            shares,
            share_texts,
        ),
    }


def _curves(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, go.Figure]:
    """ROC and precision-recall of each bin that some jobs need and some do not; empty where there is no such bin."""
    areas = roc_auc_by_bin(y_true, probabilities)
    bins = np.flatnonzero(np.isfinite(areas))
    if not len(bins):
        return {}
    roc, precision_recall = [theme.line([0, 1], [0, 1], theme.GREY, dashed=True)], []
    for label in bins:
        is_bin, score = y_true == label, probabilities[:, label]
        name = f"{BIN_NAMES[label]} ({n_jobs(is_bin.sum())})"
        false, true, _ = roc_curve(is_bin, score)
        at = thinned(len(false))
        roc.append(theme.line(false[at], true[at], theme.FOUR[label], f"{name}: area {areas[label]:.3f}"))
        precision, recall, _ = precision_recall_curve(is_bin, score, drop_intermediate=True)
        at = thinned(len(recall))
        average = f"{name}: average precision {average_precision_score(is_bin, score):.3f}"
        precision_recall.append(theme.line(recall[at], precision[at], theme.FOUR[label], average))
    span = (-0.02, 1.03)
    lowest = int(np.nanargmin(areas))
    return {
        "roc": theme.figure(
            f"ROC of each bin against the rest: area at least {areas[lowest]:.3f} ({BIN_NAMES[lowest]})",
            "The closer to the upper left corner the better; on the dashed diagonal the probability says nothing.",
            roc,
            xaxis=theme.share_axis("false positive rate", span),
            yaxis=theme.share_axis("true positive rate", span),
        ),
        "precision_recall": theme.figure(
            "Precision and recall of each bin, over all thresholds of its probability",
            "The closer to the upper right corner the better; for a rare bin this tells more than the ROC curve.",
            precision_recall,
            xaxis=theme.share_axis("recall: share of the jobs that need the bin", span),
            yaxis=theme.share_axis("precision: share of the jobs put there", span),
        ),
    }


def _calibration(y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> go.Figure:
    """Share of hits over the greatest probability, in the same cells as the expected calibration error."""
    n, stated, true = calibration_cells(y_true, probabilities)
    gap = np.sum(n * np.abs(true - stated)) / n.sum()
    counts = zip(np.rint(true * n).astype(int), n, strict=True)
    low, high = np.transpose([binomtest(k, m).proportion_ci(method="wilson") for k, m in counts])
    points = theme.points(
        stated, true,
        [f"probability {s:.1%}, right {t:.1%} of {n_jobs(k)}" for s, t, k in zip(stated, true, n, strict=True)],
        theme.BLUE, size=7 + 3 * np.log10(n), line={"width": 0},
    )  # fmt: skip
    bars = {"array": np.maximum(high - true, 0), "arrayminus": np.maximum(true - low, 0)}
    points.error_y = {**bars, "color": theme.BLUE, "width": 3}
    return theme.figure(
        f"Calibration: stated probability and true share differ by {gap:.1%} on average",
        "On the dashed line a probability can be taken at its word; below the line it is stated too high."
        " Bars are 95% intervals, larger circles hold more jobs.",
        [theme.line([0, 1], [0, 1], theme.GREY, dashed=True), points],
        xaxis=theme.share_axis("probability of the predicted bin", (0.22, 1.03)),
        yaxis=theme.share_axis("share of jobs that needed it", (-0.02, 1.03)),
    )


def _errors_by_instrument(instrument: NDArray[np.str_], off: NDArray[np.int64]) -> go.Figure:
    errors = pd.DataFrame({"low": off < 0, "high": off > 0}).groupby(instrument)
    shares, counts = errors.mean(), errors.sum()

    def bars(side: str, name: str, color: str, shift: float) -> go.Bar:
        texts = [f"{share:.1%} ({count:,})" for share, count in zip(shares[side], counts[side], strict=True)]
        return go.Bar(
            x=np.arange(len(shares)) + shift, y=shares[side], width=0.38, name=theme.plain(name), marker_color=color,
            text=texts, textposition="outside", hoverinfo="text", cliponaxis=False,
        )  # fmt: skip

    low, high = (int(counts[side].sum()) for side in ("low", "high"))
    return theme.figure(
        f"Wrong bins by instrument: {low:,} too low, {high:,} too high, of {n_jobs(len(off))}",
        "Of the most probable bins: a job put too low is killed and run again one bin up, one put too high pays for"
        " memory it leaves unused.",
        [
            bars("low", "false negatives: predicted too low", theme.VERMILION, -0.2),
            bars("high", "false positives: predicted too high", theme.ORANGE, 0.2),
        ],
        xaxis=theme.category_axis(counted(shares.index, instrument)),
        yaxis=theme.share_axis("share of the instrument's jobs", (0, max(float(shares.to_numpy().max()) * 1.15, 0.01))),
    )
