"""The code of the registered models ("models from code"): MLflow runs this file when it loads one.

Needs numpy, pandas and onnxruntime, and no TensorFlow. The same code serves a single network and the whole bundle: what
the answer holds is what the artifacts hold.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import Features, job_features
from calmlflow.predictor.answers import as_answers, mosaic_policy
from calmlflow.predictor.bundle import Bundle

KEPT = 4096
"""How many feature rows are remembered with their answers. The archive's jobs have about 900 different ones."""


class Known(NamedTuple):
    """Feature rows and their answers. Never changed: threads that read one need no lock.

    Attributes
    ----------
    place : dict
        Feature row, or None for a mosaic -> row of the table.
    table : DataFrame
    """

    place: dict[Features | None, int]
    table: pd.DataFrame

    def with_more(self, features: list[Features], answers: list[dict[str, Any]]) -> "Known":
        """These, and the answers to other feature rows."""
        places = range(len(self.table), len(self.table) + len(features))
        table = pd.concat([self.table, pd.DataFrame(answers)], ignore_index=True)
        return Known({**self.place, **dict(zip(features, places, strict=True))}, table)

    def answers(self, features: list[Features | None]) -> pd.DataFrame:
        """One row per feature row, in order. Rows of equal jobs share their list of probabilities."""
        places = [self.place[one] for one in features]
        # Of a single job, for which somebody waits, a view: a third of the time that copying takes.
        found = self.table[places[0] : places[0] + 1] if len(places) == 1 else self.table.take(places)
        found.index = pd.RangeIndex(len(places))
        return found


class ServedBundle(PythonModel):
    """Raw job metadata in (the control file's keys and ``ipppssoot``), one answer per row out."""

    def load_context(self, context: Any) -> None:
        """Load the networks that were logged with the model."""
        self.bundle = Bundle.load(Path(context.artifacts["bundle"]))
        self.mosaics = Known({None: 0}, pd.DataFrame([mosaic_policy()], columns=list(self.bundle.answer_keys)))
        self.known = self.mosaics

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer n jobs, in order; a row that breaks a rule fails the request with the reason."""
        del context, params
        try:
            features = [_features(row) for row in _rows(model_input)]
        except InputError as error:
            # What MLflow's server turns into status 400 and the reason; of another kind it would send the stack trace.
            raise MlflowException.invalid_parameter_value(str(error)) from None
        known = self.known
        new = [one for one in dict.fromkeys(features) if one is not None and one not in known.place]
        if new:
            known = known.with_more(new, as_answers(self.bundle.predict(new)))
            self.known = known if len(known.table) <= KEPT else self.mosaics
        return known.answers(features)


def _rows(jobs: pd.DataFrame) -> list[dict[Any, Any]]:
    # The general way takes pandas three times as long, and is most of the work for a single job.
    return [jobs.iloc[0].to_dict()] if len(jobs) == 1 else jobs.to_dict("records")


def _features(row: dict[Any, Any]) -> Features | None:
    """What the networks see of a row; None for a mosaic, which they do not cover."""
    dataset = parse_dataset(row["ipppssoot"])
    return None if dataset.is_hap else job_features(dataset.name, row)


set_model(ServedBundle())
