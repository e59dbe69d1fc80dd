"""The plots of a training: interactive figures, and the same as PNG pictures."""

from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pandas as pd
from plotly.graph_objects import Figure

from calmlflow.errors import CalmlflowError
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.plots.charts import Chart
from calmlflow.results.plots.classification import classification_charts
from calmlflow.results.plots.data import data_charts
from calmlflow.results.plots.draw_plotly import figure
from calmlflow.results.plots.draw_png import png
from calmlflow.results.plots.regression import regression_charts
from calmlflow.results.regression import RegressionResults


def classification_plots(results: ClassificationResults, jobs: pd.DataFrame | None = None) -> dict[str, Figure]:
    """Figures of `classification_charts`, by their names."""
    return _figures(classification_charts(results, jobs))


def regression_plots(results: RegressionResults, jobs: pd.DataFrame | None = None) -> dict[str, Figure]:
    """Figures of `regression_charts`, by their names."""
    return _figures(regression_charts(results, jobs))


def data_plots(jobs: pd.DataFrame) -> dict[str, Figure]:
    """Figures of `data_charts`, by their names."""
    return _figures(data_charts(jobs))


def _figures(charts: Mapping[str, Chart]) -> dict[str, Figure]:
    return {name: figure(chart) for name, chart in charts.items()}


def write_pngs(charts: Mapping[str, Chart], folder: Path) -> None:
    """Write each chart as ``{folder}/{name}.png``; the folder is made if need be.

    Raises
    ------
    CalmlflowError
        A file cannot be written.
    """
    for name, chart in charts.items():
        write_aside(folder / f"{name}.png", png(chart))


def write_aside(path: Path, content: bytes) -> None:
    """Write a file aside, then rename it; a CalmlflowError names what cannot be written."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise CalmlflowError(f"{path} cannot be written: {error.strerror or error}") from None
