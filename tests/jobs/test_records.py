"""Job records: which rows are valid, and what is said of the others (design 4.4)."""

import itertools
import random
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.jobs.records import COLUMNS, RECORDS, check_parts, check_records
from calmlflow.jobs.sample import draw_sample
from tests.samples.store_samples import RECORD as ROW

# Column -> cells that break its own rule.
NO_NUMBERS = [None, np.nan, np.inf, -np.inf, "", "many", "1_0", True, [1], Decimal("NaN"), pd.Timestamp(0), 10**400]
BROKEN = {
    "ipst": [None, "", "j8c60102", "j8c6010200", "x8c601020", "j8c6010_0", "acs_8ph_01", "skycell-p0797x14y06", 7],
    "timestamp": [*NO_NUMBERS, -1, 0.5, 1_620_740_441_000],
    "n_files": [*NO_NUMBERS, 0, -1, 1.5, "1.5", 1_000_001],
    "total_mb": [*NO_NUMBERS, -0.1, 1.1e9],
    "drizcorr": [*NO_NUMBERS, -1, 2, 0.5],
    "pctecorr": [*NO_NUMBERS, 2],
    "crsplit": [*NO_NUMBERS, 3, -1, 1.5],
    "subarray": [*NO_NUMBERS, 2],
    "detector": [*NO_NUMBERS, 2],
    "dtype": [*NO_NUMBERS, 2],
    "instr": [*NO_NUMBERS, 4, -1],
    "wallclock": [*NO_NUMBERS, 0, -5, 1.1e7],
    "memory": [*NO_NUMBERS, -1, 0, 0.199999, 1000.1],
}
BROKEN_CELLS = [(column, cell) for column, cells in BROKEN.items() for cell in cells]


def table(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows), dtype=object)


def reason_of(cell: object, column: str) -> str:
    """The reason found for one row that breaks one rule, beside a valid row."""
    checked = check_records(table(ROW, {**ROW, "ipst": "jother010", column: cell}), "test")
    assert len(checked.valid) == 1
    return checked.quarantine["reason"].item()


def test_dtypes_columns_and_index():
    frame = pd.DataFrame([{**ROW, "bin_pred": 3}, {**ROW, "ipst": "ib0101xyq", "dtype": 0, "instr": 3}], index=[7, 7])
    valid = check_records(frame, "test").valid
    assert tuple(valid.columns) == COLUMNS
    assert valid["ipst"].tolist() == ["j8c601020", "ib0101xyq"]
    assert isinstance(valid.index, pd.RangeIndex)
    floats = {"total_mb", "wallclock", "memory"}
    assert {c: str(valid[c].dtype) for c in COLUMNS[1:]} == {
        c: "float64" if c in floats else "int64" for c in COLUMNS[1:]
    }
    RECORDS.validate(valid)


def test_valid_rows_pass_unchanged():
    frame = draw_sample(300)
    checked = check_records(frame, "test")
    assert checked.reasons() == {}
    pd.testing.assert_frame_equal(checked.valid, frame)


def test_every_row_comes_out_once_and_reasons_name_the_broken_columns():
    draw = random.Random(0)
    broken = [*({column: cell} for column, cell in BROKEN_CELLS)]
    broken += [dict(draw.sample(BROKEN_CELLS, draw.randrange(4))) for _ in range(100)]
    rows = draw_sample(len(broken)).to_dict("records")
    frame = table(*({**row, **cells} for row, cells in zip(rows, broken, strict=True))).assign(row=range(len(rows)))
    checked = check_records(frame, "test")
    assert len(checked.valid) + len(checked.quarantine) == len(frame)
    found = dict(zip(checked.quarantine["row"], checked.quarantine["reason"], strict=True))
    assert {number: {part.split()[0] for part in reason.split("; ")} for number, reason in found.items()} == {
        number: set(cells) for number, cells in enumerate(broken) if cells
    }
    # The quarantine keeps what came.
    pd.testing.assert_frame_equal(checked.quarantine.drop(columns="reason"), frame.loc[checked.quarantine.index])


def test_parts_give_what_the_whole_gives():
    frame = draw_sample(400, 1, reruns=0.5).sample(frac=1, random_state=2, ignore_index=True)
    frame = frame.astype({"memory": object}).assign(mem_bin=0)
    frame.loc[[5, 250, 599], "memory"] = [0.01, "much", -1]
    # Of equal times the last one counts.
    frame.loc[frame["ipst"] == frame["ipst"].mode()[0], "timestamp"] = 7
    whole = check_records(frame, "test")
    for cuts in ([], [1], [200, 200, 251, 599]):
        bounds = itertools.pairwise([0, *cuts, len(frame)])
        found = check_parts((frame.iloc[start:end].reset_index(drop=True) for start, end in bounds), "test")
        pd.testing.assert_frame_equal(found.valid, whole.valid, check_dtype=False)
        kept = [name for name in COLUMNS if name != "mem_bin"]
        left_out = [checked.quarantine[[*kept, "reason"]].astype(str) for checked in (found, whole)]
        pd.testing.assert_frame_equal(*left_out)
        pd.testing.assert_frame_equal(found.earlier, whole.earlier)
        assert found.mended == whole.mended > 0
    assert found.valid["dtype"].dtype == np.int8
    with pytest.raises(InputError, match="test holds 1 records, all quarantined: 1 x memory is under"):
        check_parts([frame[5:6], frame[:0]], "test")
    with pytest.raises(InputError, match="test holds no records at all"):
        check_parts([], "test")


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("memory", 0.02, "memory is under 0.2 GB, which the container alone needs"),
        ("n_files", 2.5, "n_files is not a whole number, 1 to 1000000"),
        ("crsplit", 3, "crsplit is not a whole number, 0 to 2"),
        ("wallclock", 0, "wallclock is not a number of seconds above 0, 10000000 at most"),
        ("dtype", 0, "dtype is not that of the last character of ipst"),
        ("instr", 3, "instr is not that of the first letter of ipst"),
        ("ipst", "l8c601020", "instr is not that of the first letter of ipst"),
        ("ipst", "j8c60102q", "dtype is not that of the last character of ipst"),
        ("ipst", "n8c601020", "ipst is no nine-character dataset name of ACS, COS, STIS, WFC3"),
    ],
)
def test_reasons(column, cell, reason):
    assert reason_of(cell, column) == reason


def test_reasons_of_a_row_are_joined_and_counted():
    bad = {**ROW, "n_files": 0, "memory": 0.1}
    checked = check_records(table(ROW, {**bad, "ipst": "ja"}, bad, {**ROW, "n_files": -3}), "test")
    assert checked.quarantine["reason"].str.count("; ").tolist() == [2, 1, 0]
    assert checked.reasons() == {
        "n_files is not a whole number, 1 to 1000000": 3,
        "memory is under 0.2 GB, which the container alone needs": 2,
        "ipst is no nine-character dataset name of ACS, COS, STIS, WFC3": 1,
    }
    assert list(checked.reasons().values()) == [3, 2, 1]


@pytest.mark.parametrize(("given_mb", "kept_mb"), [(93.6, 94), (0.4, 0), (2.5, 2), (3.5, 4), ("93.6", 94)])
def test_total_mb_is_rounded_as_the_features_are(given_mb, kept_mb):
    frame = table({**ROW, "total_mb": given_mb})
    before = frame.copy(deep=True)
    assert check_records(frame, "test").valid["total_mb"].tolist() == [kept_mb]
    pd.testing.assert_frame_equal(frame, before)


def test_numbers_may_be_text_and_names_are_folded():
    as_text = table({column: str(cell) for column, cell in ROW.items()} | {"ipst": " J8C601020\n"})
    pd.testing.assert_frame_equal(check_records(as_text, "a").valid, check_records(table(ROW), "b").valid)


# As a table has it, and records that are mended: what is no number is missing, but for the two infinite ones.
@pytest.mark.parametrize(
    ("told", "mended"),
    [([0, 0, 1, 2, 2, 3, 3, 0], 0), (["0.0", "0", 0, 1, 1, "2", 9, 1], 5), (NO_NUMBERS[:8], 2), (None, 0)],
)
def test_memory_tells_mem_bin_whatever_the_table_says(told, mended):
    memories = [0.2, 1.791, 1.792, 7.168, 14.335, 14.336, 60, np.nan]
    rows = [{**ROW, "ipst": f"j8c60{n}020", "memory": memory} for n, memory in enumerate(memories)]
    frame = pd.DataFrame(rows).drop(columns="mem_bin") if told is None else table(*rows).assign(mem_bin=told)
    checked = check_records(frame, "test")
    assert checked.valid["mem_bin"].tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert checked.reasons() == {"memory is not a number of GB, 0 to 1000": 1}
    assert checked.mended == mended


def test_a_missing_timestamp_is_0_and_the_last_of_a_name_counts():
    frame = pd.DataFrame([{**ROW, "n_files": 1}, {**ROW, "n_files": 2}]).drop(columns="timestamp")
    assert check_records(frame, "test").valid[["timestamp", "n_files"]].to_numpy().tolist() == [[0, 2]]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), min_size=1, max_size=12).filter(
        lambda jobs: any(sound for _, _, sound in jobs)
    )
)
def test_the_newest_valid_record_of_a_name_counts(jobs):
    rows = [
        {**ROW, "ipst": f"j8c601{name}20", "timestamp": timestamp, "n_files": number, "crsplit": 0 if sound else 9}
        for number, (name, timestamp, sound) in enumerate(jobs, start=1)
    ]
    newest: dict[str, tuple[int, int]] = {}
    for number, (name, timestamp, sound) in enumerate(jobs, start=1):
        if sound:
            newest[name] = max(newest.get(name, (-1, -1)), (timestamp, number))
    checked = check_records(pd.DataFrame(rows), "test")
    assert checked.valid["n_files"].tolist() == sorted(number for _, number in newest.values())
    superseded = sum(sound for _, _, sound in jobs) - len(newest)
    expected = {"ipst is superseded by another record of the same name": superseded} if superseded else {}
    found = checked.reasons()
    found.pop("crsplit is not a whole number, 0 to 2", None)
    assert found == expected


def test_columns_that_are_missing_or_there_twice_are_named():
    frame = table(ROW).drop(columns=["n_files", "memory", "mem_bin", "timestamp"])
    with pytest.raises(InputError, match=r"^jobs\.csv has no column n_files, memory; expected the columns ipst, "):
        check_records(frame, "jobs.csv")
    frame = pd.concat([table(ROW), table(ROW)[["memory"]]], axis=1)
    with pytest.raises(InputError, match=r"^jobs\.csv has more than one column memory; "):
        check_records(frame, "jobs.csv")


def test_no_valid_record():
    rows = [{**ROW, "memory": 0.1}, {**ROW, "memory": 0.1}, {**ROW, "instr": 1}]
    with pytest.raises(InputError) as caught:
        check_records(pd.DataFrame(rows), "jobs.csv")
    assert str(caught.value) == (
        "jobs.csv holds 3 records, all quarantined: 2 x memory is under 0.2 GB, which the container alone needs; "
        "1 x instr is not that of the first letter of ipst; expected at least one valid job record"
    )
    with pytest.raises(InputError, match=r"^jobs\.csv holds no records at all; "):
        check_records(pd.DataFrame(columns=list(COLUMNS)), "jobs.csv")


def test_earlier_runs_are_those_that_took_something_else():
    runs = [{**ROW, "timestamp": time, "wallclock": seconds} for time, seconds in ((1, 50), (2, 90), (3, 90), (4, 70))]
    # A record that is there twice, and one that cannot be true.
    wrong = [runs[-1], {**runs[0], "memory": 0.1}]
    checked = check_records(table(*runs, *wrong, {**ROW, "ipst": "jother010"}), "test")
    assert checked.valid["wallclock"].tolist() == [70, ROW["wallclock"]]
    assert checked.earlier["wallclock"].tolist() == [50, 90, 90]
    assert tuple(checked.earlier.columns) == COLUMNS
    assert check_records(table(ROW), "test").earlier.empty
