"""The code of the registered models ("models from code"): MLflow runs this file when it loads one.

Needs numpy and onnxruntime, and no TensorFlow. The same code serves a single network and the whole bundle: what the
answer holds is what the artifacts hold.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import InputError
from calmlflow.hst.features import job_features
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.predictor import as_answers, mosaic_policy


class ServedBundle(PythonModel):
    """Raw job metadata in (the control file's keys and ``ipppssoot``), one answer per row out."""

    def load_context(self, context: Any) -> None:
        """Load the networks that were logged with the model."""
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer n jobs, in order; a row that breaks a rule fails the request with the reason."""
        del context, params
        rows = model_input.to_dict("records")
        try:
            mosaic = [parse_dataset(row.get("ipppssoot")).is_hap for row in rows]
            features = [
                job_features(str(row["ipppssoot"]), {str(key): value for key, value in row.items()})
                for row, is_mosaic in zip(rows, mosaic, strict=True)
                if not is_mosaic
            ]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        answers = iter(as_answers(self.bundle.predict(features)) if features else [])
        policy = mosaic_policy()
        keys = self.bundle.answer_keys
        return pd.DataFrame(
            [{key: policy[key] for key in keys} if is_mosaic else next(answers) for is_mosaic in mosaic],
            columns=list(keys),
        )


set_model(ServedBundle())
