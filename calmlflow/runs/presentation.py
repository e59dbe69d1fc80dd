"""The charts of a training, from what the run knows."""

from collections.abc import Callable

from numpy.typing import NDArray

from calmlflow.networks.distinct import distinct_rows
from calmlflow.predictor.bundle import Bundle
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.plots.charts import Chart
from calmlflow.results.plots.classification import classification_charts
from calmlflow.results.plots.regression import regression_charts
from calmlflow.results.scores import PREDICTED
from calmlflow.runs.data import TrainingData
from calmlflow.runs.fit import FittedNetwork
from calmlflow.settings import TARGETS


def network_charts(network: str, fitted: FittedNetwork, data: TrainingData) -> dict[str, Chart]:
    """Charts of one network's test split, with the importance of its features, by their names."""
    jobs = data.jobs.iloc[data.test]
    predict = _predictor(fitted.bundle, "probabilities" if network == "mem_clf" else PREDICTED[TARGETS[network]])
    if isinstance(fitted.results, ClassificationResults):
        return classification_charts(fitted.results, jobs, predict)
    return regression_charts(fitted.results, jobs, predict)


def _predictor(bundle: Bundle, name: str) -> Callable[[NDArray], NDArray]:
    def predict(features: NDArray) -> NDArray:
        rows = distinct_rows(features)
        return bundle.predict(rows.features)[name][rows.row_of_job]

    return predict
