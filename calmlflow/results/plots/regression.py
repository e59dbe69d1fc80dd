"""Plots of the memory and wallclock regressors on their test split."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from calmlflow.results.plots import theme
from calmlflow.results.plots.common import (
    Predict,
    counted,
    epoch_plots,
    importance_plot,
    instruments,
    ladder_guides,
    n_jobs,
    quantiles,
    rounded,
)
from calmlflow.results.regression import SMALLEST_PREDICTION, RegressionResults
from calmlflow.results.scores import UNITS

CELLS = 80
WORST = 50
WHISKERS = [0.05, 0.25, 0.5, 0.75, 0.95]
DETECTORS = {("ACS", 0): "HRC, SBC", ("ACS", 1): "WFC", ("WFC3", 0): "IR", ("WFC3", 1): "UVIS"}


def regression_plots(
    results: RegressionResults, jobs: pd.DataFrame | None = None, predict: Predict | None = None
) -> dict[str, go.Figure]:
    """Draw every plot of a regressor that its results allow; one that would be empty is left out.

    ``jobs`` are needed to tell detectors apart, and with ``predict`` for the importance of features. ``predict`` takes
    raw features, shape (n, 9), and gives values, shape (n,).
    """
    target = "target" if results.test_idx is None else str(results.test_idx.name)
    unit = UNITS.get(target, "its unit")
    names = None if results.test_idx is None else results.test_idx.index
    predicted, actual = np.maximum(results.predictions, SMALLEST_PREDICTION).T
    plots = epoch_plots(results.history, {"loss": f"{unit}²", "rmse": unit})
    plots["predicted_against_actual"] = _predicted_against_actual(predicted, actual, target, unit, names)
    if names is not None:
        groups = _detectors(names, jobs)
        plots["residuals_by_detector"] = _residuals_by_detector(results.residuals, groups, target, unit)
        plots["ratios_by_detector"] = _ratios_by_detector(predicted / actual, groups, target)
    return plots | importance_plot(predict, jobs, results.test_idx)


def _predicted_against_actual(
    predicted: NDArray[np.float64], actual: NDArray[np.float64], target: str, unit: str, names: pd.Index | None
) -> go.Figure:
    span = theme.log_span(predicted, actual)
    residuals = np.abs(predicted - actual)
    worst = np.argsort(-residuals, kind="stable")[:WORST]
    named = np.full(len(actual), "") if names is None else names
    circles = theme.points(
        actual[worst], predicted[worst],
        (f"{named[at]} predicted {rounded(predicted[at])}, actual {rounded(actual[at])} {unit}" for at in worst),
        theme.VERMILION, f"the {len(worst)} largest errors", symbol="circle-open", size=7, line={"width": 1.5},
    )  # fmt: skip
    guides = [*ladder_guides(span, span, vertical=True), *ladder_guides(span, span)] if target == "memory" else []
    return theme.figure(
        f"Predicted against actual {target}: half of {n_jobs(len(actual))} within {np.median(residuals / actual):.1%}",
        "On the dashed line the prediction is right; below it the job took more than was predicted."
        " Circles are the largest errors; point at one to see its name.",
        [_density(actual, predicted, span), theme.line(span, span, theme.GREY, dashed=True), *guides, circles],
        xaxis=theme.log_axis(f"actual {target}, {unit}", span),
        yaxis=theme.log_axis(f"predicted {target}, {unit}", span),
    )


def _density(actual: NDArray[np.float64], predicted: NDArray[np.float64], span: tuple[float, float]) -> go.Heatmap:
    """How many jobs fall into each cell, coloured on a log scale; an empty cell is blank."""
    edges = np.geomspace(*span, CELLS + 1)
    counts = np.histogram2d(predicted, actual, [edges, edges])[0].astype(np.int32)
    most = int(counts.max())
    decades = [10**power for power in range(len(str(most)))]
    return go.Heatmap(
        x=theme.small(edges), y=theme.small(edges), customdata=counts,
        z=theme.small(np.log10(np.where(counts > 0, counts, np.nan))),
        zmin=0, zmax=max(np.log10(most), 1), colorscale="Viridis", hoverongaps=False,
        hovertemplate="%{customdata:,} jobs near actual %{x:.3~g}, predicted %{y:.3~g}<extra></extra>",
        colorbar={"title": {"text": "jobs per cell", "side": "right"}, "tickvals": np.log10(decades),
                  "ticktext": [f"{count:,}" for count in decades], "thickness": 14},
    )  # fmt: skip


def _detectors(names: pd.Index, jobs: pd.DataFrame | None) -> NDArray[np.str_]:
    """Instrument and detector of each dataset; the instrument alone where the detector is not known."""
    instrument = instruments(names)
    if jobs is None:
        return instrument
    known = jobs.drop_duplicates("ipst").set_index("ipst")["detector"].reindex(names)
    pairs = zip(instrument, known.fillna(-1).astype(int), strict=True)
    return np.array([f"{which} {DETECTORS.get((which, detector), '')}".strip() for which, detector in pairs])


def _residuals_by_detector(
    residuals: NDArray[np.float64], groups: NDArray[np.str_], target: str, unit: str
) -> go.Figure:
    table = quantiles(residuals, groups, WHISKERS)
    widest = f": widest for {(table[0.95] - table[0.05]).idxmax()}" if len(table) > 1 else ""
    return theme.figure(
        f"Residuals of {target} by instrument and detector{widest}",
        "Boxes hold half of the jobs, whiskers 90%; a box off the zero line is a bias, below it jobs took more than"
        " predicted.",
        [theme.line([-0.6, len(table) - 0.4], [0, 0], theme.GREY, dashed=True), theme.boxes(table.to_numpy())],
        xaxis=theme.category_axis(counted(table.index, groups)),
        yaxis={"title": {"text": f"predicted - actual {target}, {unit}"}},
    )


def _ratios_by_detector(ratios: NDArray[np.float64], groups: NDArray[np.str_], target: str) -> go.Figure:
    table = quantiles(ratios, groups, WHISKERS)
    share = np.mean((ratios >= 0.5) & (ratios <= 2))
    return theme.figure(
        f"Predicted over actual {target}: {share:.1%} of the jobs within a factor of 2",
        "Boxes hold half of the jobs, whiskers 90%; unlike the residuals, short and long jobs can be compared here.",
        [theme.line([-0.6, len(table) - 0.4], [1, 1], theme.GREY, dashed=True), theme.boxes(table.to_numpy())],
        xaxis=theme.category_axis(counted(table.index, groups)),
        yaxis=theme.log_axis(f"predicted / actual {target}", theme.log_span(table.to_numpy(), [1.0])),
    )
