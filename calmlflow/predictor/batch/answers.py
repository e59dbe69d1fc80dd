"""Answer jobs by columns; the networks run once for each different row of features."""

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calmlflow.hst.features import Features, row_codes
from calmlflow.hst.ladder import LADDER, Ladder
from calmlflow.predictor.answers import COUNTED, by_policy, fallback_policy, mosaic_policy
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.bundle import Bundle

log = logging.getLogger(__name__)


def answer_schema(ladder: Ladder) -> pa.Schema:
    """Columns of the answers: memory in GB, times in seconds, finished jobs behind each level of evidence.

    Null if the bundle lacks the network.
    """
    return pa.schema(
        [
            ("ipst", pa.string()),
            ("bin_pred", pa.int64()),
            ("mem_pred", pa.float64()),
            ("wall_pred", pa.float64()),
            ("kill_time", pa.int64()),
            *((f"prob_{name}", pa.float32()) for name in ladder.names),
            *((f"jobs_{level}", pa.int64()) for level in COUNTED),
        ]
    )


_COLUMNS = ("bin_pred", "mem_pred", "wall_pred", "kill_time")
_POLICY_KEYS = ("memBin", "memVal", "clockTime", "killTime")


def answer_table(jobs: Jobs, bundle: Bundle | None) -> pa.RecordBatch:
    """Answers in the columns of `answer_schema`: to mosaics by policy, and to all without a bundle."""
    ladder = bundle.ladder if bundle else LADDER
    schema = answer_schema(ladder)
    numbers = np.tile(_policy_numbers(mosaic_policy(ladder)), (len(jobs.names), 1))
    others = ~jobs.is_mosaic
    if bundle is None:
        numbers[others] = _policy_numbers(fallback_policy())
    elif others.any():
        numbers[others] = _answers(bundle, jobs.features[others], jobs.names.filter(pa.array(others)))
    missing = np.isnan(numbers)
    columns = [
        pa.array(np.where(absent, 0, values).astype(field.type.to_pandas_dtype()), field.type, mask=absent)
        for field, values, absent in zip(list(schema)[1:], numbers.T, missing.T, strict=True)
    ]
    return pa.RecordBatch.from_arrays([jobs.names, *columns], schema=schema)


def memory_warnings(answers: pa.RecordBatch, ladder: Ladder) -> dict[str, tuple[int, str]]:
    """Sentences on memory that does not fit the rung, the rows that each is true of, and the first of their names."""
    memory_gb, chosen = (answers[name].to_numpy(zero_copy_only=False) for name in ("mem_pred", "bin_pred"))
    largest = ladder[-1]
    wrong = {
        f"The memory is beyond the largest rung, {largest.name} with {largest.limit_gb} GB: the job may fit nowhere.": (
            memory_gb >= largest.limit_gb
        ),
        "The memory needs a higher rung, but by the probabilities of the rungs the chosen one is the better choice.": (
            (memory_gb < largest.limit_gb) & (ladder.limits_gb.searchsorted(memory_gb, side="right") > chosen)
        ),
    }
    return {
        sentence: (int(rows.sum()), str(answers["ipst"][int(rows.argmax())]))
        for sentence, rows in wrong.items()
        if rows.any()
    }


def _answers(bundle: Bundle, features: NDArray[np.int64], names: pa.Array) -> NDArray[np.float64]:
    """The numbers of `answer_schema` from ``bin_pred`` on, shape (n, rungs + 8); NaN for a missing one."""
    _, first, row_of_job = np.unique(row_codes(features), return_index=True, return_inverse=True)
    outputs = bundle.run_known([Features(*row) for row in features[first].tolist()])[row_of_job]
    found = bundle.answer(outputs, bundle.correct(outputs, features, names.to_numpy(zero_copy_only=False)))
    if "by_policy" in found:
        log.warning("%s", by_policy(found["by_policy"]))
    nothing = np.full((len(features), len(bundle.ladder)), np.nan)
    counts = found.get("evidence", np.zeros((len(features), len(COUNTED))))
    columns = [found.get(name, nothing[:, 0]) for name in _COLUMNS]
    return np.column_stack([*columns, found.get("probabilities", nothing), counts])


def _policy_numbers(policy: dict) -> NDArray[np.float64]:
    numbers = [*(policy[key] for key in _POLICY_KEYS), *policy["probabilities"], *policy["evidence"].values()]
    return np.array(numbers, dtype=float)
