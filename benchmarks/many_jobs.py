"""A million jobs: seconds and peak memory of `Predictor.predict_many`, in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.hst.features import FEATURES
from calmlflow.jobs.sample import draw_sample

FORMS = ("features", "keys")
SUFFIXES = (".parquet", ".csv")


def measure_many(folder: Path, jobs: int = 1_000_000) -> dict:
    """Predict many jobs of the sample with the version in Production.

    Parameters
    ----------
    folder : Path
        For input and output.
    jobs : int

    Returns
    -------
    dict
        ``seconds`` from the call to the finished output, pyarrow's import among them, and ``peak_mb`` of the whole
        process (MB of 2**20 bytes), from Parquet to Parquet with the nine features; in ``all`` the same for every
        ``form`` (features, or a control file's keys) and ``suffix``.
    """
    table = draw_sample(jobs)
    inputs = {"features": table[["ipst", *FEATURES]], "keys": control_keys(table)}
    measured = []
    for form in FORMS:
        for suffix in SUFFIXES:
            data, output = folder / f"{form}{suffix}", folder / f"{form}-answers{suffix}"
            inputs[form].to_parquet(data) if suffix == ".parquet" else inputs[form].to_csv(data, index=False)
            command = [sys.executable, "-m", "benchmarks.many_jobs", str(data), str(output)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
            measured.append({"form": form, "suffix": suffix, **json.loads(done.stdout)})
    return {"jobs": jobs, "seconds": measured[0]["seconds"], "peak_mb": measured[0]["peak_mb"], "all": measured}


def control_keys(jobs: pd.DataFrame) -> pd.DataFrame:
    """Keys of control files that give the jobs' features, with megabytes that are no whole numbers."""
    away = np.random.default_rng(0).uniform(0, 0.4, len(jobs))
    return pd.DataFrame(
        {
            "ipst": jobs["ipst"],
            "n_files": jobs["n_files"],
            "total_mb": jobs["total_mb"] + away,
            "DETECTOR": np.where(jobs["detector"] == 1, "WFC", "SBC"),
            "SUBARRAY": np.where(jobs["subarray"] == 1, "True", "False"),
            "DRIZCORR": np.where(jobs["drizcorr"] == 1, "PERFORM", "OMIT"),
            "PCTECORR": np.where(jobs["pctecorr"] == 1, "PERFORM", None),
            "CRSPLIT": np.array(["NaN", "1.0", "2"])[jobs["crsplit"]],
        }
    )


def _predict(data: str, output: str) -> None:
    from calmlflow.predictor import Predictor

    predictor = Predictor()
    began = time.perf_counter()
    outcome = predictor.predict_many(data, output)
    seconds = time.perf_counter() - began
    # Not getrusage, whose peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "answered": outcome.answered}))


if __name__ == "__main__":
    _predict(*sys.argv[1:])
