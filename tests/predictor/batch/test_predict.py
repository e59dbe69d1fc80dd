"""Many jobs: the answers of one by one, in order, and every row accounted for, from every input to every output."""

import io
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch import predict_many
from calmlflow.predictor.predictor import Serving
from tests.samples.batch_samples import COLUMNS, CONTROL_ROWS, answers_one_by_one, assert_same, serving_bundle

TABLE = pd.DataFrame(CONTROL_ROWS)


@pytest.fixture
def serving(tmp_path):
    return serving_bundle(tmp_path)


def as_csv(folder, table):
    table.to_csv(folder / "in.csv", index=False)
    return folder / "in.csv"


def as_parquet(folder, table):
    pq.write_table(pa.Table.from_pandas(table), folder / "in.parquet", row_group_size=3)
    return folder / "in.parquet"


def as_folder(folder, table):
    (folder / "in" / "b").mkdir(parents=True)
    table[:2].to_parquet(folder / "in" / "a.parquet")
    table[2:2].to_parquet(folder / "in" / "a0.parquet")
    # Another order of columns, as files of different months may have.
    table[2:][table.columns[::-1]].to_parquet(folder / "in" / "b" / "a.parquet")
    return folder / "in"


def as_batches(folder, table):
    return iter(pa.Table.from_pandas(table).to_batches(max_chunksize=2))


FORMS = [as_csv, as_parquet, as_folder, lambda folder, table: table, as_batches]


def read(path):
    return pd.read_parquet(path) if str(path).endswith(".parquet") else pd.read_csv(path)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- Right rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_answers_of_one_by_one(tmp_path, serving, form, suffix, rows):
    done = []
    options = {"chunk_rows": rows, "on_progress": lambda *counts: done.append(counts)}
    outcome = predict_many(serving, form(tmp_path, TABLE), tmp_path / f"out{suffix}", **options)
    assert (outcome.answered, outcome.failed, outcome.errors, outcome.version) == (7, 0, None, "3")
    assert str(outcome) == f"7 jobs answered by version 3: {tmp_path / 'out'}{suffix}"
    assert_same(read(outcome.output), answers_one_by_one(serving, CONTROL_ROWS))
    assert done[-1] == (7, None if form in (as_csv, as_batches) else 7)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".") or "errors" in path.name] == []


def test_the_columns_of_both_kinds_of_output(tmp_path, serving):
    for suffix in (".csv", ".parquet"):
        predict_many(serving, TABLE, tmp_path / f"out{suffix}")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[2] == "skycell-p0797x14y06,1,7.16,43200,259200,0,1,0,0,0,0,0,0"
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == COLUMNS
    kinds = [str(kind) for kind in table.schema.types]
    assert kinds == ["string", "int64", "double", "double", "int64", *["float"] * 4, *["int64"] * 4]


def test_features_and_control_keys_agree(tmp_path, serving):
    features = [
        [np.nan] * 9 if parse_dataset(row["ipst"]).is_hap else job_features(row["ipst"], row) for row in CONTROL_ROWS
    ]
    by_features = pd.DataFrame(features, columns=FEATURES).assign(ipppssoot=TABLE["ipst"])
    # Unrounded, as the oldest records have it.
    by_features["total_mb"] += 0.4
    for name, table in (("keys", TABLE), ("features", by_features)):
        predict_many(serving, table, tmp_path / f"{name}.csv")
    assert (tmp_path / "features.csv").read_text() == (tmp_path / "keys.csv").read_text()


def test_rows_with_odd_switches_are_counted_and_the_first_is_named(tmp_path, serving, caplog):
    table = TABLE.assign(SUBARRAY="F", DRIZCORR="PERFORM").fillna({"DETECTOR": "NUV"})
    table.loc[[0, 6], "DRIZCORR"] = "PERFROM"
    outcome = predict_many(serving, table, tmp_path / "out.csv", chunk_rows=2)
    # The networks of the sample say a terabyte of every job.
    (sentence, rows), (beyond, _) = outcome.warnings.items()
    assert (outcome.answered, rows, sentence.partition(";")[0]) == (7, 2, "DRIZCORR is 'PERFROM' and counts as 0")
    assert caplog.messages[-1] == f"2 rows, the first is jabc03020: {sentence}"
    assert caplog.messages[0] == f"5 rows, the first is jabc03020: {beyond}"
    assert beyond.startswith("The memory is beyond the largest rung, 64g with 57.344 GB")


def test_without_a_bundle_every_right_row_gets_the_policy(tmp_path):
    outcome = predict_many(Serving(None, None, "policy"), TABLE, tmp_path / "out.csv")
    assert (outcome.answered, outcome.version) == (7, "policy")
    assert set(read(outcome.output)["bin_pred"]) == {1}


# -- Wrong rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_row_goes_to_the_errors_with_number_reason_and_cells(tmp_path, serving, form, rows):
    wrong = TABLE.assign(note=[f'note {number}, "so"' for number in range(7)], row="x", reason="y")
    wrong.loc[2, "total_mb"] = -1
    wrong.loc[5, "ipst"] = None
    outcome = predict_many(serving, form(tmp_path, wrong), tmp_path / "out.parquet", chunk_rows=rows)
    assert (outcome.answered, outcome.failed, outcome.errors) == (5, 2, str(tmp_path / "out.errors.csv"))
    assert str(outcome).endswith(f"; 2 rows could not be answered: {tmp_path / 'out.errors.csv'}")
    assert_same(read(outcome.output), answers_one_by_one(serving, [CONTROL_ROWS[n] for n in (0, 1, 3, 4, 6)]))
    found = pd.read_csv(outcome.errors)
    # Columns that an earlier call has added are not passed on.
    assert list(found) == ["row", "reason", *TABLE.columns, "note"]
    assert found["row"].tolist() == [3, 6]
    assert found["note"].tolist() == ['note 2, "so"', 'note 5, "so"']
    assert found["SUBARRAY"][0] == "T"
    assert found["reason"][0].startswith("oabc06090: total_mb is '-1")
    assert "is no dataset name" in found["reason"][1]


def test_lines_with_a_wrong_number_of_cells_are_rows_that_cannot_be_answered(tmp_path, serving):
    lines = (
        "ipst,n_files,total_mb,note",
        "jabc03020,17,9.6,a",
        "labc05010,3,2.3",
        "iabc01xyq,2,4,a",
        "oabc06090,7,1,a,b",
    )
    (tmp_path / "in.csv").write_text("\n".join(lines))
    outcome = predict_many(serving, tmp_path / "in.csv", tmp_path / "out.csv")
    assert read(outcome.output)["ipst"].tolist() == ["jabc03020", "iabc01xyq"]
    errors = pd.read_csv(outcome.errors)
    assert errors["row"].tolist() == [2, 4]
    assert errors["ipst"].tolist() == ["labc05010", "oabc06090"]
    assert "has 3 cells; expected 4" in errors["reason"][0]


def test_mended_errors_can_be_sent_again_and_errors_of_an_earlier_call_go(tmp_path, serving):
    table = TABLE.assign(n_files=[0, 0, 7, 2, 3, 3, 17])
    outcome = predict_many(serving, table, tmp_path / "out.csv")
    pd.read_csv(outcome.errors).assign(n_files=17).to_csv(tmp_path / "mended.csv", index=False)
    again = predict_many(serving, tmp_path / "mended.csv", tmp_path / "again.csv")
    assert_same(read(again.output), answers_one_by_one(serving, CONTROL_ROWS[:1]))
    assert predict_many(serving, TABLE, tmp_path / "out.csv").errors is None
    assert not Path(outcome.errors).exists()


# -- Nothing is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"n_files": [1], "total_mb": [1]}), "has no column ipst or ipppssoot"),
        (pd.DataFrame({"ipst": ["zabc03020"], "n_files": [1], "total_mb": [1]}), "first reason: dataset 'zabc03020'"),
        (pd.DataFrame({"ipst": [], "n_files": [], "total_mb": []}), "no rows"),
        (5, "cannot be read from int"),
        ([{"ipst": "j8c601020"}], "cannot be read from list of dict"),
        ([], "has no rows"),
        ("none.csv", "none.csv does not exist"),
    ],
)
def test_an_input_that_cannot_be_answered_is_named_and_leaves_nothing(tmp_path, serving, table, words):
    before = files(tmp_path)
    with pytest.raises(InputError, match=words):
        predict_many(serving, table, tmp_path / "out.csv")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("data", "output", "words"),
    [
        ("in.csv", "out.xlsx", "ends in '.xlsx'; expected .csv or .parquet"),
        ("in.csv", "in.csv", "would be written over the input"),
        ("out.errors.csv", "out.csv", "out.errors.csv would be written over the input"),
        ("in", "in/out.parquet", "would be written over the input"),
        ("in.csv", "in.parquet/out.csv", "cannot be written"),
        ("in.csv", "folder.csv", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_used_is_named_and_nothing_changes(tmp_path, serving, data, output, words):
    for form in (as_csv, as_parquet, as_folder):
        form(tmp_path, TABLE)
    (tmp_path / "folder.csv").mkdir()
    TABLE.to_csv(tmp_path / "out.errors.csv", index=False)
    before = files(tmp_path)
    with pytest.raises(CalmlflowError, match=words):
        predict_many(serving, tmp_path / data, tmp_path / output)
    assert files(tmp_path) == before


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_interrupted_leaves_the_earlier_output_whole(tmp_path, serving, suffix):
    wrong = TABLE.assign(n_files=[0, 0, 7, 2, 3, 3, 17])
    predict_many(serving, wrong, tmp_path / f"out{suffix}")
    before = files(tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_many(serving, wrong[::-1], tmp_path / f"out{suffix}", chunk_rows=2, on_progress=stop)
    assert files(tmp_path) == before


# -- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3):
    name = f"many-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def read_object(s3, bucket, key):
    content = io.BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    return pd.read_parquet(content) if key.endswith(".parquet") else pd.read_csv(content)


def keys_of(s3, bucket):
    return sorted(item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", ()))


def put_control_file(s3, bucket, row, content=None):
    lines = [f"{key}={value}\n" for key, value in row.items() if key != "ipst" and value is not None]
    name = row["ipst"].lower()
    body = "".join(lines).encode() if content is None else content
    s3.put_object(Bucket=bucket, Key=f"control/{name}/{name}_MemModelFeatures.txt", Body=body)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_in_s3_becomes_one_in_s3(s3, bucket, serving, suffix):
    content = TABLE.to_csv(index=False).encode() if suffix == ".csv" else TABLE.to_parquet()
    s3.put_object(Bucket=bucket, Key=f"in/jobs{suffix}", Body=content)
    s3.put_object(Bucket=bucket, Key="out/answers.errors.csv", Body=b"of an earlier call")
    outcome = predict_many(serving, f"s3://{bucket}/in/jobs{suffix}", f"s3://{bucket}/out/answers{suffix}")
    assert (outcome.output, outcome.errors) == (f"s3://{bucket}/out/answers{suffix}", None)
    assert_same(read_object(s3, bucket, f"out/answers{suffix}"), answers_one_by_one(serving, CONTROL_ROWS))
    assert keys_of(s3, bucket) == [f"in/jobs{suffix}", f"out/answers{suffix}"]


def test_control_files_are_read_by_prefix_and_bad_ones_listed(s3, bucket, serving):
    rows = sorted((row for row in CONTROL_ROWS if row["n_files"]), key=lambda row: row["ipst"].lower())
    for row in rows:
        put_control_file(s3, bucket, row)
    # The file of a mosaic is not read.
    put_control_file(s3, bucket, {"ipst": "acs_8ph_01"}, b"\xff")
    put_control_file(s3, bucket, {"ipst": "jbad00010"}, b"n_files 17")
    put_control_file(s3, bucket, {"ipst": "jbad00020", "n_files": 0, "total_mb": 1})
    put_control_file(s3, bucket, {"ipst": "jbad00030"}, b"#" * 70_000)
    for other in ("control/jabc03020/jabc03020_Other.txt", "control/a/b_MemModelFeatures.txt", "outputs/x.txt"):
        s3.put_object(Bucket=bucket, Key=other, Body=b"n_files=1")
    for uri, size in ((f"s3://{bucket}/control/", 3), (f"s3://{bucket}", 1000)):
        outcome = predict_many(serving, uri, f"s3://{bucket}/answers.csv", chunk_rows=size)
        assert (outcome.answered, outcome.failed) == (len(rows), 3)
        assert_same(read_object(s3, bucket, "answers.csv"), answers_one_by_one(serving, rows))
        errors = read_object(s3, bucket, "answers.errors.csv")
        assert list(errors)[:4] == ["row", "reason", "ipst", "n_files"]
        assert errors["row"].tolist() == [4, 5, 6]
        assert errors["ipst"].tolist() == ["jbad00010", "jbad00020", "jbad00030"]
        found = zip(errors["reason"], ("is not key=value", "n_files is '0'", "has 70000 bytes"), strict=True)
        assert all(words in reason for reason, words in found)
    predict_many(serving, f"s3://{bucket}/control/o", f"s3://{bucket}/some.csv")
    assert read_object(s3, bucket, "some.csv")["ipst"].tolist() == ["oabc06090"]


def test_a_control_file_that_is_gone_is_one_row(s3, bucket, serving, tmp_path):
    jobs = draw_sample(20)[["ipst", "n_files", "total_mb"]].sort_values("ipst").to_dict("records")
    for row in jobs:
        put_control_file(s3, bucket, row)

    def remove(done, total):
        s3.delete_object(Bucket=bucket, Key=f"control/{jobs[-1]['ipst']}/{jobs[-1]['ipst']}_MemModelFeatures.txt")

    outcome = predict_many(serving, f"s3://{bucket}/control/", tmp_path / "out.csv", chunk_rows=5, on_progress=remove)
    assert (outcome.answered, outcome.failed) == (19, 1)
    assert "NoSuchKey" in pd.read_csv(outcome.errors)["reason"][0]


@pytest.mark.parametrize(
    ("data", "output", "words"),
    [
        ("s3://{bucket}/none.csv", "out.csv", "none.csv cannot be read"),
        ("s3://{bucket}/control/", "out.csv", "there is no control file under s3://"),
        ("s3://{bucket}/in.csv", "s3://{bucket}/in.csv", "would be written over the input"),
    ],
)
def test_a_place_in_s3_that_cannot_be_used_is_named(s3, bucket, serving, tmp_path, data, output, words):
    s3.put_object(Bucket=bucket, Key="in.csv", Body=TABLE.to_csv(index=False).encode())
    output = output.format(bucket=bucket)
    with pytest.raises(InputError, match=words):
        predict_many(serving, data.format(bucket=bucket), output if output.startswith("s3:") else tmp_path / output)
    assert keys_of(s3, bucket) == ["in.csv"]
    assert not list(tmp_path.glob("*out*"))
