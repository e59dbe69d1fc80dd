"""Interrupted at any moment, a prediction of many jobs goes on where it stopped, and never leaves half an output."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch import predict_many
from tests.samples.batch_samples import answering, assert_same, leftovers

ROOT = Path(__file__).parents[3]
ROWS, PIECE = 1000, 100


@pytest.fixture
def predictor(tmp_path):
    return answering(tmp_path)


@pytest.fixture(params=[".csv", ".parquet"])
def data(tmp_path, request):
    """A thousand jobs of which some are wrong."""
    jobs = draw_sample(ROWS).astype({"n_files": object})
    jobs.loc[[3, 150, 777], "n_files"] = -1
    jobs = jobs.astype({"n_files": int})
    path = tmp_path / f"in{request.param}"
    if request.param == ".csv":
        jobs.to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pandas(jobs), path, row_group_size=330)
    return path


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    from calmlflow.predictor.batch import csv_source as many_csv

    monkeypatch.setattr(many_csv, "_BLOCK_BYTES", 6_000)


class Stop(BaseException):
    """Something that nobody catches."""


def stop_after(parts):
    """Ends a prediction once so many parts are done."""
    calls = []

    def on_progress(done, total):
        calls.append(done)
        if len(calls) == parts:
            raise Stop

    return on_progress


def whole(predictor, data, folder):
    """What comes of it when nobody interrupts."""
    (folder / "whole").mkdir()
    outcome = predict_many(predictor, data, folder / "whole" / "out.csv", chunk_rows=PIECE)
    return pd.read_csv(outcome.output), Path(outcome.errors).read_text()


def interrupted(predictor, data, output, parts=4, **options):
    with pytest.raises(Stop):
        predict_many(predictor, data, output, on_progress=stop_after(parts), **{"chunk_rows": PIECE, **options})


def test_what_was_interrupted_goes_on(tmp_path, predictor, data):
    output = tmp_path / "out.csv"
    output.write_text("of last month")
    expected, errors = whole(predictor, data, tmp_path)
    for _ in range(2):
        interrupted(predictor, data, output)
        assert output.read_text() == "of last month"
        assert leftovers(tmp_path) == [".out.csv.parts"]
    seen = []
    outcome = predict_many(predictor, data, output, chunk_rows=PIECE, on_progress=lambda *count: seen.append(count))
    assert 0 < outcome.kept < seen[0][0]
    assert len(seen) < 5
    assert seen[-1] == (ROWS, None if data.suffix == ".csv" else ROWS)
    assert f"; {outcome.kept:,} rows were done before" in str(outcome)
    assert (outcome.answered, outcome.failed) == (ROWS - 3, 3)
    assert_same(pd.read_csv(output), expected)
    assert Path(outcome.errors).read_text() == errors
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: {"predictor": answering(folder, "4")}, "by version 3, not 4"),
        # Another registry, which counts from 1 too.
        (lambda folder: {"predictor": answering(folder, "3", seed=1)}, "another bundle"),
        (lambda folder: {"chunk_rows": PIECE + 1}, "another chunk_rows"),
        (lambda folder: os.utime(folder / "in.parquet", (1, 1)) or {}, "another input"),
    ],
)
@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_parts_of_another_prediction_are_not_gone_on_with(tmp_path, predictor, data, change, words, caplog):
    interrupted(predictor, data, tmp_path / "out.parquet")
    changed = {"predictor": predictor, "chunk_rows": PIECE, **change(tmp_path)}
    expected, _ = whole(changed["predictor"], data, tmp_path)
    with caplog.at_level(logging.WARNING):
        outcome = predict_many(data=data, output=tmp_path / "out.parquet", **changed)
    assert f"({words}); beginning anew" in caplog.text
    assert outcome.kept == 0
    assert_same(pd.read_parquet(outcome.output), expected)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda parts: None, 4),
        # Killed while the last line was written.
        (lambda parts: cut(parts / "journal", -30), 3),
        (lambda parts: cut(parts / "journal", -1), 3),
        (lambda parts: (parts / "000002.arrow").unlink(), 2),
        (lambda parts: cut(parts / "000001.arrow", 100), 1),
        (lambda parts: (parts / "000001.csv").write_text("4,because,,\n"), 1),
        (lambda parts: (parts / "journal").write_text("no journal\n"), 0),
        (lambda parts: (parts / "journal").write_bytes(b"\xff\n"), 0),
        (lambda parts: (parts / "journal").write_text("[]\n[]\n"), 0),
        (lambda parts: (parts / "journal").write_text('{"input": 3}\n'), 0),
        (lambda parts: (parts / "journal").unlink(), 0),
    ],
)
@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_only_parts_that_are_whole_are_kept(tmp_path, predictor, data, damage, kept):
    expected, errors = whole(predictor, data, tmp_path)
    interrupted(predictor, data, tmp_path / "out.csv")
    damage(tmp_path / ".out.csv.parts")
    outcome = predict_many(predictor, data, tmp_path / "out.csv", chunk_rows=PIECE)
    assert outcome.kept == kept * PIECE
    assert_same(pd.read_csv(outcome.output), expected)
    assert Path(outcome.errors).read_text() == errors
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_a_missing_input_does_not_cost_the_parts(tmp_path, predictor, data):
    interrupted(predictor, data, tmp_path / "out.csv")
    data.rename(tmp_path / "away")
    with pytest.raises(CalmlflowError, match="does not exist"):
        predict_many(predictor, data, tmp_path / "out.csv", chunk_rows=PIECE)
    (tmp_path / "away").rename(data)
    assert predict_many(predictor, data, tmp_path / "out.csv", chunk_rows=PIECE).kept == 4 * PIECE


def test_batches_go_on_only_if_the_caller_says_that_they_are_the_same(tmp_path, predictor):
    batches = pa.Table.from_pandas(draw_sample(ROWS)).to_batches()
    for identity, kept in ((None, 0), ("sample:1000", 4 * PIECE)):
        interrupted(predictor, batches, tmp_path / "out.csv", identity=identity)
        outcome = predict_many(predictor, batches, tmp_path / "out.csv", identity=identity, chunk_rows=PIECE)
        assert (outcome.kept, outcome.answered) == (kept, ROWS)


@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_of_two_at_once_the_second_is_told(tmp_path, predictor, data):
    refused = []

    def second(done, total):
        with pytest.raises(CalmlflowError, match=r"out\.csv is being written by another process") as caught:
            predict_many(predictor, data, tmp_path / "out.csv", chunk_rows=PIECE)
        refused.append(str(caught.value))

    outcome = predict_many(predictor, data, tmp_path / "out.csv", chunk_rows=PIECE, on_progress=second)
    assert len(refused) == 10
    # Another output is another matter.
    assert outcome.answered == predict_many(predictor, data, tmp_path / "out.parquet").answered
    assert leftovers(tmp_path) == []


# -- Killed ---------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tests.samples.batch_samples import answering
from calmlflow.predictor.batch import predict_many

folder, data, ending = Path({folder!r}), {data!r}, {ending!r}
predictor = answering(folder)
left = int({left!r})

def count(event, arguments):
    # File operations below the folder, one after the other.
    global left
    path = str(arguments[0]) if arguments else ""
    events = "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir"
    if event in events and path.startswith(str(folder)):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
print(predict_many(predictor, data, folder / ("out" + ending), chunk_rows=250), flush=True)
"""


def child(folder, data, left, ending=".csv"):
    words = {"tests": str(ROOT / "tests"), "folder": str(folder), "data": str(data), "ending": ending, "left": left}
    code = CHILD.format(**words)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def check_after_kill(predictor, data, folder, expected, errors):
    """The output is as it was or whole; called again, it is finished."""
    output = folder / "out.csv"
    found = output.read_text()
    if found != "of last month":
        assert_same(pd.read_csv(output), expected)
    outcome = predict_many(predictor, data, output, chunk_rows=250)
    assert_same(pd.read_csv(output), expected)
    assert Path(outcome.errors).read_text() == errors
    assert leftovers(folder) == []


@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_a_killed_process_is_gone_on_with(tmp_path, predictor, data):
    expected, errors = whole(predictor, data, tmp_path)
    (tmp_path / "out.csv").write_text("of last month")
    # Somewhere among the parts.
    done = child(tmp_path, data, 15)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert leftovers(tmp_path) == [".out.csv.parts"]
    lines = (tmp_path / ".out.csv.parts" / "journal").read_text().splitlines()
    assert 2 <= len(lines) <= 4
    assert json.loads(lines[1])["last"] == 250
    check_after_kill(predictor, data, tmp_path, expected, errors)


@pytest.mark.slow
@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_killed_at_any_file_operation_it_is_gone_on_with(tmp_path, predictor, data):
    expected, errors = whole(predictor, data, tmp_path)
    for left in range(1, 200):
        (tmp_path / "out.csv").write_text("of last month")
        done = child(tmp_path, data, left)
        if done.returncode == 0:
            assert left > 20
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        check_after_kill(predictor, data, tmp_path, expected, errors)
    pytest.fail("the child never came to its end")


# -- A full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("limit", [300, 5_000, 30_000])
@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_a_file_that_may_not_grow_is_told_and_breaks_nothing(tmp_path, predictor, data, ending, limit):
    """Parts of 250 rows have some 20 kB, and all answers as CSV some 80 kB."""
    expected, _ = whole(predictor, data, tmp_path)
    output = tmp_path / f"out{ending}"
    output.write_text("of last month")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CalmlflowError, match=rf"out\{ending} cannot be written \(File too large\)") as caught:
            predict_many(predictor, data, output, chunk_rows=250)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert output.read_text() == "of last month"
    outcome = predict_many(predictor, data, output, chunk_rows=250)
    assert outcome.kept == (ROWS if limit == 30_000 else 0)
    assert_same(pd.read_csv(output) if ending == ".csv" else pd.read_parquet(output), expected)
    assert leftovers(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 kB, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("data", [".parquet"], indirect=True)
def test_a_full_disk_is_told_and_what_is_done_is_kept(predictor, data, small_disk, tmp_path):
    expected, errors = whole(predictor, data, tmp_path)
    (small_disk / "out.csv").write_text("of last month")
    with pytest.raises(CalmlflowError, match=r"out\.csv cannot be written \(No space left on device\)"):
        predict_many(predictor, data, small_disk / "out.csv", chunk_rows=PIECE)
    assert (small_disk / "out.csv").read_text() == "of last month"
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    outcome = predict_many(predictor, data, small_disk / "out.csv", chunk_rows=PIECE)
    assert outcome.kept > 0
    assert_same(pd.read_csv(outcome.output), expected)
    assert Path(outcome.errors).read_text() == errors
    assert leftovers(small_disk) == []
