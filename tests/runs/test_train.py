"""Warnings of a training before it begins."""

import json

import pytest

from calmlflow import load_results
from calmlflow.errors import InputError
from calmlflow.predictor.bundle import Bundle
from calmlflow.runs.data import load_training_data
from calmlflow.runs.train import TrainingRequest, searched_on_test_jobs
from tests.samples.commands import FAST, run
from tests.samples.predictor_samples import FIVE

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


@pytest.mark.slow
def test_a_ladder_of_five_rungs_is_trained_for_and_answers(server, tmp_path):
    ladder = tmp_path / "ladder.json"
    ladder.write_text(FIVE.to_json())
    output = tmp_path / "out"
    words = ["--data", "sample:1000", "--output", str(output), "--config", str(FAST)]
    done = run(server, "python", "-m", "entrypoints.mem_bin", *words, CALMLFLOW_LADDER=str(ladder))
    assert done.returncode == 0, done.stderr[-3000:]
    (tree,) = output.iterdir()
    bundle = Bundle.load(tree / "models")
    assert bundle.ladder == FIVE
    assert bundle.predict([[17, 10, 1, 0, 0, 0, 0, 1, 0]])["probabilities"].shape == (1, 5)
    # Here another ladder is in force.
    with pytest.raises(InputError, match=r"has memory bins of ladder five \(2g .*; in force is ladder 1 "):
        load_results(tree)
