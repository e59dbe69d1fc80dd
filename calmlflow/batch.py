"""Predict many jobs from a table."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.sources import read_table
from calmlflow.networks.distinct import distinct_rows
from calmlflow.predictor.predictor import Predictor


@dataclass(frozen=True)
class BatchOutcome:
    """Where predictions went, and how many rows could not be answered."""

    output: Path
    answered: int
    errors: Path | None
    failed: int
    version: str

    def __str__(self) -> str:
        """One line for a person."""
        text = f"{self.answered:,} jobs answered by version {self.version}: {self.output}"
        return f"{text}; {self.failed:,} rows could not be answered: {self.errors}" if self.errors else text


def predict_table(data: str, output: Path, stage: str) -> BatchOutcome:
    """Predict the jobs of a table with the version that a stage holds.

    Parameters
    ----------
    data : str
        A CSV file, a training's folder or a sample. Rows name their dataset in ``ipst`` or ``ipppssoot`` and hold
        either the nine features of a job record or the keys of a control file.
    output : Path
        CSV with the columns ipst, bin_pred, mem_pred (GB), wall_pred (s), kill_time (s) and prob_2g, prob_8g, prob_16g,
        prob_64g, in the order of the input. Rows that break a rule are written, with the reason, to ``*.errors.csv``
        beside it.
    stage : str

    Raises
    ------
    CalmlflowError
        Input that cannot be read, no row that can be answered, or output that cannot be written.
    """
    table = read_table(data)
    name_column = next((name for name in ("ipst", "ipppssoot") if name in table.columns), None)
    if name_column is None:
        raise InputError(f"{data} has no column ipst or ipppssoot; expected one that names the dataset")
    if not {"n_files", "total_mb"} <= set(table.columns):
        raise InputError(
            f"{data} lacks column n_files or total_mb; expected the nine features, or a control file's keys"
        )
    predictor = Predictor(stage)
    names = table[name_column].astype(str)
    features, reasons = _features(names, table)
    good = np.flatnonzero(reasons == "")
    if not len(good):
        raise InputError(
            f"no row of {data} can be answered; the first reason: {reasons[0] if len(reasons) else 'no rows'}"
        )
    rows = distinct_rows(features[good])
    by_row = predictor.bundle.predict(rows.features)
    found = {name: column[rows.row_of_job] for name, column in by_row.items()}
    columns = {name: found[name] for name in ("bin_pred", "mem_pred", "wall_pred", "kill_time")}
    probabilities = {f"prob_{name}": found["probabilities"][:, column] for column, name in enumerate(BIN_NAMES)}
    answers = pd.DataFrame({"ipst": names.to_numpy()[good], **columns, **probabilities})
    _write_csv(answers, output)
    errors = output.with_suffix(".errors.csv")
    failed = table[reasons != ""].assign(reason=reasons[reasons != ""])
    if len(failed):
        _write_csv(failed, errors)
    else:
        errors.unlink(missing_ok=True)
    return BatchOutcome(output, len(good), errors if len(failed) else None, len(failed), predictor.version)


def _features(names: pd.Series, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Nine features of each row, and for each row the reason why it has none, or an empty text."""
    if set(FEATURES) <= set(table.columns):
        numbers = table[list(FEATURES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
        bad = ~np.isfinite(numbers) | (numbers < 0)
        bad[:, 0] |= numbers[:, 0] < 1
        first = bad.argmax(axis=1)
        reason = np.array([f"{name} is no number in its range" for name in FEATURES])
        return np.round(numbers), np.where(bad.any(axis=1), reason[first], "")
    features = np.zeros((len(table), len(FEATURES)))
    reasons = np.full(len(table), "", dtype=object)
    for position, (name, row) in enumerate(zip(names, table.to_dict("records"), strict=True)):
        try:
            features[position] = job_features(name, {str(key): value for key, value in row.items()})
        except InputError as error:
            reasons[position] = str(error)
    return features, reasons


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, newline="") as file:
            table.to_csv(file, index=False)
        Path(file.name).replace(path)
    except OSError as error:
        raise CalmlflowError(
            f"{path} cannot be written ({error.strerror}); expected a file in a folder of yours"
        ) from None
