"""Draw the plots of a training."""

from collections.abc import Callable

import plotly.graph_objects as go
from numpy.typing import NDArray

from calmlflow.networks.distinct import distinct_rows
from calmlflow.predictor.bundle import Bundle
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.plots.classification import classification_plots
from calmlflow.results.plots.regression import regression_plots
from calmlflow.results.scores import PREDICTED
from calmlflow.runs.data import TrainingData
from calmlflow.runs.fit import FittedNetwork
from calmlflow.settings import TARGETS


def network_plots(network: str, fitted: FittedNetwork, data: TrainingData) -> dict[str, go.Figure]:
    """Plots of one network's test split, with the importance of its features, by their names."""
    jobs = data.jobs.iloc[data.test]
    predict = _predictor(fitted.bundle, "probabilities" if network == "mem_clf" else PREDICTED[TARGETS[network]])
    if isinstance(fitted.results, ClassificationResults):
        return classification_plots(fitted.results, jobs, predict)
    return regression_plots(fitted.results, jobs, predict)


def _predictor(bundle: Bundle, name: str) -> Callable[[NDArray], NDArray]:
    def predict(features: NDArray) -> NDArray:
        rows = distinct_rows(features)
        return bundle.predict(rows.features)[name][rows.row_of_job]

    return predict
