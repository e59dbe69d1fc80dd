"""Charts of the memory and wallclock regressors on their test split."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.results.plots.charts import (
    BLUE,
    GREY,
    VERMILION,
    Axis,
    Boxes,
    Chart,
    Density,
    Line,
    Points,
    log_span,
    single,
)
from calmlflow.results.plots.common import (
    UNITS,
    Predict,
    counted,
    epoch_charts,
    importance_chart,
    instruments,
    joined_jobs,
    ladder_guides,
    n_jobs,
    quantiles,
    rounded,
)
from calmlflow.results.regression import SMALLEST_PREDICTION, RegressionResults

CELLS = 80
WORST = 50
DETECTORS = {("ACS", 0): "HRC, SBC", ("ACS", 1): "WFC", ("WFC3", 0): "IR", ("WFC3", 1): "UVIS"}


def regression_charts(
    results: RegressionResults, jobs: pd.DataFrame | None = None, predict: Predict | None = None
) -> dict[str, Chart]:
    """Describe every chart of a regressor that its results allow.

    Parameters
    ----------
    results : RegressionResults
    jobs : DataFrame, optional
        Job records with the features; needed to tell detectors apart, and for the importance of features.
    predict : callable, optional
        Raw features, shape (n, 9) -> values, shape (n,); needed for the importance of features.

    Returns
    -------
    dict of str to Chart
        loss_per_epoch, rmse_per_epoch, predicted_against_actual, residuals_by_detector, ratios_by_detector,
        feature_importance. A chart that would be empty (no history, no names of datasets) is left out.
    """
    target = "target" if results.test_idx is None else str(results.test_idx.name)
    unit = UNITS.get(target, "its unit")
    charts = epoch_charts(results.history, {"loss": f"{unit}²", "rmse": unit})
    predicted, actual = np.maximum(results.predictions, SMALLEST_PREDICTION).T
    names = None if results.test_idx is None else results.test_idx.index
    charts["predicted_against_actual"] = _predicted_against_actual(predicted, actual, target, unit, names)
    if names is None:
        return charts
    groups = _detectors(names, jobs)
    charts["residuals_by_detector"] = _by_detector(results.residuals, groups, target, unit)
    charts["ratios_by_detector"] = _ratios_by_detector(predicted / actual, groups, target)
    table = joined_jobs(jobs, results.test_idx)
    if predict and table is not None:
        charts["feature_importance"] = importance_chart(predict, table, target)
    return charts


def _predicted_against_actual(
    predicted: NDArray[np.float64], actual: NDArray[np.float64], target: str, unit: str, names: pd.Index | None
) -> Chart:
    span = log_span(predicted, actual)
    edges = np.geomspace(*span, CELLS + 1)
    counts = np.histogram2d(predicted, actual, [edges, edges])[0].astype(np.int64)
    residuals = np.abs(predicted - actual)
    worst = np.argsort(-residuals, kind="stable")[:WORST]
    named = np.full(len(actual), "") if names is None else names
    texts = [
        f"{named[index]} predicted {rounded(predicted[index])}, actual {rounded(actual[index])} {unit}"
        for index in worst
    ]
    within = float(np.median(residuals / actual))
    guides = (*ladder_guides(span, vertical=True), *ladder_guides(span)) if target == "memory" else ()
    return single(
        f"Predicted against actual {target}: half of {n_jobs(len(actual))} within {within:.1%}",
        "On the dashed line the prediction is right; below it the job took more than was predicted."
        " Circles are the largest errors; point at one to see its name.",
        Axis(f"actual {target}, {unit}", log=True, span=span),
        Axis(f"predicted {target}, {unit}", log=True, span=span),
        Density(edges, edges, counts),
        Line(span, span, color=GREY, dashed=True),
        *guides,
        Points(actual[worst], predicted[worst], f"the {len(worst)} largest errors", VERMILION, "ring", texts=texts),
    )


def _detectors(names: pd.Index, jobs: pd.DataFrame | None) -> NDArray[np.str_]:
    """Instrument and detector of each dataset; the instrument alone where the detector is not known."""
    instrument = instruments(names)
    if jobs is None:
        return instrument
    known = jobs.drop_duplicates("ipst").set_index("ipst")["detector"].reindex(names)
    pairs = zip(instrument, known.fillna(-1).astype(int), strict=True)
    return np.array([f"{which} {DETECTORS.get((which, detector), '')}".strip() for which, detector in pairs])


def _by_detector(residuals: NDArray[np.float64], groups: NDArray[np.str_], target: str, unit: str) -> Chart:
    table = quantiles(residuals, groups, [0.05, 0.25, 0.5, 0.75, 0.95])
    widest = (table[0.95] - table[0.05]).idxmax()
    return single(
        f"Residuals of {target} by instrument and detector" + (f": widest for {widest}" if len(table) > 1 else ""),
        "Boxes hold half of the jobs, whiskers 90%; a box off the zero line is a bias, below it jobs took more than"
        " predicted.",
        Axis("", labels=counted(table.index, groups), span=(-0.6, len(table) - 0.4)),
        Axis(f"predicted - actual {target}, {unit}"),
        Line([-0.6, len(table) - 0.4], [0, 0], color=GREY, dashed=True),
        Boxes(table.to_numpy(), BLUE),
    )


def _ratios_by_detector(ratios: NDArray[np.float64], groups: NDArray[np.str_], target: str) -> Chart:
    table = quantiles(ratios, groups, [0.05, 0.25, 0.5, 0.75, 0.95])
    share = float(np.mean((ratios >= 0.5) & (ratios <= 2)))
    return single(
        f"Predicted over actual {target}: {share:.1%} of the jobs within a factor of 2",
        "Boxes hold half of the jobs, whiskers 90%; unlike the residuals, short and long jobs can be compared here.",
        Axis("", labels=counted(table.index, groups), span=(-0.6, len(table) - 0.4)),
        Axis(f"predicted / actual {target}", log=True, span=log_span(table.to_numpy(), [1.0])),
        Line([-0.6, len(table) - 0.4], [1, 1], color=GREY, dashed=True),
        Boxes(table.to_numpy(), BLUE),
    )
