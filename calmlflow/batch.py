"""Predict many jobs from whatever the project can read, with a progress bar."""

import re
from pathlib import Path

import pyarrow as pa

from calmlflow.console import row_progress
from calmlflow.jobs.sources import read_table
from calmlflow.predictor.many import BatchOutcome
from calmlflow.predictor.many.sources import parquet_files
from calmlflow.predictor.predictor import Predictor


def predict_table(data: str, output: str | Path, stage: str) -> BatchOutcome:
    """Predict the jobs of a table with the version that a stage holds; see `Predictor.predict_many`.

    Parameters
    ----------
    data : str
        What `Predictor.predict_many` reads by its name, or else a training's folder, ``sample`` or ``sample:N``.
    output : str or Path
    stage : str

    Raises
    ------
    CalmlflowError
        Input that cannot be read, no row that can be answered, or output that cannot be written.
    """
    predictor = Predictor(stage)
    with row_progress("predicting") as on_progress:
        if _is_table_of_files(data):
            return predictor.predict_many(data, output, on_progress=on_progress)
        # The same name and size give the same sample, always.
        identity = data if re.fullmatch("sample(:[0-9]+)?", data) else None
        table = pa.Table.from_pandas(read_table(data), preserve_index=False)
        return predictor.predict_many(table.to_batches(), output, identity=identity, on_progress=on_progress)


def _is_table_of_files(data: str) -> bool:
    if data.startswith("s3://"):
        return True
    if re.fullmatch("sample(:.*)?", data) or re.match("[A-Za-z][A-Za-z0-9+.-]+:", data):
        return False
    return not Path(data).is_dir() or bool(parquet_files(Path(data)))
