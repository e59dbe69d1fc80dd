"""Names of versions, as a user gives them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.settings import parse_choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("production", "Production"), (" Staging ", "Staging"), ("ARCHIVED", "Archived"), ("007", "7"),
        ("Latest", "latest"), ("champion", "@champion"), ("@champion", "@champion"), ("@production", "@production"),
        ("@7", "@7"), ("None", "@None"),
    ],
)  # fmt: skip
def test_a_version_is_named_by_stage_number_alias_or_latest(text, choice):
    assert parse_choice(text) == choice
    assert parse_choice(choice) == choice


@given(st.text())
def test_what_names_a_version_is_a_file_name_too(text):
    try:
        choice = parse_choice(text)
    except InputError as error:
        assert "expected a stage (Staging, Production, Archived), the number of a version" in str(error)
    else:
        assert not set(choice) & set("/\\.\0\n ")
