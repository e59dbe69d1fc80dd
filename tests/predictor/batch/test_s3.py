"""Many jobs from S3 and to S3, against the embedded store."""

import io
import logging
import uuid
from pathlib import Path

import pandas as pd
import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch import predict_many
from calmlflow.predictor.batch import s3 as many_s3
from calmlflow.runs.predict import predict_table
from tests.samples.batch_samples import CONTROL_ROWS, answering, answers_one_by_one, assert_same

TABLE = pd.DataFrame(CONTROL_ROWS)


@pytest.fixture
def bucket(s3, tmp_path, monkeypatch):
    """A new bucket, and a cache of this test's own."""
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    name = f"many-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def predictor(tmp_path):
    return answering(tmp_path)


def read(s3, bucket, key):
    content = io.BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    return pd.read_parquet(content) if key.endswith(".parquet") else pd.read_csv(content)


def keys_of(s3, bucket):
    return sorted(item["Key"] for item in s3.list_objects_v2(Bucket=bucket).get("Contents", ()))


def put_control_file(s3, bucket, row, content=None):
    lines = [f"{key}={value}\n" for key, value in row.items() if key != "ipst" and value is not None]
    name = row["ipst"].lower()
    body = "".join(lines).encode() if content is None else content
    s3.put_object(Bucket=bucket, Key=f"control/{name}/{name}_MemModelFeatures.txt", Body=body)


def cached(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_in_s3_becomes_one_in_s3(s3, bucket, predictor, tmp_path, suffix):
    content = TABLE.to_csv(index=False).encode() if suffix == ".csv" else TABLE.to_parquet()
    s3.put_object(Bucket=bucket, Key=f"in/jobs{suffix}", Body=content)
    s3.put_object(Bucket=bucket, Key="out/answers.errors.csv", Body=b"of an earlier call")
    outcome = predict_many(predictor, f"s3://{bucket}/in/jobs{suffix}", f"s3://{bucket}/out/answers{suffix}")
    assert (outcome.output, outcome.errors) == (f"s3://{bucket}/out/answers{suffix}", None)
    assert_same(read(s3, bucket, f"out/answers{suffix}"), answers_one_by_one(predictor, CONTROL_ROWS))
    assert keys_of(s3, bucket) == [f"in/jobs{suffix}", f"out/answers{suffix}"]
    # Neither copies nor parts stay.
    assert cached(tmp_path) == []


def test_control_files_are_read_and_the_bad_ones_told(s3, bucket, predictor, monkeypatch):
    monkeypatch.setattr(many_s3, "_PIECE_OBJECTS", 3)
    rows = sorted((row for row in CONTROL_ROWS if row["n_files"]), key=lambda row: row["ipst"].lower())
    for row in rows:
        put_control_file(s3, bucket, row)
    # No network covers a mosaic, so its file is not looked at.
    put_control_file(s3, bucket, {"ipst": "acs_8ph_01"}, b"\xff")
    put_control_file(s3, bucket, {"ipst": "jbad00010"}, b"n_files 17")
    put_control_file(s3, bucket, {"ipst": "jbad00020", "n_files": 0, "total_mb": 1})
    put_control_file(s3, bucket, {"ipst": "jbad00030"}, b"#" * 70_000)
    for other in ("control/jabc03020/jabc03020_Other.txt", "control/a/b_MemModelFeatures.txt", "outputs/x.txt"):
        s3.put_object(Bucket=bucket, Key=other, Body=b"n_files=1")
    for uri in (f"s3://{bucket}/control/", f"s3://{bucket}"):
        outcome = predict_many(predictor, uri, f"s3://{bucket}/answers.csv")
        assert (outcome.answered, outcome.failed) == (len(rows), 3)
        assert_same(read(s3, bucket, "answers.csv"), answers_one_by_one(predictor, rows))
        errors = read(s3, bucket, "answers.errors.csv")
        assert list(errors)[:4] == ["row", "reason", "ipst", "n_files"]
        assert errors["ipst"].tolist() == ["jbad00010", "jbad00020", "jbad00030"]
        found = zip(errors["reason"], ("is not key=value", "n_files is '0'", "has 70000 bytes"), strict=True)
        assert all(words in reason for reason, words in found)
    outcome = predict_many(predictor, f"s3://{bucket}/control/o", f"s3://{bucket}/some.csv")
    assert read(s3, bucket, "some.csv")["ipst"].tolist() == ["oabc06090"]


class Stop(BaseException):
    """Something that nobody catches."""


@pytest.mark.parametrize("change", ["nothing", "a control file", "a new one"])
def test_control_files_are_gone_on_with_unless_they_have_changed(
    s3, bucket, predictor, tmp_path, monkeypatch, caplog, change
):
    monkeypatch.setattr(many_s3, "_PIECE_OBJECTS", 10)
    rows = draw_sample(35).assign(CRSPLIT=1)[["ipst", "n_files", "total_mb", "CRSPLIT"]].sort_values("ipst")
    for row in rows.to_dict("records"):
        put_control_file(s3, bucket, row)

    def stop(done, total):
        assert total == 35
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        predict_many(predictor, f"s3://{bucket}/control/", tmp_path / "out.csv", on_progress=stop)
    if change == "a control file":
        put_control_file(s3, bucket, {**rows.iloc[0], "n_files": 77})
    if change == "a new one":
        put_control_file(s3, bucket, {**rows.iloc[0], "ipst": "j00000000"})
    read_objects = []
    original = many_s3._read_control_file
    monkeypatch.setattr(many_s3, "_read_control_file", lambda *given: read_objects.append(given) or original(*given))
    with caplog.at_level(logging.WARNING):
        outcome = predict_many(predictor, f"s3://{bucket}/control/", tmp_path / "out.csv")
    if change == "nothing":
        assert (outcome.kept, len(read_objects)) == (20, 15)
        assert pd.read_csv(outcome.output)["ipst"].tolist() == rows["ipst"].tolist()
    else:
        assert outcome.kept == 0
        assert "another input" in caplog.text
        assert outcome.answered == len(read_objects) == 35 + (change == "a new one")


def test_a_control_file_that_is_gone_is_one_row_and_a_store_that_is_gone_stops(
    s3, bucket, predictor, tmp_path, monkeypatch
):
    monkeypatch.setattr(many_s3, "_PIECE_OBJECTS", 1)
    rows = sorted((row for row in CONTROL_ROWS if row["n_files"]), key=lambda row: row["ipst"].lower())
    for row in rows:
        put_control_file(s3, bucket, row)

    def remove(done, total):
        name = rows[done]["ipst"].lower() if done < total else ""
        s3.delete_object(Bucket=bucket, Key=f"control/{name}/{name}_MemModelFeatures.txt")

    with pytest.raises(Stop):
        predict_many(predictor, f"s3://{bucket}/control/", tmp_path / "out.csv", on_progress=_stopping(remove, 2))
    for row in rows:
        put_control_file(s3, bucket, row)
    outcome = predict_many(predictor, f"s3://{bucket}/control/", tmp_path / "other.csv", on_progress=remove)
    # The one before each was there; the first one is a mosaic, which needs none.
    assert outcome.failed == len(rows) - 1
    assert "NoSuchKey" in pd.read_csv(outcome.errors)["reason"][0]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(CalmlflowError, match=f"s3://{bucket}/control/ cannot be listed") as caught:
        predict_many(predictor, f"s3://{bucket}/control/", tmp_path / "out.csv")
    assert "secret" not in str(caught.value)
    assert (tmp_path / ".out.csv.parts" / "journal").exists()


def _stopping(first, parts):
    calls = []

    def on_progress(done, total):
        calls.append(done)
        first(done, total)
        if len(calls) == parts:
            raise Stop

    return on_progress


@pytest.mark.parametrize(
    ("data", "output", "words"),
    [
        ("s3://{bucket}/none.csv", "out.csv", "none.csv cannot be read .404."),
        ("s3://{bucket}/control/", "out.csv", "there is no control file under s3://"),
        (
            "s3://no-such-bucket-here/control/",
            "out.csv",
            "no-such-bucket-here/control/ cannot be listed .NoSuchBucket.",
        ),
        ("s3://No_Bucket/control/", "out.csv", "'No_Bucket' is no bucket's name"),
        ("s3://{bucket}/in.csv", "s3://{bucket}/in.csv", "is input and output"),
        ("s3://{bucket}/in.csv", "s3://{bucket}/out.txt", "expected .csv or .parquet"),
        ("s3://{bucket}/in.csv", "s3://no-such-bucket-here/out.csv", "no-such-bucket-here/out.csv cannot be written"),
        ("s3://{bucket}/broken.parquet", "out.csv", "s3://.*/broken.parquet cannot be read"),
    ],
)
def test_what_s3_does_not_have_is_named(s3, bucket, predictor, tmp_path, data, output, words):
    s3.put_object(Bucket=bucket, Key="in.csv", Body=TABLE.to_csv(index=False).encode())
    s3.put_object(Bucket=bucket, Key="broken.parquet", Body=b"PAR1")
    output = output.format(bucket=bucket)
    with pytest.raises(InputError, match=words):
        predict_many(predictor, data.format(bucket=bucket), output if output.startswith("s3:") else tmp_path / output)
    assert keys_of(s3, bucket) == ["broken.parquet", "in.csv"]
    assert cached(tmp_path) == []
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_the_entry_point_s_way_from_s3_to_s3(trained, s3, bucket):
    for row in CONTROL_ROWS[2:4]:
        put_control_file(s3, bucket, row)
    outcome = predict_table(f"s3://{bucket}/control/", f"s3://{bucket}/answers.parquet", "Production")
    assert read(s3, bucket, "answers.parquet")["ipst"].tolist() == ["iabc01xyq", "oabc06090"]
    assert outcome.version == "1"
    assert not Path("s3:").exists()
