"""Tables are read as they are, whatever their format and place, and written whole."""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.settings import JOBS_BUCKET as BUCKET
from calmlflow.storage import tables
from calmlflow.storage.s3 import NoSuchObjectError
from calmlflow.storage.tables import MISSING, as_numbers, new_table, open_table

ROWS = [{"ipst": "j8c601020", "n": 2, "x": 0.1, "on": True}, {"ipst": None, "n": None, "x": None, "on": False}]
TABLE = pa.Table.from_pylist(ROWS)


def read(uri, rows=tables.BATCH_ROWS, **options):
    with open_table(uri, **options) as source:
        return [row for batch in source.batches(rows) for row in batch.to_pylist()]


def of_csv(folder, content, **options):
    (folder / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(folder / "in.csv", **options)


# -- CSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a,b\n1,2\n", [("1", "2")]),
        ("\ufeffa, b \r\n1,2\r\n\r\n3,4", [("1", "2"), ("3", "4")]),
        ("\n\na,b\r1,2\r3,4\r", [("1", "2"), ("3", "4")]),
        ("a,b\n1,2\r", [("1", "2")]),
        ('a,"b"\n"1,5","say ""x"""\n', [("1,5", 'say "x"')]),
        ('a,b\n5" disk,x\n', [('5" disk', "x")]),
        ("a,b\n ,NaN\n\u00b5,-nan\n", [(" ", None), ("\u00b5", None)]),
        ("a,b\n1e400,0x10\n", [("1e400", "0x10")]),
        *((header, []) for header in ("a,b", "a,b\n", "a,b\n\r", "a,b\r\n\r\n")),
    ],
)
def test_cells_are_text_to_the_letter(tmp_path, content, rows):
    assert of_csv(tmp_path, content, text_columns=["a"]) == [dict(zip("ab", row, strict=True)) for row in rows]


def test_missing_cells_depend_on_the_kind_of_column(tmp_path):
    content = "name,n\n" + "".join(f"{text},{text}\n" for text in MISSING) + " NA , NA \n"
    found = of_csv(tmp_path, content, text_columns=["name"])
    assert [row["name"] for row in found] == [text or None for text in MISSING] + [" NA "]
    assert [row["n"] for row in found] == [None] * (len(MISSING) + 1)


@given(rows=st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"))] * 2), max_size=9))
def test_what_python_writes_is_read_to_the_letter(tmp_path_factory, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *rows])
    found = of_csv(tmp_path_factory.mktemp("csv"), text.getvalue(), text_columns=["a", "b"])
    assert found == [{"a": a or None, "b": b or None} for a, b in rows]


@given(content=st.binary(max_size=60) | st.text(st.sampled_from('a,"\r\n1'), max_size=30).map(str.encode))
def test_any_bytes_are_a_table_or_an_error_that_names_the_file(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    for name, text in (("in.csv", content), ("in.csv", b"a,b\n" + content), ("in.parquet", content)):
        (folder / name).write_bytes(text)
        try:
            read(folder / name)
        except InputError as error:
            assert str(folder / name) in str(error)


@pytest.mark.parametrize("piece_rows", [1, 3, 1000])
@pytest.mark.parametrize("share_right", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_lines_with_a_wrong_number_of_cells_are_told_by_their_row(tmp_path, monkeypatch, piece_rows, share_right):
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 64)
    is_right = np.random.default_rng(0).random(200) < share_right
    lines = [f"{row},x" if right else f"{row}" + ",x" * (row % 3 * 2) for row, right in enumerate(is_right, start=1)]
    (tmp_path / "in.csv").write_text("a,b\n\n" + "\n\n".join(lines))
    told = []
    with open_table(tmp_path / "in.csv") as source:
        for piece in source.pieces(piece_rows):
            assert piece.batch.num_rows == len(piece.numbers) <= piece_rows
            assert [int(cell) for cell in piece.batch["a"].to_pylist()] == piece.numbers.tolist()
            told += sorted([*((number, "") for number in piece.numbers), *((row[0], row[1]) for row in piece.refused)])
            assert all(row.cells["a"] == str(row.number) for row in piece.refused)
    reasons = [f"the line has {1 + row % 3 * 2} cells; expected 2, as the header has" for row in range(1, 201)]
    assert told == [(row, "" if is_right[row - 1] else reasons[row - 1]) for row in range(1, 201)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header line"),
        (b"\x7fELF\0\0", "is not text"),
        (b"\xff\xfea,b\n", "cannot be read .*can't decode"),
        (b"a,b\n\xff,2\n", "cannot be read .*can't decode"),
        (b'"a,b\n1,2\n', "has no header that can be read"),
        (b"a,b,a\n1,2,3\n", "has column a twice; expected it once"),
        (b"a,b\n1,2\n3\n", "in.csv, row 2: the line has 1 cells; expected 2, as the header has"),
        (b'a,b\n1,2\n"1\n3,4\n5,6\n', "has a line break in a cell, or a quotation mark that is not closed"),
        (b"a,b\n" + b"x" * (13 << 20) + b",1\n", "cannot be read .*block"),
        (b"PAR1 and no more", "cannot be read"),
    ],
)
def test_what_is_no_csv_table_is_told_in_a_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        of_csv(tmp_path, content)
    assert str(tmp_path / "in.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


# -- Numbers --------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1)))
def test_numbers_are_read_to_the_last_bit(values):
    found = as_numbers(pa.array([str(value) for value in values], pa.string())).to_pylist()
    assert found == (values if all(isinstance(value, int) for value in values) else [float(value) for value in values])


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ([" 1", "+2", None], [1, 2, None]),
        (["1", ".5", "2."], [1.0, 0.5, 2.0]),
        (["9223372036854775808"], [2.0**63]),
        (["1", "0x10"], ["1", "0x10"]),
        (["1", "1,5"], ["1", "1,5"]),
        ([True], [True]),
    ],
)
def test_texts_that_are_numbers(cells, numbers):
    assert as_numbers(pa.array(cells)).to_pylist() == numbers


# -- Parquet and folders --------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    pq.write_table(TABLE, tmp_path / "b" / "a.PARQUET", row_group_size=1)
    pq.write_table(TABLE.slice(0, 0), tmp_path / "a.parquet")
    pq.write_table(TABLE.append_column("more", [[1, 2]]), tmp_path / "c.parquet")
    for name in ("_metadata.parquet", ".old.parquet", "README", ".hidden/x.parquet"):
        (tmp_path / name).write_text("no table")
    with open_table(tmp_path, columns=["n"]) as source:
        assert (source.rows, source.columns) == (4, ("ipst", "n", "x", "on", "more"))
        pieces = list(source.pieces(1))
    assert [piece.numbers.tolist() for piece in pieces] == [[1], [2], [3], [4]]
    more = [{**row, "more": number} for number, row in enumerate(ROWS, start=1)]
    assert [piece.batch.to_pylist()[0] for piece in pieces] == [*ROWS, *more]


def test_wrong_columns_of_parquet_are_told(tmp_path):
    path = tmp_path / "in.parquet"
    words = pa.array(["1"]).dictionary_encode()
    pq.write_table(pa.table({"n": words, "list": [[1]], "when": pa.array([0], pa.timestamp("s"))}), path)
    assert len(read(path, columns=["n"])) == 1
    for name in ("list", "when"):
        with pytest.raises(InputError, match=f"{path}, column {name} holds .*; expected numbers or text"):
            read(path, columns=[name])
    pq.write_table(pa.Table.from_arrays([[1], [2]], ["a", "a"]), path)
    with pytest.raises(InputError, match="has column a twice"):
        read(path)
    text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"a": text}), path)
    with pytest.raises(InputError, match=f"{path} cannot be read"):
        read(path)


def test_places_without_a_table_are_told(tmp_path):
    for place, message in ((tmp_path, "holds no Parquet file"), (tmp_path / "no.csv", "does not exist")):
        with pytest.raises(InputError, match=message), open_table(place):
            pytest.fail("opened")
    (tmp_path / "in.csv").write_text("")
    with pytest.raises(InputError, match=r"^the jobs is empty"), open_table(tmp_path / "in.csv", shown="the jobs"):
        pytest.fail("opened")


# -- Writing, and S3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_there_when_it_is_whole(tmp_path, suffix):
    path = tmp_path / "new" / f"out{suffix}"
    rows = [*ROWS, {"ipst": 'x,"y"', "n": 0, "x": 0.1 + 0.2, "on": True}]
    with new_table(path, TABLE.schema) as writer:
        for row in rows:
            writer.write(pa.RecordBatch.from_pylist([row], TABLE.schema))
        assert not path.exists()
    before = path.read_bytes()
    if suffix == ".csv":
        quoted = '"x,""y""",0,0.30000000000000004,true'
        assert before.decode() == f"ipst,n,x,on\nj8c601020,2,0.1,true\n,,,false\n{quoted}\n"
    else:
        assert read(path) == rows
    with pytest.raises(KeyboardInterrupt), new_table(path, TABLE.schema) as writer:
        writer.write(TABLE.to_batches()[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_tables_in_s3(s3, tmp_path):
    folder = f"s3://{BUCKET}/tables-{tmp_path.name}"
    for name in ("b/1.parquet", "b/0.parquet", "b/_x.parquet", "a.csv"):
        with new_table(f"{folder}/{name}", TABLE.schema) as writer:
            writer.write(TABLE.to_batches()[0])
    assert read(f"{folder}/b/1.parquet") == ROWS
    assert read(f"{folder}/b/") == ROWS * 2
    assert [row["ipst"] for row in read(f"{folder}/a.csv")] == ["j8c601020", None]
    with pytest.raises(InputError, match="there is no Parquet file under s3://"), open_table(f"{folder}/none/"):
        pytest.fail("opened")
    for name in ("none.csv", "half.csv"):
        with pytest.raises(KeyboardInterrupt), new_table(f"{folder}/half.csv", TABLE.schema):
            raise KeyboardInterrupt
        with pytest.raises(NoSuchObjectError, match=f"{name} cannot be read"), open_table(f"{folder}/{name}"):
            pytest.fail("opened")


def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match=r"ends in '\.txt'; expected"), new_table("x.txt", TABLE.schema):
        pytest.fail("opened")
    (tmp_path / "file").touch()
    with pytest.raises(CalmlflowError, match="cannot be written"), new_table(tmp_path / "file" / "x.csv", TABLE.schema):
        pytest.fail("opened")
