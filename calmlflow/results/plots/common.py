"""Parts that several plots share: instruments, epochs, importance of features, and the headline pictures."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import BIN_NAMES, LADDER
from calmlflow.results.classification import CALIBRATION_BINS, ClassificationResults
from calmlflow.results.importance import permutation_importance
from calmlflow.results.plots import theme
from calmlflow.results.regression import SMALLEST_PREDICTION, RegressionResults
from calmlflow.results.scores import UNITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Raw features, shape (n, 9) -> answers of a network: probabilities (n, 4), GB (n,) or seconds (n,)."""

MAX_POINTS = 500
"""Points of a curve: more would cost space in the report and show nothing more."""


def instruments(names: pd.Index) -> NDArray[np.str_]:
    """Instrument of each dataset by its first letter; ``other`` for a letter the networks do not know."""
    return names.str[:1].str.lower().map(INSTRUMENTS).fillna("other").to_numpy(dtype=str)


def n_jobs(count: int) -> str:
    """``1 job``, ``1,234 jobs``."""
    return f"{count:,} job" if count == 1 else f"{count:,} jobs"


def counted(labels: pd.Index, groups: NDArray[np.str_]) -> list[str]:
    """Labels of groups with the number of their jobs on a second line."""
    counts = pd.Series(groups).value_counts()
    return [f"{label}\n{n_jobs(counts[label])}" for label in labels]


def rounded(value: float, sign: str = "") -> str:
    """A number for people: four digits, or all those before the point."""
    return f"{value:{sign},.4g}" if abs(value) < 1000 else f"{value:{sign},.0f}"


def quantiles(values: NDArray[np.float64], groups: NDArray[np.str_], shares: list[float]) -> pd.DataFrame:
    """Quantiles of each group, one row per group in alphabetical order."""
    return pd.Series(values).groupby(groups, sort=True).quantile(np.array(shares)).unstack()


def thinned(n: int) -> NDArray[np.int64]:
    """At most `MAX_POINTS` of n positions, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_POINTS)).round().astype(np.int64))


def ladder_guides(span: tuple[float, float], across: tuple[float, float], vertical: bool = False) -> list[go.Scatter]:
    """Dotted lines at the limits of the memory bins within the span of one axis, as long as that of the other."""
    guides = []
    for rung in LADDER.rungs:
        if span[0] < rung.limit_gb < span[1]:
            limit = [rung.limit_gb, rung.limit_gb]
            x, y = (limit, across[::-1]) if vertical else (across, limit)
            guides.append(
                go.Scatter(
                    x=x, y=y, mode="lines+text", line={"color": theme.GREY, "width": 1, "dash": "dot"},
                    text=["", f"{theme.plain(rung.name)} limit"], textposition="top left", hoverinfo="skip",
                    textfont={"color": theme.GREY, "size": 12}, cliponaxis=False,
                )
            )  # fmt: skip
    return guides


def epoch_plots(history: Mapping[str, NDArray[np.float64]] | None, units: Mapping[str, str]) -> dict[str, go.Figure]:
    """``{key}_per_epoch`` for each key of ``units``, with the validation values beside; empty without a history."""
    plots: dict[str, go.Figure] = {}
    if history is None:
        return plots
    for key, unit in units.items():
        train, validation = history[key], history[f"val_{key}"]
        finite, best = (values[np.isfinite(values)] for values in (np.concatenate([train, validation]), validation))
        if not len(finite):
            continue
        title = "RMSE" if key == "rmse" else key.capitalize()
        found = ""
        if len(best):
            value = f"{best.max():.1%}" if key == "accuracy" else f"{rounded(best.min())} {unit}"
            found = f": {value} on the validation jobs at best"
        # Errors fall over decades; a share, or an error that reaches 0, stands on a linear axis.
        y: dict[str, Any] = {"title": {"text": f"{title}, {unit}"}}
        if key == "accuracy":
            y = theme.share_axis(title)
        elif finite.min() > 0:
            y = theme.log_axis(f"{title}, {unit}", theme.log_span(finite))
        at = thinned(len(train))
        curves = [
            theme.line(at, train[at], theme.BLUE, "training jobs"),
            theme.line(at, validation[at], theme.ORANGE, "validation jobs"),
        ]
        if len(at) == 1:
            for curve in curves:
                curve.mode = "lines+markers"
        plots[f"{key}_per_epoch"] = theme.figure(
            f"{title} over {len(train):,} epoch{'' if len(train) == 1 else 's'}{found}",
            "Both curves should level out; a validation curve that turns back while training goes on is overfitting.",
            curves,
            xaxis={"title": {"text": "epoch"}},
            yaxis=y,
        )
    return plots


def importance_plot(
    predict: Predict | None, jobs: pd.DataFrame | None, test_idx: pd.Series | None
) -> dict[str, go.Figure]:
    """``feature_importance``; empty without ``predict``, or where the table holds none of the test jobs."""
    if predict is None or jobs is None or test_idx is None:
        return {}
    target = str(test_idx.name)
    table = jobs[jobs["ipst"].isin(test_idx.index)].drop_duplicates("ipst")
    if table.empty:
        return {}
    rises = permutation_importance(predict, table[list(FEATURES)].to_numpy(dtype=float), table[target].to_numpy())
    order = np.argsort(rises.mean(axis=1), kind="stable")
    means, names = rises.mean(axis=1)[order], [FEATURES[index] for index in order]
    title = f"What the predictions of {target} rest on: {names[-1]} first, then {names[-2]}"
    bars = go.Bar(
        x=means, y=np.arange(len(names)), orientation="h", width=0.8, marker_color=theme.BLUE, hoverinfo="text",
        text=[f"{name}: {mean:.4g}" for name, mean in zip(names, means, strict=True)], textposition="none",
        error_x={"array": rises.std(axis=1)[order], "color": theme.INK, "width": 3},
    )  # fmt: skip
    plot = theme.figure(
        title if means[-1] > 0 else f"No single feature matters to the predictions of {target}",
        "Each bar is the rise of the error when this feature alone is shuffled among the test jobs, with the spread"
        " over repeats; near zero a feature is unused, or told by another.",
        [bars],
        xaxis={"title": {"text": f"rise of the {f'RMSE, {UNITS[target]}' if target in UNITS else 'log loss, nats'}"}},
        yaxis=theme.category_axis(names),
    )
    return {"feature_importance": plot}


def headline_figures(
    results: ClassificationResults | RegressionResults, decided: NDArray[np.int64] | None = None
) -> dict[str, "Picture"]:
    """The plots that a run shows as pictures, by name, drawn by scikit-learn without a browser or a display.

    ``decided`` are the bins decided on for the test jobs of a classifier.
    """
    from matplotlib.figure import Figure
    from sklearn import metrics
    from sklearn.calibration import CalibrationDisplay

    pictures: dict[str, Figure] = {}

    def axes(name: str, title: str) -> Any:
        pictures[name] = Figure(figsize=(8, 6), dpi=120, layout="constrained")
        drawn = pictures[name].subplots()
        drawn.set_title(title)
        return drawn

    if isinstance(results, RegressionResults):
        predicted, actual = np.maximum(results.predictions, SMALLEST_PREDICTION).T
        target = "target" if results.test_idx is None else str(results.test_idx.name)
        drawn = axes("predicted_against_actual", f"Predicted against actual {target} of {n_jobs(len(actual))}")
        metrics.PredictionErrorDisplay.from_predictions(
            actual, predicted, kind="actual_vs_predicted", subsample=None, ax=drawn,
            scatter_kwargs={"s": 6, "alpha": 0.3, "color": theme.BLUE},
        )  # fmt: skip
        labels = {axis: f"{axis} {target}, {UNITS.get(target, 'its unit')}" for axis in ("predicted", "actual")}
        drawn.set(xscale="log", yscale="log", xlabel=labels["predicted"], ylabel=labels["actual"])
        return pictures
    y_true, scores = results.test_idx.to_numpy(), results.y_scores
    metrics.ConfusionMatrixDisplay(results.cmx, display_labels=BIN_NAMES).plot(
        cmap="Blues", values_format=",d", ax=axes("confusion", "Memory bins: needed and most probable")
    )
    if decided is not None:
        metrics.ConfusionMatrixDisplay.from_predictions(
            y_true, decided, labels=range(len(BIN_NAMES)), display_labels=BIN_NAMES, cmap="Blues", values_format=",d",
            ax=axes("confusion_decided", "Memory bins: needed and decided on"),
        )  # fmt: skip
    hit, confidence = y_true == scores.argmax(axis=1), scores.max(axis=1)
    CalibrationDisplay.from_predictions(
        hit, confidence, pos_label=True, n_bins=CALIBRATION_BINS, name="most probable bin",
        ax=axes("calibration", "Calibration: stated probability and share of jobs that needed the bin"),
    )  # fmt: skip
    curves = {
        "roc": (metrics.RocCurveDisplay, "ROC of each memory bin against the rest"),
        "precision_recall": (metrics.PrecisionRecallDisplay, "Precision and recall of each memory bin"),
    }
    bins = [label for label in range(len(BIN_NAMES)) if 0 < np.count_nonzero(y_true == label) < len(y_true)]
    for name, (display, title) in curves.items():
        drawn = axes(name, title) if bins else None
        for label in bins:
            display.from_predictions(y_true == label, scores[:, label], name=BIN_NAMES[label], ax=drawn)
    return pictures
