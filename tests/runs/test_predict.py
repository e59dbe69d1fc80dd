"""Tables and stores of every kind are predicted by their name, into a file or a database."""

from contextlib import closing

import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.jobs.stores.base import PREDICTIONS
from calmlflow.jobs.stores.open import open_store
from calmlflow.predictor.batch import row_groups
from calmlflow.runs.predict import ERRORS, predict_parts, predict_table
from tests.samples.batch_samples import CONTROL_ROWS
from tests.samples.commands import ROOT
from tests.samples.dask_cluster import dask_cluster
from tests.samples.predictor_samples import (
    ALIASES,
    NO_ALIAS,
    STAGES,
    VERSION,
    aliased,
    http_registry,
    keep_in_cache,
    staged,
)


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    """A registry with version 3 in every stage, and in the cache."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        keep_in_cache(tmp_path / "cache", found.uri, "3")
        yield found


def as_csv(jobs, folder):
    jobs.to_csv(folder / "jobs.csv", index=False)
    return folder / "jobs.csv"


def as_training(jobs, folder):
    (folder / "2021-11-04-1636048291" / "data").mkdir(parents=True)
    jobs.to_csv(folder / "2021-11-04-1636048291" / "data" / "latest.csv", index=False)
    return folder / "2021-11-04-1636048291"


def as_folder(jobs, folder):
    (folder / "jobs").mkdir()
    jobs.to_parquet(folder / "jobs" / "part-0.parquet")
    return folder / "jobs"


@pytest.mark.parametrize("form", [as_csv, as_training, as_folder, lambda jobs, folder: "sample:20"])
def test_a_table_or_store_is_predicted_by_its_name(tmp_path, form):
    jobs = draw_sample(20)
    outcome = predict_table(str(form(jobs, tmp_path)), tmp_path / "out.parquet", "Production")
    assert (outcome.answered, outcome.failed, outcome.version) == (20, 0, "3")
    assert pd.read_parquet(outcome.output)["ipst"].tolist() == jobs["ipst"].tolist()


def test_the_stage_is_the_one_that_is_named(tmp_path, registry):
    predict_table("sample:5", tmp_path / "out.csv", "staging")
    assert registry.queries[-1][1]["stages"] == ["Staging"]


@pytest.mark.parametrize("data", ["ftp://host/jobs.csv", "sample:none", "nothing-there"])
def test_an_input_that_cannot_be_read_is_named(tmp_path, data):
    with pytest.raises(InputError, match=data.partition(":")[0]):
        predict_table(data, tmp_path / "out.csv", "Production")
    assert not (tmp_path / "out.csv").exists()


def test_a_database_gets_the_predictions_and_a_file_the_rows_without_answer(tmp_path):
    rows = [*(row for row in CONTROL_ROWS if row["n_files"]), {"ipst": "jbad00010", "n_files": 0, "total_mb": 1}]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    uri = f"sqlite:///{tmp_path}/jobs.db"
    outcome = predict_table(str(tmp_path / "in.csv"), uri, "Production")
    assert (outcome.output, outcome.errors, outcome.failed) == (uri, str(ERRORS), 1)
    assert pd.read_csv(tmp_path / ERRORS)["ipst"].tolist() == ["jbad00010"]
    with closing(open_store(uri)) as store:
        found = pd.concat(store.read(PREDICTIONS))
    assert sorted(found["ipst"]) == sorted(row["ipst"].lower() for row in rows[:-1])
    assert set(found["version"]) == {"3"}


def test_parts_side_by_side_give_the_answers_of_one_and_are_not_answered_again(registry, tmp_path, monkeypatch):
    registry.answers[VERSION] = aliased("3")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    jobs = draw_sample(100)
    jobs.loc[70, "n_files"] = 0
    jobs.to_parquet(tmp_path / "jobs.parquet", row_group_size=30)
    monkeypatch.setattr(row_groups, "PART_ROWS", 60)
    alone = predict_table("jobs.parquet", tmp_path / "alone.parquet", "Production")
    with dask_cluster(tmp_path / "dask") as cluster:
        outcome = predict_parts("jobs.parquet", tmp_path / "out", "Production", scheduler=cluster.address)
    assert (outcome.answered, outcome.failed, outcome.version) == (alone.answered, 1, "3")
    places = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [len(pd.read_parquet(place)) for place in places] == [60, 39]
    pd.testing.assert_frame_equal(
        pd.concat(map(pd.read_parquet, places), ignore_index=True), pd.read_parquet("alone.parquet")
    )
    assert pd.read_csv(next((tmp_path / "out").glob("*.errors.csv")))["row"].tolist() == [11]

    kept = places[0].stat().st_mtime_ns
    places[1].unlink()
    assert predict_parts("jobs.parquet", tmp_path / "out", "Production", 1).answered == 99
    assert (places[0].stat().st_mtime_ns, places[1].exists()) == (kept, True)
    jobs.head(60).to_parquet(tmp_path / "jobs.parquet")
    with pytest.raises(InputError, match="is of other jobs or another version"):
        predict_parts("jobs.parquet", tmp_path / "out", "Production", 1)


def test_parts_of_which_no_row_can_be_answered_cost_no_other_its_answers(registry, tmp_path):
    registry.answers[VERSION] = aliased("3")
    jobs = draw_sample(10)
    (tmp_path / "jobs").mkdir()
    for name, part in {"a": jobs[:0], "b": jobs[:4].assign(n_files=0), "c": jobs[4:]}.items():
        part.to_parquet(tmp_path / "jobs" / f"{name}.parquet")
    outcome = predict_parts("jobs", tmp_path / "out", "Production", 1)
    assert (outcome.answered, outcome.failed) == (6, 4)
    assert len(pd.read_csv(next((tmp_path / "out").glob("*.errors.csv")))) == 4
    (tmp_path / "jobs" / "c.parquet").unlink()
    with pytest.raises(InputError, match=r"no row of jobs can be answered; .*: .*/\*.errors.csv"):
        predict_parts("jobs", tmp_path / "other", "Production", 1)


@pytest.mark.parametrize("data", ["sample:20", "jobs.csv"])
def test_what_has_no_row_groups_is_no_table_for_parts(tmp_path, data):
    draw_sample(5).to_csv(tmp_path / "jobs.csv", index=False)
    with pytest.raises(InputError, match=f"{data}.*; expected a .*Parquet file"):
        predict_parts(data, tmp_path / "out", "Production")
