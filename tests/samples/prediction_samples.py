"""Recorded predictions of sample jobs."""

import pandas as pd

from calmlflow.hst.features import FEATURES
from calmlflow.jobs.predictions import Recorded
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.predictor.emit import prediction_record


def predicted(job: pd.Series, version: str = "3", source: str = "registry", **changes: object) -> dict:
    """The record of a correct answer, given a second before the job ended: the bin that it needs, and time enough."""
    probabilities = [0.1] * 4
    probabilities[int(job["mem_bin"])] = 0.7
    answer = {
        "memBin": int(job["mem_bin"]),
        "memVal": float(job["memory"]),
        "clockTime": int(job["wallclock"]),
        "killTime": int(job["wallclock"]) + 1,
        "probabilities": probabilities,
        "version": version,
        "source": source,
    }
    nine = [float(job[name]) for name in FEATURES]
    return {**prediction_record(job["ipst"], nine, answer, float(job["timestamp"]) - 1), **changes}


def recorded(*records: dict) -> Recorded:
    return Recorded(pd.DataFrame(records, columns=list(PREDICTIONS.columns)))
