"""Serve a network or a bundle as MLflow's pyfunc model, from code: MLflow runs this file when it loads one."""

# Needs numpy, pandas and onnxruntime, and of the project what `calmlflow.predictor.answers` loads. The keys of the
# answer follow from the networks among the artifacts.

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import Features, job_features
from calmlflow.predictor.answers import KnownAnswers, as_answers, mosaic_policy
from calmlflow.predictor.bundle import Bundle

MAX_TABLES = 4096
"""Answers that are kept as tables, 4 kB each."""


class ServedBundle(PythonModel):
    """Takes raw job metadata (``ipppssoot`` and the control file's keys), and gives one answer per row."""

    def load_context(self, context: Any) -> None:
        """Load the networks that were logged with the model."""
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))
        self.mosaic = pd.DataFrame([mosaic_policy()], columns=list(self.bundle.answer_keys))
        self.known = KnownAnswers(lambda rows: as_answers(self.bundle.predict(rows)))
        # Of single jobs, for which somebody waits: to make a table takes ten times as long as to copy it.
        self.tables = KnownAnswers(lambda rows: [pd.DataFrame([answer]) for answer in self.known(rows)], MAX_TABLES)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer n jobs, in order; a row that breaks a rule fails the request with the reason."""
        del context, params
        try:
            features = [_features(row) for row in _rows(model_input)]
        except InputError as error:
            # MLflow's server answers status 400 with the reason; to other exceptions it adds the stack trace.
            raise MlflowException.invalid_parameter_value(str(error)) from error
        if len(features) < 2:
            table = self.tables.one(features[0]) if features and features[0] else self.mosaic[: len(features)]
            return table.reset_index(drop=True)
        places = {row: place for place, row in enumerate(dict.fromkeys(features))}
        answers = iter(self.known([row for row in places if row is not None]))
        rows = [mosaic_policy() if row is None else next(answers) for row in places]
        table = pd.DataFrame(rows, columns=list(self.bundle.answer_keys))
        return table.take([places[row] for row in features]).reset_index(drop=True)


def _rows(jobs: pd.DataFrame) -> list[dict[Any, Any]]:
    # For a single job, pandas takes three times as long the general way.
    return [jobs.iloc[0].to_dict()] if len(jobs) == 1 else jobs.to_dict("records")


def _features(row: dict[Any, Any]) -> Features | None:
    """Features of a row; None for a mosaic, which no network covers."""
    dataset = parse_dataset(row["ipppssoot"])
    return None if dataset.is_hap else job_features(dataset.name, row)


set_model(ServedBundle())
