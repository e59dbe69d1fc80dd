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
from calmlflow.hst.features import Features, job_features, switch_warnings
from calmlflow.predictor.answers import as_answers, mosaic_policy
from calmlflow.predictor.bundle import Bundle


class ServedBundle(PythonModel):
    """Takes raw job metadata (``ipppssoot`` and the control file's keys), and gives one answer per row."""

    def load_context(self, context: Any) -> None:
        """Load the networks that were logged with the model."""
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer n jobs, in order; a row that breaks a rule fails the request with its number from 1 and the reason."""
        del context, params
        jobs = []
        for number, row in enumerate(_rows(model_input), start=1):
            try:
                jobs.append(_job(row))
            except InputError as error:
                # MLflow's server answers status 400 with the reason; to other exceptions it adds the stack trace.
                raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from error
        asked = {place: job for place, job in enumerate(jobs) if job is not None}
        answers = dict.fromkeys(range(len(jobs)), mosaic_policy(self.bundle.ladder))
        if asked:
            names, rows, switches = zip(*asked.values(), strict=True)
            outputs = self.bundle.run_known(rows)
            predictions = self.bundle.answer(outputs, self.bundle.correct(outputs, rows, names))
            found = as_answers(predictions, self.bundle.ladder)
            for answer, more in zip(found, switches, strict=True):
                answer["warnings"] += more
            answers |= dict(zip(asked, found, strict=True))
        # By columns: from a list of answers, pandas takes twice as long.
        return pd.DataFrame({key: [answer[key] for answer in answers.values()] for key in self.bundle.answer_keys})


def _rows(jobs: pd.DataFrame) -> list[dict[Any, Any]]:
    # For a single job, pandas takes three times as long the general way.
    return [jobs.iloc[0].to_dict()] if len(jobs) == 1 else jobs.to_dict("records")


def _job(row: dict[Any, Any]) -> tuple[str, Features, list[str]] | None:
    """Name, features and warnings of a row; None for a mosaic, which no network covers."""
    dataset = parse_dataset(row["ipppssoot"])
    if dataset.is_hap:
        return None
    return dataset.name, job_features(dataset.name, row), switch_warnings(dataset.name, row)


set_model(ServedBundle())
