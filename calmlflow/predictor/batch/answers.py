"""Answers to many jobs as a table; each different row of features is evaluated once."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from calmlflow.hst.features import FEATURES, MAX_FILES, MAX_TOTAL_MB
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.predictor.answers import fallback_policy, mosaic_policy
from calmlflow.predictor.batch.features import Jobs
from calmlflow.predictor.bundle import Bundle, Predictions

_PROBABILITIES = tuple(f"prob_{name}" for name in BIN_NAMES)

SCHEMA = pa.schema(
    [
        ("ipst", pa.string()),
        ("bin_pred", pa.int64()),
        ("mem_pred", pa.float64()),
        ("wall_pred", pa.float64()),
        ("kill_time", pa.int64()),
        *((name, pa.float32()) for name in _PROBABILITIES),
    ]
)
"""Memory in GB, times in seconds; a column is null where the bundle lacks its network."""

_POLICY_KEYS = {"bin_pred": "memBin", "mem_pred": "memVal", "wall_pred": "clockTime", "kill_time": "killTime"}

_COUNTS = (MAX_FILES + 1, MAX_TOTAL_MB + 1, 2, 2, 3, 2, 2, 2, 4)
"""How many values each feature can have: a row of features is one number below their product, and below 2**63."""

_MAX_KNOWN = 500_000
"""Rows past which those known so far are forgotten, so that input without two equal rows does not fill the memory."""


class KnownRows:
    """What a bundle says of the feature rows that it was asked for so far.

    Parameters
    ----------
    bundle : Bundle
    """

    def __init__(self, bundle: Bundle):
        self._bundle = bundle
        self._codes = np.empty(0, dtype=np.int64)
        self._found: Predictions = {}

    def predict(self, features: NDArray[np.int64]) -> Predictions:
        """The same as `Bundle.predict`, for n >= 1 jobs."""
        if len(self._codes) > _MAX_KNOWN:
            self._codes, self._found = np.empty(0, dtype=np.int64), {}
        codes, first, row_of_job = np.unique(
            np.ravel_multi_index(tuple(features.T), _COUNTS), return_index=True, return_inverse=True
        )
        new = ~np.isin(codes, self._codes, assume_unique=True)
        if new.any():
            self._learn(codes[new], self._bundle.predict(features[first[new]]))
        row = np.searchsorted(self._codes, codes)[row_of_job]
        return {name: column[row] for name, column in self._found.items()}

    def _learn(self, codes: NDArray[np.int64], found: Predictions) -> None:
        all_codes = np.concatenate([self._codes, codes])
        order = np.argsort(all_codes)
        self._codes = all_codes[order]
        self._found = {
            name: (np.concatenate([self._found[name], column]) if self._found else column)[order]
            for name, column in found.items()
        }


def answer_table(jobs: Jobs, known: KnownRows | None) -> pa.RecordBatch:
    """Answers in the columns of `SCHEMA`; without a bundle by `fallback_policy`, and to a mosaic always by its own."""
    by_network = ~jobs.is_mosaic
    fixed = _by_column(_of_policy(mosaic_policy()))
    found: Predictions = {}
    if by_network.any():
        found = _by_column(known.predict(jobs.features[by_network]) if known else _of_policy(fallback_policy()))
    columns = [jobs.names]
    for field in list(SCHEMA)[1:]:
        values = np.full(len(by_network), fixed[field.name], field.type.to_pandas_dtype())
        if field.name in found:
            values[by_network] = found[field.name]
        columns.append(pa.array(values, field.type, mask=None if field.name in found else by_network))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _of_policy(policy: Mapping[str, Any]) -> Predictions:
    """What a policy says of every job, in the words of a bundle."""
    found = {name: np.asarray(policy[key]) for name, key in _POLICY_KEYS.items()}
    return found | {"probabilities": np.asarray(policy["probabilities"])}


def _by_column(found: Predictions) -> Predictions:
    columns = {name: found[name] for name in _POLICY_KEYS if name in found}
    if "probabilities" in found:
        columns |= dict(zip(_PROBABILITIES, found["probabilities"].T, strict=True))
    return columns


def fingerprint(bundle: Bundle | None) -> str:
    """What tells two bundles apart though their versions are the same, as two registries count both from 1."""
    if bundle is None:
        return "policy"
    spread = np.random.default_rng(0).integers(0, (40, 3_000, 2, 2, 3, 2, 2, 2, 4), (64, len(FEATURES)))
    found = bundle.predict(spread + (np.arange(len(FEATURES)) == 0))
    return hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()
