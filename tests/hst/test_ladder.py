"""The ladder and what a choice of rung costs (design 4.3)."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calmlflow.errors import InputError
from calmlflow.hst.ladder import (
    BIN_NAMES,
    LADDER,
    Ladder,
    allocation_cost,
    excess_cost,
    needed_bin,
    parse_ladder,
    read_ladder,
)

BINS = st.integers(0, 3)
WALLCLOCKS = st.floats(1, 200_000)
JOBS = st.lists(st.tuples(BINS, BINS, WALLCLOCKS), min_size=1, max_size=20).map(
    lambda jobs: tuple(np.array(column) for column in zip(*jobs, strict=True))
)
# $/hour and jobs at once, from the table of the design.
TABLE = ((0.308, 8), (0.344, 4), (0.226, 2), (0.452, 1))
PER_JOB_SECOND = [usd / jobs / 3600 for usd, jobs in TABLE]


def test_the_table():
    assert read_ladder("examples/ladder.yaml") == LADDER
    assert BIN_NAMES == ("2g", "8g", "16g", "64g")
    assert [rung.instance for rung in LADDER] == ["c5a.2xlarge", "m5a.2xlarge", "r5a.xlarge", "r5a.2xlarge"]
    assert [(rung.usd_per_hour, rung.jobs_at_once) for rung in LADDER] == list(TABLE)
    assert [rung.usd_per_job_second for rung in LADDER] == pytest.approx(PER_JOB_SECOND)
    # An eighth of the nominal size is left to the machine.
    assert [rung.limit_gb for rung in LADDER] == pytest.approx([0.896 * size for size in (2, 8, 16, 64)])


@pytest.mark.parametrize(
    ("memory_gb", "rung"),
    [
        *((0, 0), (1.791999, 0), (1.792, 1), (2.0, 1), (7.167999, 1), (7.168, 2), (14.335999, 2), (14.336, 3)),
        *((57.343999, 3), (57.344, 3), (1e9, 3)),
    ],
)
def test_needed_bin(memory_gb, rung):
    assert needed_bin(memory_gb) == rung


@given(hnp.arrays(float, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.floats(0, 100)))
def test_needed_bin_keeps_the_shape_and_is_the_lowest_rung_that_holds_the_job(memory_gb):
    rungs = np.asarray(needed_bin(memory_gb))
    assert rungs.shape == memory_gb.shape
    assert rungs.dtype == np.int64
    limits = np.array([1.792, 7.168, 14.336, np.inf])
    assert np.all(memory_gb < limits[rungs])
    assert np.all((rungs == 0) | (memory_gb >= limits[rungs - 1]))


@pytest.mark.parametrize("memory_gb", [-0.1, math.nan, math.inf, [1, math.nan]])
def test_memory_that_cannot_be(memory_gb):
    with pytest.raises(InputError, match="memory must be a finite number of GB"):
        needed_bin(memory_gb)


@given(BINS, BINS, WALLCLOCKS)
def test_cost_is_the_full_wallclock_on_every_rung_climbed(chosen, needed, wallclock_s):
    climbed = PER_JOB_SECOND[chosen : needed + 1] if needed > chosen else [PER_JOB_SECOND[chosen]]
    assert allocation_cost(chosen, needed, wallclock_s) == pytest.approx(wallclock_s * sum(climbed))


def test_cost_of_one_hour_by_hand():
    assert allocation_cost([0, 0, 1, 3], [0, 1, 3, 0], 3600) == pytest.approx([0.0385, 0.1245, 0.651, 0.452])


def test_each_rung_is_dearer_than_the_one_below():
    # The $/hour of r5a.xlarge is the lowest of all, but only two jobs share it.
    assert sorted(PER_JOB_SECOND) == PER_JOB_SECOND
    assert np.all(np.diff(allocation_cost(range(4), range(4), 1)) > 0)


@given(JOBS)
def test_no_policy_is_cheaper_than_the_needed_rungs(jobs):
    _, needed, wallclock_s = jobs
    assert excess_cost(*jobs) >= -1e-12
    assert excess_cost(needed, needed, wallclock_s) == 0


def test_excess_by_hand():
    # Needed: 0.0385 + 2 * 0.086; chosen: 0.086 + 2 * (0.0385 + 0.086).
    assert excess_cost([1, 0], [0, 1], [3600, 7200]) == pytest.approx((0.086 + 0.249) / (0.0385 + 0.172) - 1)


@pytest.mark.filterwarnings("error")
def test_excess_of_no_jobs_is_not_a_number():
    assert math.isnan(excess_cost([], [], []))


@pytest.mark.parametrize("off", [-1, 4, 1.5, math.nan])
def test_a_bin_off_the_ladder_is_named(off):
    with pytest.raises(InputError, match=f"memory bin is {off}; expected"):
        allocation_cost([0, off], [0, 0], [1, 1])
    with pytest.raises(InputError, match=f"memory bin is {off}; expected"):
        excess_cost([0, 0], [0, off], [1, 1])


# -- The file of an operator ------------------------------------------------------------------------------------------

FILE = json.loads(LADDER.to_json())
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def with_rung(number: int, **change) -> dict:
    rungs = [rung | change if at == number else rung for at, rung in enumerate(FILE["rungs"])]
    return FILE | {"rungs": [{key: value for key, value in rung.items() if value is not None} for rung in rungs]}


def test_another_rung_and_another_price_need_a_file_alone(tmp_path):
    five = [*FILE["rungs"][:1], FILE["rungs"][0] | {"name": "4g", "limit_gb": 3.584, "jobs_at_once": 4}]
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps({"format": 1, "version": 2, "rungs": [*five, *FILE["rungs"][1:]]}))
    code = """
from calmlflow.hst.ladder import BIN_NAMES, LADDER, excess_cost, needed_bin
print(LADDER.version, *BIN_NAMES, int(needed_bin(2.0)), excess_cost([0, 4], [1, 3], [100, 100]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"CALMLFLOW_LADDER": str(path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *words, excess = done.stdout.split()
    assert words == ["2", "2g", "4g", "8g", "16g", "64g", "1"]
    # By hand: 0.308/8 + 0.308/4 and 0.452 against 0.308/4 and 0.226/2.
    assert float(excess) == pytest.approx((0.0385 + 0.077 + 0.452) / (0.077 + 0.113) - 1)


@pytest.mark.parametrize(("content", "words"), [
    (with_rung(1, limit_gb=1.0), "rung 8g has a limit of 1 GB and the one below 1.792 GB; expected limits that rise"),
    (with_rung(1, usd_per_hour=-0.3), "rung 1 of the ladder has usd_per_hour -0.3; expected a number above 0"),
    (with_rung(3, limit_gb=10**400), "rung 3 of the ladder has limit_gb 1000"),
    (with_rung(2, jobs_at_once=1.5), "rung 2 of the ladder has jobs_at_once 1.5; expected"),
    (with_rung(3, instance=None), "rung 3 of the ladder lacks or adds 'instance'; expected name, limit_gb"),
    (with_rung(0, price=1), "rung 0 of the ladder lacks or adds 'price'; expected"),
    (with_rung(0, name="8g"), "two rungs of one name"),
    (FILE | {"format": 2}, "the ladder has format '2'; expected 1"),
    (FILE | {"version": None}, "the ladder has no version; expected"),
    (FILE | {"rungs": FILE["rungs"][:1]}, "has 1 rungs; expected 2 to 16"),
    (FILE | {"rungs": 5}, "has no list of rungs; expected"),
    ("a: [", "does not parse; expected YAML"),
    (None, "cannot be read (No such file or directory); expected a ladder"),
])  # fmt: skip
def test_a_file_that_is_no_ladder_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "ladder.yaml"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_ladder(str(path))
    assert str(caught.value).startswith(f"CALMLFLOW_LADDER: {path}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_that_reads_no_yaml_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InputError, match=r"ladder\.yaml: the Lambda image reads no YAML; expected a \.json file"):
        read_ladder("examples/ladder.yaml")


@given(ANYTHING | st.lists(ANYTHING, max_size=3).map(lambda rungs: FILE | {"rungs": rungs}))
def test_any_content_is_read_or_refused(content):
    with pytest.raises(InputError):
        parse_ladder(content)


def test_a_command_tells_of_a_wrong_ladder_in_one_line(tmp_path):
    environment = os.environ | {"CALMLFLOW_LADDER": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "calmlflow", "predict", "acs_8ph_01"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: CALMLFLOW_LADDER: {tmp_path} cannot be read")


def test_the_ladder_of_a_bundle_is_read_as_it_was_written():
    assert Ladder.from_json(LADDER.to_json().encode()) == LADDER
    for content in (b"[", b"\xff", b"[" * 100_000):
        with pytest.raises(InputError, match="the ladder is no JSON"):
            Ladder.from_json(content)
