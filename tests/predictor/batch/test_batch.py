"""Many jobs from a table: the same answers as one by one, in order, and every row accounted for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor import Predictor
from calmlflow.runs.predict import predict_table
from tests.samples.batch_samples import COLUMNS, CONTROL_ROWS, MOSAICS
from tests.samples.predictor_samples import ALIASES, NO_ALIAS, STAGES, http_registry, keep_in_cache, staged


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    """A registry with version 3 in Production, on disk already."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        keep_in_cache(tmp_path / "cache", found.uri, "3")
        yield found


def predict(table, folder, name="out.csv"):
    table.to_csv(folder / "in.csv", index=False)
    outcome = predict_table(str(folder / "in.csv"), folder / name, "Production")
    return outcome, pd.read_csv(outcome.output)


def test_every_row_gets_the_answer_of_the_predictor_in_order(tmp_path):
    table = pd.DataFrame(CONTROL_ROWS)
    outcome, found = predict(table, tmp_path)
    assert list(found) == COLUMNS
    assert found["ipst"].tolist() == [row["ipst"].lower() for row in CONTROL_ROWS]
    predictor = Predictor()
    for row, (_, line) in zip(CONTROL_ROWS, found.iterrows(), strict=True):
        answer = predictor.predict(row["ipst"], row)
        assert (line["bin_pred"], line["kill_time"]) == (answer["memBin"], answer["killTime"])
        assert round(line["mem_pred"], 2) == answer["memVal"]
        assert int(line["wall_pred"]) == answer["clockTime"]
        assert line[COLUMNS[-4:]].tolist() == pytest.approx(answer["probabilities"], abs=1e-5)
    assert (outcome.answered, outcome.failed, outcome.errors, outcome.version) == (7, 0, None, "3")
    assert str(outcome) == f"7 jobs answered by version 3: {tmp_path / 'out.csv'}"
    # Jobs that are alike are answered alike, and others not.
    assert found.loc[0, COLUMNS[1:]].equals(found.loc[6, COLUMNS[1:]].rename(0))
    assert found["wall_pred"].nunique() == 5


def test_features_and_control_keys_agree(tmp_path):
    table = pd.DataFrame(CONTROL_ROWS)
    _, by_keys = predict(table, tmp_path)
    features = pd.DataFrame(
        [
            [np.nan] * 9 if position in MOSAICS else job_features(row["ipst"], row)
            for position, row in enumerate(CONTROL_ROWS)
        ],
        columns=FEATURES,
    )
    # Unrounded, as the oldest records have it.
    features["total_mb"] += 0.4
    _, by_features = predict(pd.concat([table["ipst"].rename("ipppssoot"), features], axis=1), tmp_path, "other.csv")
    pd.testing.assert_frame_equal(by_features, by_keys)


def test_a_table_of_job_records_can_be_predicted(tmp_path):
    jobs = draw_sample(300, 2)
    outcome, found = predict(jobs, tmp_path)
    assert outcome.answered == 300
    assert found["ipst"].tolist() == jobs["ipst"].tolist()
    expected = Predictor().bundle.predict(jobs[list(FEATURES)])
    for name in ("bin_pred", "mem_pred", "wall_pred", "kill_time"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    np.testing.assert_allclose(found[COLUMNS[-4:]], expected["probabilities"], rtol=1e-5)


@pytest.mark.parametrize("positions", [MOSAICS, [0, 2, 3], [0, 1]])
def test_rungs_and_kill_times_are_whole_numbers_whatever_is_in_the_table(tmp_path, positions):
    outcome, found = predict(pd.DataFrame([CONTROL_ROWS[position] for position in positions]), tmp_path)
    assert outcome.answered == len(positions)
    assert (found["bin_pred"].dtype, found["kill_time"].dtype) == (np.int64, np.int64)
    mosaics = [number for number, position in enumerate(positions) if position in MOSAICS]
    assert found.iloc[mosaics][["bin_pred", "mem_pred", "wall_pred", "kill_time"]].to_numpy().tolist() == [
        [1, 7.17, 43_200, 259_200] for _ in mosaics
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_files", 0, "n_files is 0"), ("n_files", 2.5, "n_files is 2.5"), ("n_files", 2_000_000, "n_files is 2e+06"),
        ("n_files", "many", "n_files is 'many'; expected a number"), ("total_mb", -1, "total_mb is -1"),
        ("total_mb", np.inf, "total_mb is inf"), ("total_mb", np.nan, "total_mb is missing"),
        ("drizcorr", 2, "drizcorr is 2"), ("crsplit", 3, "crsplit is 3"),
        ("dtype", 0, "dtype is 0; expected 1"), ("instr", 3, "instr is 3; expected 0"), ("ipst", "zabc03020", "'z'"),
        ("ipst", "j", "is no dataset name"),
    ],
)  # fmt: skip
def test_features_out_of_range_are_refused_with_the_reason(tmp_path, name, value, words):
    jobs = pd.DataFrame([["jabc03020", *job_features("jabc03020", CONTROL_ROWS[0])]] * 3, columns=["ipst", *FEATURES])
    jobs["note"] = ["a", "b", "c"]
    jobs[name] = jobs[name].astype(object)
    jobs.loc[1, name] = value
    outcome, found = predict(jobs, tmp_path)
    assert (outcome.answered, outcome.failed, len(found)) == (2, 1, 2)
    errors = pd.read_csv(outcome.errors)
    assert outcome.errors == str(tmp_path / "out.errors.csv")
    # The row as it was, so that it can be mended and sent again.
    assert list(errors) == ["row", "reason", *jobs.columns]
    assert (errors["row"].tolist(), errors["note"].tolist()) == ([2], ["b"])
    assert words in errors["reason"][0]
    assert f"; 1 rows could not be answered: {outcome.errors}" in str(outcome)


@pytest.mark.parametrize(
    ("name", "value", "words"), [("n_files", 0, "n_files"), ("total_mb", None, "total_mb is missing")]
)
def test_control_keys_out_of_range_are_refused_with_the_reason(tmp_path, name, value, words):
    rows = [dict(row) for row in CONTROL_ROWS]
    rows[2][name] = value
    outcome, found = predict(pd.DataFrame(rows), tmp_path)
    assert "oabc06090" not in found["ipst"].tolist()
    errors = pd.read_csv(outcome.errors)
    assert errors["ipst"].tolist() == ["oabc06090"]
    assert words in errors["reason"][0]


def test_errors_of_an_earlier_call_do_not_stay(tmp_path):
    rows = [dict(row) for row in CONTROL_ROWS]
    rows[0]["n_files"] = -1
    assert Path(predict(pd.DataFrame(rows), tmp_path)[0].errors).exists()
    outcome, _ = predict(pd.DataFrame(CONTROL_ROWS), tmp_path)
    assert outcome.errors is None
    assert not (tmp_path / "out.errors.csv").exists()


def test_files_are_for_others_too(tmp_path):
    rows = [*CONTROL_ROWS, {**CONTROL_ROWS[0], "n_files": -1}]
    outcome, _ = predict(pd.DataFrame(rows), tmp_path)
    (tmp_path / "plain").touch()
    for path in (outcome.output, outcome.errors):
        assert Path(path).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"n_files": [1], "total_mb": [1]}), "has no column ipst or ipppssoot"),
        (pd.DataFrame({"ipst": ["jabc03020"], "n_files": [1]}), "lacks column n_files or total_mb"),
        (
            pd.DataFrame({"ipst": ["zabc03020"], "n_files": [1], "total_mb": [1]}),
            "the first reason: dataset 'zabc03020'",
        ),
        (pd.DataFrame({"ipst": [], "n_files": [], "total_mb": []}), "no rows"),
    ],
)
def test_a_table_that_cannot_be_answered_is_named_and_nothing_is_written(tmp_path, table, words):
    with pytest.raises(InputError, match=words) as caught:
        predict(table, tmp_path)
    assert "in.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("in.csv", "cache")] == []


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CalmlflowError, match=r"out\.csv cannot be written"):
        predict(pd.DataFrame(CONTROL_ROWS), tmp_path, "file/out.csv")


def test_the_version_that_answers_is_that_of_the_stage(tmp_path, registry):
    pd.DataFrame(CONTROL_ROWS).to_csv(tmp_path / "in.csv", index=False)
    predict_table(str(tmp_path / "in.csv"), tmp_path / "out.csv", "staging")
    assert registry.queries[-1][1]["stages"] == ["Staging"]
    with pytest.raises(InputError, match="stage 'Prod' does not exist"):
        predict_table(str(tmp_path / "in.csv"), tmp_path / "out.csv", "Prod")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_sample_is_predicted_by_its_name(tmp_path, suffix):
    outcome = predict_table("sample:50", tmp_path / f"out{suffix}", "Production")
    assert (outcome.answered, outcome.failed) == (50, 0)
    found = pd.read_csv(outcome.output) if suffix == ".csv" else pd.read_parquet(outcome.output)
    assert found["ipst"].tolist() == draw_sample(50)["ipst"].tolist()


def test_a_training_is_predicted_by_its_folder(tmp_path):
    jobs = draw_sample(20)
    (tmp_path / "2021-11-04-1636048291" / "data").mkdir(parents=True)
    jobs.to_csv(tmp_path / "2021-11-04-1636048291" / "data" / "latest.csv", index=False)
    outcome = predict_table(str(tmp_path / "2021-11-04-1636048291"), tmp_path / "out.csv", "Production")
    assert pd.read_csv(outcome.output)["ipst"].tolist() == jobs["ipst"].tolist()


def test_parquet_files_of_a_folder_are_predicted(tmp_path):
    jobs = draw_sample(20)
    (tmp_path / "jobs").mkdir()
    jobs.to_parquet(tmp_path / "jobs" / "part-0.parquet")
    outcome = predict_table(str(tmp_path / "jobs"), tmp_path / "out.csv", "Production")
    assert pd.read_csv(outcome.output)["ipst"].tolist() == jobs["ipst"].tolist()


@pytest.mark.parametrize("data", ["ftp://host/jobs.csv", "sample:none", "nothing-there"])
def test_what_cannot_be_read_is_named(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=data.partition(":")[0]):
        predict_table(data, tmp_path / "out.csv", "Production")
    assert not (tmp_path / "out.csv").exists()
