"""Features by columns: the same as the strict rules give row by row, right or wrong, whatever the cells hold."""

from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.features import FEATURES, OPTIONAL_KEYS, switch_warnings
from calmlflow.predictor.batch.features import form_of, read_jobs, row_features

KEYS = ("n_files", "total_mb", *OPTIONAL_KEYS)
WORDS = [
    "", " ", "nan", "NaN", "NaN ", "None", "<NA>", "null", "0", "-0", "1", "1.0", " 1 ", "1.", "+1", "01", "2", "2.0",
    "3", "0.5", "1.5", "2.5", ".5", "1_0", "1e3", "1E400", "inf", "-1", "0x10", "\u0661", "1\u00a0", "T", "true",
    "TRUE", "True", "F", "PERFORM", "perform", " OMIT", "WFC", "uvis", "IR", "1000000", "1000001", "1e6", "999999999.5",
    "1000000000", "1000000000.4", "123456789012345678901", "9" * 400, "4.5000000000000000001", "\0", "1\n",
]  # fmt: skip
NAMES = [
    "jabc03020", "IABC01XYQ", " oabc06090\t", "labc05010", "jabc03020\u2003", "zabc03020", "jabc0302", "jabc030200", "",
    "nan", "acs_8ph_01", "SKYCELL-p0797x14y06", " wfc3_abc_de", "jabcde\u00e90", "jabc\u212a20", "j_bc03020",
    "jabc 3020", "1abc03020", "jabc0302\n", "jab[03020", "j@bc03020", "ja\x00c03020",
]  # fmt: skip
FLOATS = st.floats(width=64) | st.sampled_from(
    [0.0, -0.0, 0.5, 1.0, 1.5, 2.5, 1e6, 1e6 + 0.5, 1e9, 1e9 + 0.4, np.nan, np.inf]
)
INTEGERS = st.integers(-2, 4) | st.sampled_from(
    [17, 10**6, 10**6 + 1, 10**9, 10**9 + 1, 2**53 + 1, -(2**63), 2**63 - 1]
)
COLUMNS = [
    (pa.string(), st.sampled_from(WORDS) | st.text(max_size=4) | FLOATS.map(str) | INTEGERS.map(str)),
    (pa.large_string(), st.sampled_from(WORDS)),
    (pa.string_view(), st.sampled_from(WORDS)),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(WORDS)),
    (pa.binary(), st.sampled_from([b"1", b"17", b"T", b"1_0"])),
    (pa.float64(), FLOATS),
    (pa.float32(), st.floats(width=32)),
    (pa.int64(), INTEGERS),
    (pa.uint8(), st.integers(0, 255)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(20, 3), st.decimals(-5, 2_000_000_000, places=3, allow_nan=False)),
    (pa.null(), st.none()),
    (pa.list_(pa.int64()), st.lists(INTEGERS, max_size=2)),
]


@st.composite
def batches(draw, keys):
    """Some rows: now and then a column is not there, and each column is of some type."""
    count = draw(st.integers(1, 20))

    def column(kind, values):
        cells = draw(st.lists(values, min_size=count, max_size=count))
        for position in draw(st.sets(st.integers(0, count - 1), max_size=1)):
            cells[position] = None
        return pa.array(cells, kind)

    columns = {"ipst": column(*draw(st.sampled_from([(pa.string(), st.sampled_from(NAMES))] * 30 + COLUMNS)))}
    # As a rule cells are right, so that what is odd is alone in its row.
    plain = {"n_files": (pa.int64(), st.integers(1, 3)), "total_mb": (pa.float64(), st.sampled_from([0.5, 1.5, 9.6]))}
    for key in keys:
        usual = plain.get(key, (pa.int64(), st.integers(0, 1)))
        if key in OPTIONAL_KEYS and draw(st.booleans()):
            continue
        columns[key] = column(*draw(st.sampled_from([usual] * 30 + COLUMNS)))
    if "instr" in columns and draw(st.booleans()):
        datasets = [name_of(name) for name in columns["ipst"].to_pylist()]
        known = [None if dataset is None or dataset.is_hap else dataset for dataset in datasets]
        columns["dtype"] = pa.array([one and int(one.is_association) for one in known], pa.int64())
        columns["instr"] = pa.array([one and one.instrument_code for one in known], pa.int64())
    return pa.RecordBatch.from_pydict(columns)


def name_of(name):
    try:
        return parse_dataset(name)
    except InputError:
        return None


def agree(batch):
    form = form_of(batch.schema.names, "the table")
    found = read_jobs(batch, form)
    position, warned = 0, Counter()
    for number, row in enumerate(batch.to_pylist()):
        row = {key: cell.decode() if isinstance(cell, bytes) else cell for key, cell in row.items()}
        try:
            expected = row_features(form, row)
        except InputError as error:
            assert found.reasons[number] == str(error)
            continue
        assert number not in found.reasons
        assert found.names[position].as_py() == parse_dataset(row["ipst"]).name
        assert found.is_mosaic[position] == parse_dataset(row["ipst"]).is_hap
        if expected is not None:
            assert tuple(found.features[position].tolist()) == tuple(expected)
            warned.update([] if form.has_features else switch_warnings(parse_dataset(row["ipst"]).name, row))
        position += 1
    assert position == len(found.names) == len(found.features) == len(found.is_mosaic)
    assert {sentence: count for sentence, (count, _) in found.warnings.items()} == warned


@given(batch=batches(KEYS) | batches(FEATURES))
def test_columns_give_what_they_give_row_by_row(batch):
    agree(batch)


@pytest.mark.parametrize(
    ("feature", "cell", "words"),
    [
        ("n_files", True, "n_files is True; expected a number"),
        ("total_mb", "1_0", "total_mb is '1_0'; expected a number"),
        ("crsplit", None, "crsplit is missing; expected a number"),
        ("crsplit", [1], "crsplit is [1]; expected a number"),
        ("subarray", "yes", "subarray is 'yes'; expected a number"),
        ("subarray", 0.5, "subarray is 0.5; expected a whole number from 0 to 1"),
    ],
)
def test_a_cell_that_is_no_such_number_is_named(feature, cell, words):
    row = {"ipst": "jabc03020", **dict(zip(FEATURES, (17, 9.6, 1, 0, 2, 0, 0, 1, 0), strict=True)), feature: cell}
    with pytest.raises(InputError, match=r"^jabc03020: ") as caught:
        row_features(form_of(row, "the table"), row)
    assert words in str(caught.value)


def test_a_slice_of_a_batch_is_read_as_if_it_were_alone():
    names = pa.array(["jabc03020", "labc05010", "acs_8ph_01", "oabc06090", "IABC01XYQ"])
    batch = pa.record_batch({"ipst": names, "n_files": [1, 2, 3, 4, 5], "total_mb": ["1", None, "3", "4", "5.5"]})
    found = read_jobs(batch.slice(1, 4), form_of(batch.schema.names, "the table"))
    assert found.names.to_pylist() == ["acs_8ph_01", "oabc06090", "iabc01xyq"]
    assert found.features[1:].tolist() == [[4, 4, 0, 0, 0, 0, 0, 1, 2], [5, 6, 0, 0, 0, 0, 0, 0, 3]]
    assert list(found.reasons) == [0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["n_files", "total_mb"], "has no column ipst or ipppssoot"),
        (["ipst", "total_mb"], "lacks column n_files; expected the nine features, or the keys of a control file"),
        (["ipst", *FEATURES[:-1]], "lacks column instr; expected"),
        (["ipst", "n_files", "total_mb", *FEATURES[3:8], "DRIZCORR"], "lacks column drizcorr, instr; expected"),
        (["ipst", *FEATURES[1:], *OPTIONAL_KEYS], "lacks column n_files; expected"),
        (["ipst", "n_files", "total_mb", "CRSPLIT", "instr"], "lacks column drizcorr, pctecorr, crsplit, subarray"),
        (["ipst", "n_files", "total_mb", "CRSPLIT", "CRSPLIT"], "has column CRSPLIT twice"),
        (["ipst", "ipst", "n_files", "total_mb"], "has column ipst twice"),
    ],
)
def test_columns_that_would_give_wrong_answers_are_refused(columns, words):
    with pytest.raises(InputError, match=f"^the table {words}"):
        form_of(columns, "the table")


def test_the_columns_that_count():
    assert form_of(["x", "ipppssoot", "ipst", *FEATURES, "DETECTOR"], "t") == ("ipst", FEATURES, True)
    form = form_of(["ipppssoot", "n_files", "total_mb", "CRSPLIT"], "t")
    assert form.keys == ("n_files", "total_mb", "CRSPLIT")


ODD_CELLS = [
    *((pa.string(), word) for word in WORDS),
    *((pa.float64(), number) for number in (-0.5, -0.0, 0.5, 1.5, 2.5, 1e6, 1e6 + 0.5, 1e9, 1e9 + 0.4, np.nan, np.inf)),
    *((pa.int64(), number) for number in (-1, 0, 2, 3, 10**6 + 1, 10**9, 10**9 + 1, 2**63 - 1)),
    *((pa.bool_(), flag) for flag in (True, False)),
    *((pa.decimal128(20, 3), Decimal(number)) for number in ("1", "2.5", "-1", "1000000000.4")),
    *((pa.binary(), content) for content in (b"1", b"T", b"1_0")),
    (pa.null(), None),
    (pa.timestamp("ns"), 1),
]


@pytest.mark.parametrize("keys", [KEYS, FEATURES])
def test_every_odd_cell_alone_in_its_row(keys):
    usual = dict.fromkeys(keys, 1) | {"total_mb": 9.6, "instr": 0, "dtype": 1}
    for key in keys:
        for kind, cell in ODD_CELLS:
            # The second row is right as a rule, and the odd cell stands in the first one.
            cells = {name: pa.array([usual[name], usual[name]]) for name in keys}
            cells[key] = pa.array([cell, None], kind)
            agree(pa.record_batch({"ipst": ["jabc03020", "jabc03020"], **cells}))
