"""Warnings of a training before it begins."""

import json

import pytest

from calmlflow.runs.data import load_training_data
from calmlflow.runs.train import TrainingRequest, searched_on_test_jobs

DATA = "sample:1000"


@pytest.fixture
def warnings_of(tmp_path):
    def warnings(searched: dict, **change) -> list[str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"found_on": dict.fromkeys(("mem_clf", "wall_reg"), searched)}))
        request = TrainingRequest(**{"data": DATA, "config": str(path), **change})
        data = load_training_data(request.data, request.seed, request.test_size, request.split)
        return list(searched_on_test_jobs(data, request))

    return warnings


@pytest.mark.parametrize("split", ["programme", "job", "time"])
def test_a_config_found_on_other_jobs_than_the_test_split_gives_no_warning(warnings_of, split):
    train = load_training_data(DATA, 0, 0.2, split)
    newest = int(train.jobs["timestamp"].iloc[train.train].max())
    searched = {"data": DATA, "split": split, "seed": 0, "test_size": 0.2, "newest_job": newest}
    assert warnings_of(searched, split=split) == []
    assert warnings_of(searched, split=split, test_size=0.1) == []
    (warning,) = warnings_of(searched, split=split, test_size=0.4)
    assert warning.startswith("warning: config ")
    assert (
        f"was found on sample:1000 with split={split}, seed 0 and test_size 0.2; test jobs of this run may" in warning
    )
    if split != "time":
        assert len(warnings_of(searched, split=split, seed=1)) == 1
    other = "job" if split == "programme" else "programme"
    assert len(warnings_of(searched, split=other)) == 1


def test_newer_jobs_than_those_searched_on_were_not_searched_on(warnings_of):
    searched = {"data": "old.csv", "split": "job", "seed": 5, "test_size": 0.2, "newest_job": 1_500_000_000}
    assert warnings_of(searched) == []


def test_a_config_that_no_search_found_gives_no_warning():
    assert list(searched_on_test_jobs(load_training_data(DATA, 0, 0.2), TrainingRequest(DATA))) == []
