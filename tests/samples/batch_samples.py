"""Tables of jobs, and a bundle that answers them without a registry."""

from pathlib import Path

import pandas as pd

from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import job_features
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.evidence import Finished
from calmlflow.predictor.predictor import Serving
from tests.samples.predictor_samples import write_bundle

COLUMNS = [
    *("ipst", "bin_pred", "mem_pred", "wall_pred", "kill_time", "prob_2g", "prob_8g", "prob_16g", "prob_64g"),
    *("jobs_row", "jobs_programme", "jobs_visit", "jobs_run"),
]
# By control keys: jobs of every instrument, one of them twice, mosaics among them.
CONTROL_ROWS = [
    {"ipst": "jabc03020", "n_files": 17, "total_mb": 9.6, "DETECTOR": "SBC", "DRIZCORR": "PERFORM", "CRSPLIT": "2"},
    {"ipst": "skycell-p0797x14y06", "n_files": None, "total_mb": None},
    {"ipst": "oabc06090", "n_files": 7, "total_mb": 11.1, "DETECTOR": "NUV-MAMA", "SUBARRAY": "T"},
    {"ipst": "IABC01XYQ", "n_files": 2, "total_mb": 404.1, "DETECTOR": "UVIS", "PCTECORR": "PERFORM", "CRSPLIT": "1"},
    {"ipst": "acs_8ph_01", "n_files": 3, "total_mb": 5.0},
    {"ipst": "labc05010", "n_files": 3, "total_mb": 2.3},
    {"ipst": "jxyz03020", "n_files": 17, "total_mb": 9.6, "DETECTOR": "SBC", "DRIZCORR": "PERFORM", "CRSPLIT": "2"},
]


def serving_bundle(folder: Path, version: str = "3", evidence: Finished | None = None) -> Serving:
    """A bundle that serves as a version."""
    return Serving(Bundle.load(write_bundle(folder / "bundle", evidence=evidence)), version, "registry")


def answers_one_by_one(serving: Serving, rows: list[dict]) -> pd.DataFrame:
    """The predictions of the bundle for each job alone."""
    policy = [1, 7.16, 43_200.0, 259_200, 0.0, 1.0, 0.0, 0.0, 0, 0, 0, 0]
    found = []
    for row in rows:
        dataset = parse_dataset(row["ipst"])
        if dataset.is_hap:
            found.append([dataset.name, *policy])
            continue
        answer = serving.bundle.predict([job_features(dataset.name, row)], [dataset.name])
        cells = [answer[name][0] for name in ("bin_pred", "mem_pred", "wall_pred", "kill_time")]
        counts = answer["evidence"][0] if "evidence" in answer else [0] * 4
        found.append([dataset.name, *cells, *answer["probabilities"][0], *counts])
    return pd.DataFrame(found, columns=COLUMNS)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal but for the last digits of numbers, which depend on how many jobs a network sees at once."""
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5)
