"""Every form of input and output gives the same answers, in order, with every row accounted for."""

import csv
import io
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.predictor.batch import answers as many_answers
from calmlflow.predictor.batch import csv_source as many_csv
from calmlflow.predictor.batch import predict_many
from calmlflow.predictor.batch.sources import open_local
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.predictor import Serving
from tests.samples.batch_samples import COLUMNS, CONTROL_ROWS, answering, answers_one_by_one, assert_same, leftovers

TABLE = pd.DataFrame(CONTROL_ROWS)


@pytest.fixture
def predictor(tmp_path):
    return answering(tmp_path)


def as_csv(folder):
    TABLE.to_csv(folder / "in.csv", index=False)
    return folder / "in.csv"


def as_parquet(folder):
    pq.write_table(pa.Table.from_pandas(TABLE), folder / "in.parquet", row_group_size=3)
    return folder / "in.parquet"


def as_folder(folder):
    (folder / "in" / "b").mkdir(parents=True)
    TABLE[:2].to_parquet(folder / "in" / "a.parquet")
    TABLE[2:2].to_parquet(folder / "in" / "a0.parquet")
    # Of other columns, as files of different months may be.
    TABLE[2:6].drop(columns="PCTECORR").to_parquet(folder / "in" / "b" / "a.PARQUET")
    TABLE[6:].to_parquet(folder / "in" / "c.parquet")
    (folder / "in" / "_metadata.parquet").write_text("no table")
    (folder / "in" / ".old.parquet").write_text("no table")
    (folder / "in" / "README").write_text("no table")
    return folder / "in"


def as_batches(folder):
    return pa.Table.from_pandas(TABLE).to_batches(max_chunksize=2)


def read(path):
    return pd.read_parquet(path) if str(path).endswith(".parquet") else pd.read_csv(path)


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("form", [as_csv, as_parquet, as_folder, as_batches])
def test_every_form_gives_what_jobs_get_one_by_one(tmp_path, predictor, form, suffix, rows):
    data = form(tmp_path)
    expected = CONTROL_ROWS
    if form is as_folder:
        expected = [{**row, "PCTECORR": None} if 2 <= number < 6 else row for number, row in enumerate(CONTROL_ROWS)]
    outcome = predict_many(predictor, data, tmp_path / f"out{suffix}", chunk_rows=rows)
    assert (outcome.answered, outcome.failed, outcome.errors, outcome.version, outcome.kept) == (7, 0, None, "3", 0)
    assert_same(read(outcome.output), answers_one_by_one(predictor, expected))
    assert leftovers(tmp_path) == []


def test_the_columns_of_both_kinds_of_output(tmp_path, predictor):
    for suffix in (".csv", ".parquet"):
        predict_many(predictor, as_csv(tmp_path), tmp_path / f"out{suffix}")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    # No quotation marks: names and numbers need none.
    assert lines[2] == "skycell-p0797x14y06,1,7.17,43200,259200,0,1,0,0"
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == COLUMNS
    kinds = [str(kind) for kind in table.schema.types]
    assert kinds == ["string", "int64", "double", "double", "int64", "float", "float", "float", "float"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), table.to_pandas(), check_dtype=False, rtol=1e-6)


def test_a_different_row_is_evaluated_once_across_pieces(tmp_path, predictor, monkeypatch):
    asked = []
    whole = Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda self, rows: asked.append(np.array(rows)) or whole(self, rows))
    jobs = draw_sample(3000)
    predict_many(predictor, pa.Table.from_pandas(jobs).to_batches(), tmp_path / "out.csv", chunk_rows=100)
    # The first call tells bundles apart.
    rows = np.concatenate(asked[1:])
    assert len(np.unique(rows, axis=0)) == len(rows) < 1500
    expected = whole(predictor.serving.bundle, jobs[list(many_answers.FEATURES)])
    np.testing.assert_allclose(read(tmp_path / "out.csv")["wall_pred"], expected["wall_pred"], rtol=1e-5)


def test_rows_that_are_forgotten_are_evaluated_again(tmp_path, predictor, monkeypatch):
    jobs = pa.Table.from_pandas(draw_sample(500)).to_batches()
    predict_many(predictor, jobs, tmp_path / "all.parquet", chunk_rows=50)
    monkeypatch.setattr(many_answers, "_MAX_KNOWN", 10)
    predict_many(predictor, jobs, tmp_path / "few.parquet", chunk_rows=50)
    assert_same(read(tmp_path / "few.parquet"), read(tmp_path / "all.parquet"))


def test_without_a_bundle_every_right_row_gets_the_policy(tmp_path, predictor):
    predictor.serving = Serving(None, None, "policy")
    rows = [*CONTROL_ROWS, {"ipst": "jabc03020", "n_files": 0, "total_mb": 1}]
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    outcome = predict_many(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (outcome.answered, outcome.failed, outcome.version) == (7, 1, "policy")
    found = read(outcome.output)
    assert found["kill_time"].tolist() == [7200, 259_200, 7200, 7200, 259_200, 7200, 7200]
    assert found["wall_pred"].tolist() == [1200, 43_200, 1200, 1200, 43_200, 1200, 1200]
    assert set(found["bin_pred"]) == {1}


def test_columns_of_a_network_that_the_bundle_lacks_are_empty(tmp_path, predictor):
    bundle = Bundle.load(tmp_path / "bundle-0", ["mem_reg"])
    predictor.serving = Serving(bundle, "4", "registry")
    predict_many(predictor, as_csv(tmp_path), tmp_path / "out.parquet")
    found = read(tmp_path / "out.parquet")
    assert found["mem_pred"].notna().all()
    # Mosaics have their policy all the same.
    for name in ("kill_time", "prob_2g"):
        assert found[name].isna().tolist() == [True, False, True, True, False, True, True]
    assert list(found) == COLUMNS


# -- Rows that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 1000])
@pytest.mark.parametrize("form", [as_csv, as_parquet, as_batches])
def test_wrong_rows_are_told_with_number_reason_and_cells(tmp_path, predictor, form, rows, monkeypatch):
    wrong = TABLE.assign(note=[f'note {number}, "so"' for number in range(7)], row="x", reason="y")
    wrong.loc[2, "total_mb"] = -1
    wrong.loc[5, "ipst"] = None
    monkeypatch.setitem(globals(), "TABLE", wrong)
    outcome = predict_many(predictor, form(tmp_path), tmp_path / "out.parquet", chunk_rows=rows)
    assert (outcome.answered, outcome.failed, outcome.errors) == (5, 2, str(tmp_path / "out.errors.csv"))
    assert read(outcome.output)["ipst"].tolist() == [
        "jabc03020", "skycell-p0797x14y06", "iabc01xyq", "acs_8ph_01", "jxyz03020"
    ]  # fmt: skip
    found = pd.read_csv(outcome.errors)
    # What an earlier call has added is not passed on.
    assert list(found) == ["row", "reason", *TABLE.columns.drop(["row", "reason"])]
    assert found["row"].tolist() == [3, 6]
    assert found["note"].tolist() == ['note 2, "so"', 'note 5, "so"']
    assert found["SUBARRAY"][0] == "T"
    assert found["reason"][0].startswith("oabc06090: total_mb is '-1")
    assert "is no dataset name" in found["reason"][1]


def test_mended_errors_can_be_sent_again(tmp_path, predictor):
    TABLE.assign(n_files=[0, 0, 7, 2, 3, 3, 17]).to_csv(tmp_path / "in.csv", index=False)
    outcome = predict_many(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    pd.read_csv(outcome.errors).assign(n_files=17).to_csv(outcome.errors, index=False)
    again = predict_many(predictor, outcome.errors, tmp_path / "again.csv")
    assert_same(read(again.output), answers_one_by_one(predictor, CONTROL_ROWS[:1]))


@pytest.mark.parametrize("block_bytes", [1, 30, 100, 1 << 22])
def test_lines_that_are_no_records_are_told_and_the_others_answered(tmp_path, predictor, block_bytes, monkeypatch):
    monkeypatch.setattr(many_csv, "_BLOCK_BYTES", max(block_bytes, 40))
    lines = [
        "ipst,n_files,total_mb,CRSPLIT,note",
        "jabc03020,17,9.6,NA,plain",
        "",
        "labc05010,3,2.3",
        'iabc01xyq,2,404.1,1,"two\nlines, ""quoted"""',
        "oabc06090,7,11.1,1,a,b",
        'iabc01xyz,2,404.1,1.0,5" wide',
    ]
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\njabc0302\xff,1,1,,\r\n")
    outcome = predict_many(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    rows = [
        {"ipst": "jabc03020", "n_files": 17, "total_mb": 9.6},
        {"ipst": "iabc01xyq", "n_files": 2, "total_mb": 404.1, "CRSPLIT": "1"},
        {"ipst": "iabc01xyz", "n_files": 2, "total_mb": 404.1, "CRSPLIT": "1"},
    ]
    assert_same(read(outcome.output), answers_one_by_one(predictor, rows))
    errors = pd.read_csv(outcome.errors)
    assert errors["row"].tolist() == [2, 4, 6]
    assert errors["ipst"].tolist() == ["labc05010", "oabc06090", "jabc0302\ufffd"]
    assert "the line has 3 cells; expected 5" in errors["reason"][0]
    assert "the line has 6 cells; expected 5" in errors["reason"][1]
    assert "is no dataset name" in errors["reason"][2]


CELLS = st.text(st.sampled_from('ab ,"\n\r1\u00e9'), max_size=5)


@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=12),
    block_bytes=st.integers(30, 60),
    after=st.integers(0, 12),
)
def test_a_csv_file_is_read_as_python_reads_it(tmp_path_factory, rows, block_bytes, after):
    folder = tmp_path_factory.getbasetemp()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    (folder / "any.csv").write_text(text.getvalue(), newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many_csv, "_BLOCK_BYTES", block_bytes)
        pieces = list(open_local(folder / "any.csv").read(after, 100))
    found = {
        int(number): list(row.values())
        for piece in pieces
        for number, row in zip(piece.numbers, piece.batch.to_pylist(), strict=True)
    }
    refused = {row.number: list(row.cells.values()) for piece in pieces for row in piece.refused}
    expected = {number: row for number, row in enumerate(rows, start=1) if number > after}
    assert found == {number: row for number, row in expected.items() if len(row) == 3}
    assert refused == {number: row[:3] for number, row in expected.items() if len(row) != 3}


# -- What cannot be read or written ---------------------------------------------------------------------------------


HEADER = b"ipst,n_files,total_mb\n"


def broken(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.csv", "none.csv does not exist"),
        (lambda folder: folder / "none.parquet", "none.parquet does not exist"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "holds no Parquet file"),
        (lambda folder: os.mkfifo(folder / "pipe") or folder / "pipe", "pipe is no file"),
        (lambda folder: broken(folder, "a.csv", b""), "a.csv is empty"),
        (lambda folder: broken(folder, "a.csv", b"\n \n"), "a.csv is empty"),
        (lambda folder: broken(folder, "a.csv", HEADER), "a.csv can be answered.*no rows"),
        (lambda folder: broken(folder, "a.csv", "ipst".encode("utf-16")), "a.csv is not text"),
        (lambda folder: broken(folder, "a.parquet", b"PAR1 and no more"), "a.parquet cannot be read"),
        (lambda folder: broken(folder, "a.parquet", b"ipst,n_files\n"), "a.parquet cannot be read"),
        (
            lambda folder: broken(folder, "a.csv", b"ipst,n_files,total_mb\n" + b"j" * 6_000_000),
            "a.csv has a line of more",
        ),
        (lambda folder: broken(folder, "a.csv", b"name,n_files\nj,1\n"), "a.csv has no column ipst"),
        (lambda folder: iter([]), "the table has no rows"),
    ],
)
def test_an_input_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path, predictor, make, words):
    with pytest.raises(InputError, match=words) as caught:
        predict_many(predictor, make(tmp_path), tmp_path / "out.csv")
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out.csv").exists()


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path, predictor):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pandas(draw_sample(5000)), path)
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"in\.parquet cannot be read"):
        predict_many(predictor, path, tmp_path / "out.csv")


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path, predictor):
    as_parquet(tmp_path)

    def change(done, total):
        as_parquet(tmp_path)
        os.utime(tmp_path / "in.parquet", (done, done))

    with pytest.raises(InputError, match=r"in\.parquet changed while it was read"):
        predict_many(predictor, tmp_path / "in.parquet", tmp_path / "out.csv", chunk_rows=2, on_progress=change)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("data", "output", "words"),
    [
        ("in.csv", "out.xlsx", "ends in '.xlsx'; expected .csv or .parquet"),
        ("in.csv", "out", "ends in ''; expected .csv or .parquet"),
        ("in.csv", "in.csv", "would be written over the input"),
        ("out.errors.csv", "out.csv", "out.errors.csv would be written over the input"),
        ("in", "in/out.parquet", "would be written over the input"),
        ("in.csv", "in.parquet/out.csv", "cannot be written"),
        ("in.csv", "folder.csv", "folder.csv is a folder; expected a file"),
    ],
)
def test_an_output_that_does_not_do_is_named(tmp_path, predictor, data, output, words):
    as_csv(tmp_path)
    as_parquet(tmp_path)
    as_folder(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    TABLE.to_csv(tmp_path / "out.errors.csv", index=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CalmlflowError, match=words):
        predict_many(predictor, tmp_path / data, tmp_path / output)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert leftovers(tmp_path) == []


# -- What the caller has --------------------------------------------------------------------------------------------


class Kept:
    """A writer that keeps what it is given, and what was done with it; it may be full."""

    def __init__(self, room=1000):
        self.room = room
        self.waiting = []
        self.batches = []
        self.calls = []

    def write(self, batch):
        if len(self.waiting) == self.room:
            raise CalmlflowError("the store is full; expected room")
        self.waiting.append(batch)

    def commit(self):
        self.calls.append("commit")
        self.batches = self.waiting

    def abort(self):
        self.calls.append("abort")


def test_a_writer_of_the_caller_gets_all_answers_and_then_commits(tmp_path, predictor):
    kept = Kept()
    TABLE.assign(n_files=[0, 0, 7, 2, 3, 3, 17]).to_csv(tmp_path / "in.csv", index=False)
    outcome = predict_many(predictor, tmp_path / "in.csv", kept, errors=tmp_path / "bad.csv")
    assert kept.calls == ["commit"]
    assert_same(pa.Table.from_batches(kept.batches).to_pandas(), answers_one_by_one(predictor, CONTROL_ROWS[1:]))
    assert pd.read_csv(outcome.errors)["row"].tolist() == [1]
    assert leftovers(tmp_path) == []


def test_a_writer_that_fails_is_told_to_leave_no_trace_and_can_be_tried_again(tmp_path, predictor):
    kept = Kept(room=2)
    with pytest.raises(CalmlflowError, match="the store is full"):
        predict_many(predictor, as_parquet(tmp_path), kept, errors=tmp_path / "bad.csv", chunk_rows=2)
    assert (kept.calls, kept.batches) == (["abort"], [])
    outcome = predict_many(predictor, tmp_path / "in.parquet", Kept(), errors=tmp_path / "bad.csv", chunk_rows=2)
    assert outcome.kept == outcome.answered == 7


def test_a_writer_needs_a_place_for_errors(tmp_path, predictor):
    with pytest.raises(InputError, match="errors is missing"):
        predict_many(predictor, as_csv(tmp_path), Kept())


def test_a_table_in_memory_is_taken(predictor, tmp_path):
    rows = pd.DataFrame([{"ipst": "j8c601020", "n_files": 17, "total_mb": 9.6}])
    for number, data in enumerate((rows, pa.Table.from_pandas(rows), pa.RecordBatch.from_pandas(rows))):
        predict_many(predictor, data, tmp_path / f"{number}.csv")
    first, *others = [(tmp_path / f"{number}.csv").read_text() for number in range(3)]
    assert first.startswith("ipst,bin_pred")
    assert others == [first, first]


@pytest.mark.parametrize("data", [[{"ipst": "j8c601020"}], 5, {"ipst": ["j8c601020"]}, []])
def test_what_is_no_table_is_told(predictor, tmp_path, data):
    with pytest.raises(InputError, match=r"cannot be read from|has no rows"):
        predict_many(predictor, data, tmp_path / "out.csv")


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("marked", [[3], [3, 700], [3, 4, 900]])
def test_a_mark_that_is_never_closed_costs_no_other_row(predictor, tmp_path, where, marked):
    lines = ["ipst,n_files,total_mb,DETECTOR"]
    for number in range(1, 1001):
        cells = [f"jabc{number:04d}0", "2", "5", "WFC"]
        if number in marked:
            place = {"first": 0, "middle": 1, "last": 3}[where]
            cells[place] = '"' + cells[place]
        lines.append(",".join(cells))
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    outcome = predict_many(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (outcome.answered, outcome.failed) == (1000 - len(marked), len(marked))
    errors = pd.read_csv(tmp_path / "out.errors.csv")
    assert errors["row"].tolist() == marked
    assert errors["reason"].str.contains("quotation marks do not fit together").all()


def test_cells_with_marks_and_line_breaks_are_read(predictor, tmp_path):
    text = 'ipst,n_files,total_mb,note\n"jabc00010","2","5","a ""b"",\nc"\njabc00020,2,5,\n'
    (tmp_path / "in.csv").write_text(text)
    assert predict_many(predictor, tmp_path / "in.csv", tmp_path / "out.csv").answered == 2
    assert not (tmp_path / "out.errors.csv").exists()


def test_text_that_is_kept_as_bytes_is_text(predictor, tmp_path):
    names = ["jabc00010", "jabc00020", "jabc00030", "jabc\xff"]
    table = pa.table(
        {
            "ipst": pa.array([name.encode("latin-1") for name in names], pa.binary()),
            "n_files": [2] * 4,
            "total_mb": [5.0] * 4,
            "DRIZCORR": pa.array([b"PERFORM", b"OMIT", b"\xff", None], pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    outcome = predict_many(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert (outcome.answered, outcome.failed) == (3, 1)
    text = table.slice(0, 3).to_pandas().assign(ipst=names[:3], DRIZCORR=["PERFORM", "OMIT", None])
    predict_many(predictor, text, tmp_path / "text.csv")
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "text.csv").read_text()


def test_text_that_is_no_utf_8_is_refused_and_costs_no_other_row(predictor, tmp_path):
    offsets = pa.py_buffer(np.array([0, 9, 18], dtype=np.int32).tobytes())
    names = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"jabc00010jabc\xff\xfe\xfd10"))
    batch = pa.RecordBatch.from_arrays([names, pa.array([2, 2]), pa.array([5.0, 5.0])], ["ipst", "n_files", "total_mb"])
    outcome = predict_many(predictor, batch, tmp_path / "out.csv")
    assert (outcome.answered, outcome.failed) == (1, 1)


@pytest.mark.parametrize("chunk_rows", [0, -1])
def test_pieces_of_nothing_are_refused(predictor, tmp_path, chunk_rows):
    with pytest.raises(InputError, match="chunk_rows is"):
        predict_many(predictor, TABLE, tmp_path / "out.csv", chunk_rows=chunk_rows)


@pytest.mark.parametrize("errors", ["out.csv", "elsewhere/errors.csv"])
def test_errors_go_to_a_file_of_their_own_beside_the_output(predictor, tmp_path, errors):
    with pytest.raises(InputError, match=r"expected (two files|a file beside)"):
        predict_many(predictor, TABLE, tmp_path / "out.csv", errors=tmp_path / errors)
