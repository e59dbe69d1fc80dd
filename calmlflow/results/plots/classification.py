"""Plots of the memory-bin classifier on its test split."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_curve

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.classification import ClassificationResults, calibration_cells, roc_auc_by_bin
from calmlflow.results.comparison import INTERVAL_PERCENT, programme_sums, share_interval
from calmlflow.results.plots import theme
from calmlflow.results.plots.common import Predict, counted, epoch_plots, importance_plot, instruments, n_jobs, thinned

_BARS = (
    f"Bars are {INTERVAL_PERCENT}% intervals over programmes, for jobs of one programme are alike; larger circles hold"
    " more jobs."
)


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
    names, y_true = results.test_idx.index, results.test_idx.to_numpy()
    choices = {"": ("most probable bin", results.y_pred.argmax(axis=1))}
    if decided is not None:
        choices["_decided"] = ("bin decided on", decided)
    return {
        **epoch_plots(results.history, {"loss": "nats", "accuracy": ""}),
        **{
            f"confusion{suffix}_{shown}": figure
            for suffix, (given, bins) in choices.items()
            for shown, figure in _confusion(y_true, bins, given).items()
        },
        **_curves(y_true, results.y_scores),
        "calibration": _calibration(names, y_true, results.y_scores),
        "calibration_by_bin": _calibration_by_bin(names, y_true, results.y_scores),
        **{
            f"errors{suffix}_by_instrument": _errors_by_instrument(instruments(names), bins - y_true, given)
            for suffix, (given, bins) in choices.items()
        },
        **importance_plot(predict, jobs, results.test_idx),
    }


def _confusion(y_true: NDArray[np.int64], bins: NDArray[np.int64], given: str) -> dict[str, go.Figure]:
    """Confusion matrix in counts and in shares; ``given`` names its columns."""
    counts = confusion_matrix(y_true, bins, labels=range(len(BIN_NAMES)))
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
        "counts": matrix(
            f"Confusion matrix: {given} is right for {counts.trace():,} of {n_jobs(counts.sum())}",
            reading,
            np.log1p(counts) / np.log1p(max(counts.max(), 1)),
            [[f"{n:,}" for n in row] for row in counts],
        ),
        "shares": matrix(
            f"Confusion matrix of the {given}, rows add up to 100%: recall {recalls}",
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
    colors = theme.SERIES * (len(BIN_NAMES) // len(theme.SERIES) + 1)
    roc, precision_recall = [theme.line([0, 1], [0, 1], theme.GREY, dashed=True)], []
    for label in bins:
        is_bin, score = y_true == label, probabilities[:, label]
        name = f"{BIN_NAMES[label]} ({n_jobs(is_bin.sum())})"
        false, true, _ = roc_curve(is_bin, score)
        at = thinned(len(false))
        roc.append(theme.line(false[at], true[at], colors[label], f"{name}: area {areas[label]:.3f}"))
        precision, recall, _ = precision_recall_curve(is_bin, score, drop_intermediate=True)
        at = thinned(len(recall))
        average = f"{name}: average precision {average_precision_score(is_bin, score):.3f}"
        precision_recall.append(theme.line(recall[at], precision[at], colors[label], average))
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


def _calibration(names: pd.Index, y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> go.Figure:
    """Share of hits over the greatest probability, in the same cells as the expected calibration error."""
    shown, gap = _calibration_points(names, probabilities.max(axis=1), probabilities.argmax(axis=1) == y_true)
    return theme.figure(
        f"Calibration: stated probability and true share differ by {gap:.1%} on average",
        f"On the dashed line a probability can be taken at its word; below the line it is stated too high. {_BARS}",
        [theme.line([0, 1], [0, 1], theme.GREY, dashed=True), shown],
        xaxis=theme.share_axis("probability of the predicted bin", (0.22, 1.03)),
        yaxis=theme.share_axis("share of jobs that needed it", (-0.02, 1.03)),
    )


def _calibration_by_bin(names: pd.Index, y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> go.Figure:
    """A panel for each bin: share of the jobs that needed a bin over the probability that it was given."""
    rows = -(-len(BIN_NAMES) // 2)
    grid = make_subplots(rows=rows, cols=2, shared_yaxes="all", horizontal_spacing=0.14, vertical_spacing=0.32 / rows)
    axes = grid.layout.to_plotly_json()
    del axes["template"]
    traces, gaps = [], []
    for label, name in enumerate(BIN_NAMES):
        suffix = str(label + 1) if label else ""
        axes[f"xaxis{suffix}"] |= theme.share_axis(f"given to {name}", (-0.03, 1.03)) | {"tickvals": [0, 0.5, 1]}
        title = "share that needed it" if label % 2 == 0 else ""
        axes[f"yaxis{suffix}"] |= theme.share_axis(title, (-0.03, 1.03))
        shown, gap = _calibration_points(names, probabilities[:, label], y_true == label)
        gaps.append(f"{name} {gap:.1%}")
        for trace in (theme.line([0, 1], [0, 1], theme.GREY, dashed=True), shown):
            traces.append(trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}"))
    return theme.figure(
        f"Calibration of each bin: stated and true differ on average by {', '.join(gaps)}",
        "Every job stands in every panel, at the probability that the bin was given. On the dashed line that can be"
        " taken at its word; below the line the bin is thought likelier than it is, above it jobs are killed that"
        f" looked safe. {_BARS}",
        traces,
        height=rows * 320,
        **axes,
    )


def _calibration_points(
    names: pd.Index, probability: NDArray[np.float64], hit: NDArray[np.bool_]
) -> tuple[go.Scatter, float]:
    """Points with the intervals of their shares, and the mean difference of probability and share over the jobs."""
    cell, n, stated, true = calibration_cells(probability, hit)
    sums = [
        programme_sums(np.column_stack([hit, np.ones(len(hit))])[cell == k], names[cell == k]) for k in range(len(n))
    ]
    low, high = np.transpose([share_interval(*found.T) for found in sums])
    shown = theme.points(
        stated, true,
        [
            f"probability {s:.1%}, true for {t:.1%} ({lo:.1%} to {hi:.1%}) of {n_jobs(k)} of {len(found):,} programmes"
            for s, t, lo, hi, k, found in zip(stated, true, low, high, n, sums, strict=True)
        ],
        theme.BLUE, size=7 + 3 * np.log10(n), line={"width": 0},
    )  # fmt: skip
    bars = {"array": np.maximum(high - true, 0), "arrayminus": np.maximum(true - low, 0)}
    shown.error_y = {**bars, "color": theme.BLUE, "width": 3}
    return shown, float(np.sum(n * np.abs(true - stated)) / n.sum())


def _errors_by_instrument(instrument: NDArray[np.str_], off: NDArray[np.int64], given: str) -> go.Figure:
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
        f"Wrong bins by instrument, {given}: {low:,} too low, {high:,} too high, of {n_jobs(len(off))}",
        "A job put too low is killed and run again one bin up, one put too high pays for memory it leaves unused.",
        [
            bars("low", "false negatives: predicted too low", theme.VERMILION, -0.2),
            bars("high", "false positives: predicted too high", theme.ORANGE, 0.2),
        ],
        xaxis=theme.category_axis(counted(shares.index, instrument)),
        yaxis=theme.share_axis("share of the instrument's jobs", (0, max(float(shares.to_numpy().max()) * 1.15, 0.01))),
    )
