"""Predict many jobs from a table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.files import replacing
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import InputError
from calmlflow.hst.features import FEATURES, check_features, job_features
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.sources import read_table
from calmlflow.networks.distinct import distinct_rows
from calmlflow.predictor.predictor import Predictor, mosaic_policy


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
        prob_64g, in the order of the input; a mosaic gets its policy. Rows that break a rule are written, with the
        reason, to ``*.errors.csv`` beside it.
    stage : str

    Raises
    ------
    CalmlflowError
        Input that cannot be read, no row that can be answered, or output that cannot be written.
    """
    table = read_table(data)
    names_in = next((name for name in ("ipst", "ipppssoot") if name in table.columns), None)
    if names_in is None:
        raise InputError(f"{data} has no column ipst or ipppssoot; expected one that names the dataset")
    if not {"n_files", "total_mb"} <= set(table.columns):
        raise InputError(
            f"{data} lacks column n_files or total_mb; expected the nine features, or a control file's keys"
        )
    predictor = Predictor(stage)
    names = table[names_in].astype(str).str.strip().str.lower()
    features, reasons, mosaic = _features(names, table)
    good = reasons == ""
    if not good.any():
        raise InputError(
            f"no row of {data} can be answered; the first reason: {reasons[0] if len(reasons) else 'no rows'}"
        )
    answers = _answers(predictor, names.to_numpy()[good], features[good], mosaic[good])
    with replacing(output) as file:
        answers.to_csv(file, index=False)
    failed = table[~good].assign(reason=reasons[~good])
    errors = output.with_suffix(".errors.csv")
    if len(failed):
        with replacing(errors) as file:
            failed.to_csv(file, index=False)
    else:
        # Of an earlier call that wrote the same output.
        errors.unlink(missing_ok=True)
    return BatchOutcome(output, int(good.sum()), errors if len(failed) else None, len(failed), predictor.version)


def _answers(predictor: Predictor, names: np.ndarray, features: np.ndarray, mosaic: np.ndarray) -> pd.DataFrame:
    """One row per job; the networks see each distinct row of features once."""
    columns: dict[str, np.ndarray] = {}
    policy = mosaic_policy()
    fixed = {
        "bin_pred": policy["memBin"],
        "mem_pred": policy["memVal"],
        "wall_pred": policy["clockTime"],
        "kill_time": policy["killTime"],
        "probabilities": policy["probabilities"],
    }
    rows = distinct_rows(features[~mosaic]) if not mosaic.all() else None
    by_row = predictor.bundle.predict(rows.features) if rows else {}
    for name, value in fixed.items():
        column = np.empty((len(names), *np.shape(value)), dtype=(by_row[name] if rows else np.asarray(value)).dtype)
        column[mosaic] = value
        if rows:
            column[~mosaic] = by_row[name][rows.row_of_job]
        columns[name] = column
    probabilities = columns.pop("probabilities")
    return pd.DataFrame(
        {"ipst": names, **columns} | {f"prob_{name}": probabilities[:, number] for number, name in enumerate(BIN_NAMES)}
    )


def _features(names: pd.Series, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nine features of each row; the reason why it has none, or an empty text; and whether it is a mosaic."""
    features = np.zeros((len(table), len(FEATURES)))
    reasons = np.full(len(table), "", dtype=object)
    mosaic = np.zeros(len(table), dtype=bool)
    has_features = set(FEATURES) <= set(table.columns)
    if has_features:
        features = table[list(FEATURES)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, copy=True)
    rows = table.to_dict("records") if not has_features else [{}] * len(table)
    for position, (name, row) in enumerate(zip(names, rows, strict=True)):
        try:
            dataset = parse_dataset(name)
            mosaic[position] = dataset.is_hap
            if dataset.is_hap:
                continue
            if has_features:
                check_features(dataset, features[position])
            else:
                features[position] = job_features(name, {str(key): value for key, value in row.items()})
        except InputError as error:
            reasons[position] = str(error)
    features[:, 1] = np.round(features[:, 1])
    return features, reasons, mosaic
