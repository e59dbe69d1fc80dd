"""The code of a model that says the same whatever it is asked: what MLflow's scoring server costs by itself.

MLflow runs this file when it loads such a model; see `benchmarks.serving`.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

ANSWER = pd.DataFrame(
    [
        {
            "memBin": 1,
            "probabilities": [0.1, 0.7, 0.15, 0.05],
            "unseen": False,
            "memVal": 1.39,
            "clockTime": 271,
            "killTime": 1020,
            "evidence": {"row": 12, "programme": 3, "visit": 1, "run": 0},
            "warnings": [],
        }
    ]
)


class Constant(PythonModel):
    """One row, made beforehand."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Look at nothing."""
        return ANSWER


set_model(Constant())
