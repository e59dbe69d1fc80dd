"""Answer jobs by columns; each different row of features is evaluated once."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calmlflow.hst.features import MAX_FILES, MAX_TOTAL_MB, Features
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.predictor.answers import KnownAnswers, fallback_policy, mosaic_policy
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.bundle import Bundle

# Of the answers: memory in GB, times in seconds; null if the bundle lacks the network.
SCHEMA = pa.schema(
    [
        ("ipst", pa.string()),
        ("bin_pred", pa.int64()),
        ("mem_pred", pa.float64()),
        ("wall_pred", pa.float64()),
        ("kill_time", pa.int64()),
        *((f"prob_{name}", pa.float32()) for name in BIN_NAMES),
    ]
)
_COLUMNS = ("bin_pred", "mem_pred", "wall_pred", "kill_time")
_POLICY_KEYS = ("memBin", "memVal", "clockTime", "killTime")

# Number of values of each feature: a row of features is one number below their product, and below 2**63.
_COUNTS = (MAX_FILES + 1, MAX_TOTAL_MB + 1, 2, 2, 3, 2, 2, 2, 4)
# The numbers of `SCHEMA` from ``bin_pred`` on, shape (8,), for each row of features; NaN for a missing one.
ColumnAnswers = KnownAnswers[NDArray[np.float64]]


def column_answers(bundle: Bundle | None) -> ColumnAnswers:
    """The answers of a bundle, or without one of `fallback_policy`."""

    def predict(rows: list[Features]) -> NDArray[np.float64]:
        if bundle is None:
            return np.tile(_policy_numbers(fallback_policy()), (len(rows), 1))
        found = bundle.predict(rows)
        nothing = np.full((len(rows), len(BIN_NAMES)), np.nan)
        columns = [found.get(name, nothing[:, 0]) for name in _COLUMNS]
        return np.column_stack([*columns, found.get("probabilities", nothing)])

    return KnownAnswers(predict)


def answer_table(jobs: Jobs, answers: ColumnAnswers) -> pa.RecordBatch:
    """Answers in the columns of `SCHEMA`, to mosaics by policy."""
    numbers = np.tile(_policy_numbers(mosaic_policy()), (len(jobs.names), 1))
    by_network = ~jobs.is_mosaic
    if by_network.any():
        features = jobs.features[by_network]
        codes = np.ravel_multi_index(tuple(features.T), _COUNTS)
        _, first, row_of_job = np.unique(codes, return_index=True, return_inverse=True)
        different = [Features(*row) for row in features[first].tolist()]
        numbers[by_network] = np.asarray(answers(different))[row_of_job]
    missing = np.isnan(numbers)
    columns = [
        pa.array(np.where(absent, 0, values).astype(field.type.to_pandas_dtype()), field.type, mask=absent)
        for field, values, absent in zip(list(SCHEMA)[1:], numbers.T, missing.T, strict=True)
    ]
    return pa.RecordBatch.from_arrays([jobs.names, *columns], schema=SCHEMA)


def _policy_numbers(policy: dict) -> NDArray[np.float64]:
    return np.array([*(policy[key] for key in _POLICY_KEYS), *policy["probabilities"]], dtype=float)
