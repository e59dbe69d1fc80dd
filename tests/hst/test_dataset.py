"""Names of datasets (design 2 and 4.1)."""

import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.hst.dataset import parse_dataset, programmes

TAILS = st.text(string.ascii_lowercase + string.digits, min_size=8, max_size=8)


@pytest.mark.parametrize(("letter", "code"), [("j", 0), ("l", 1), ("o", 2), ("i", 3)])
@given(tail=TAILS)
def test_instrument_code_follows_the_first_letter(letter, code, tail):
    dataset = parse_dataset(letter + tail)
    assert (dataset.kind, dataset.is_hap, dataset.instrument_code) == ("ipppssoot", False, code)


@given(letter=st.sampled_from(sorted(set(string.ascii_lowercase) - set("jloi"))), tail=TAILS)
def test_any_other_letter_is_an_error_that_names_it(letter, tail):
    with pytest.raises(InputError, match=f"starts with '{letter}'") as error:
        parse_dataset(letter + tail)
    assert letter + tail in str(error.value)


@pytest.mark.parametrize(
    ("name", "association"),
    [("jzzz01010", True), ("jzzz01zzq", False), ("lzzz0100z", False), ("ozzz00000", True), ("izzz01011", False)],
)
def test_association_is_told_by_the_last_character(name, association):
    assert parse_dataset(name).is_association is association


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"{camera}_a1b_0c", "single-visit") for camera in ("acs", "wfc3", "wfpc2", "nicmos")),
        *((f"{prefix}p0797x14y06", "multi-visit") for prefix in ("skycell-", "", "hst_skycell-")),
    ],
)
def test_mosaics_are_no_association_and_have_no_instrument_code(name, kind):
    dataset = parse_dataset(name)
    assert (dataset.kind, dataset.is_hap, dataset.is_association) == (kind, True, False)
    with pytest.raises(InputError, match=name):
        _ = dataset.instrument_code


@pytest.mark.parametrize("name", ["JZZZ01010", " jzzz01010\n", "ACS_8PH_01", "SkyCell-P0797x14Y06"])
def test_case_and_blanks_around_do_not_matter(name):
    assert parse_dataset(name) == parse_dataset(name.strip().lower())
    assert parse_dataset("JZZZ01010").control_key == "control/jzzz01010/jzzz01010_MemModelFeatures.txt"


@pytest.mark.parametrize(
    "name",
    [
        *("", "j", "jzzz0101", "jzzz010100", "1zzz01010", "jzzz 1010", "jzzz01010/../x", "jzzz0101é"),
        *("jzzz01010\njzzz01010", "acs_8ph_1", "cos_8ph_01", "skycell-p797x14y06", "skycell-p0797x14y06/.."),
        *(None, 8, b"jzzz01010", "j" * 100_000, 10**5000),
    ],
    ids=lambda name: "" if isinstance(name, int) else repr(name)[:20],
)
def test_what_is_no_name_is_refused_in_one_sentence(name):
    with pytest.raises(InputError, match="is no dataset name; expected") as error:
        parse_dataset(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("product", "dataset"),
    [
        ("jzzz01010_drz.fits", "jzzz01010"),
        ("ACS_8PH_01_wfc", "acs_8ph_01"),
        ("skycell-p0797x14y06_wfc3_ir_f160w", "skycell-p0797x14y06"),
        ("hst_skycell-p0797x14y06_wfc3_uvis_f606w_coarse-all_drz.fits", "skycell-p0797x14y06"),
        ("hst_10265_01_acs_wfc_total_j92c01_drc.fits", "acs_92c_01"),
        ("hst_8553_ph_wfpc2_pc_f606w_u8phabcd_drz.fits", "wfpc2_8ph_ab"),
    ],
)
def test_the_name_of_a_product_is_told_with_its_dataset(product, dataset):
    with pytest.raises(InputError, match=f"is the name of a product; expected that of its dataset, {dataset}$"):
        parse_dataset(product)
    assert parse_dataset(dataset).name == dataset


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.floats(), st.text("jloi_-0acs", max_size=12)))
def test_a_name_parses_or_is_an_input_error(name):
    try:
        dataset = parse_dataset(name)
    except InputError:
        return
    assert dataset.name.isascii()
    assert parse_dataset(dataset.name) == dataset


def test_the_programme_is_the_first_four_characters():
    names = ["jzzz01010", "iabc02020"]
    for given_as in (names, np.array(names), np.array(names, dtype=object), pd.Series(names)):
        assert programmes(given_as).tolist() == ["jzzz", "iabc"]
    assert programmes([]).shape == (0,)
