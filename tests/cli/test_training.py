"""Commands of entry points as MLflow calls them, with a value for every parameter."""

from typing import Annotated

import pytest
import typer

from calmlflow.cli.training import crossval, main, mem_bin, retrain
from calmlflow.console import script_command
from tests.samples.console_command import entry_here


def flags(
    force: Annotated[bool, typer.Option("--force")] = False, register: Annotated[bool, typer.Option()] = True
) -> None:
    print(force, register)


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({}, "False True\n"),
        ({"force": "true", "register": "false"}, "True False\n"),
        ({"force": "FALSE", "register": "True"}, "False True\n"),
    ],
)
def test_a_flag_takes_a_value(capsys, options, printed):
    assert entry_here(capsys, flags, **options) == (0, printed, "")


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (flags, {"force": "perhaps"}, "Invalid value for '--force'"),
        (main, {"register": "yess"}, "Invalid value for '--register'"),
        (main, {"risk": "-1"}, "Invalid value for '--risk'"),
        (main, {"seed": "abc"}, "Invalid value for '--seed'"),
        (mem_bin, {"only": "all"}, "No such option: --only"),
        (crossval, {"folds": "ten"}, "Invalid value for '--folds'"),
        (retrain, {}, "Missing option '--data'"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(capsys, command, options, error):
    status, out, err = entry_here(capsys, command, **options)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert len(err.splitlines()) == 1


def test_unknown_networks_are_an_error_before_anything_is_loaded(capsys):
    status, _, err = entry_here(capsys, main, only="forest")
    assert (status, err) == (
        1,
        "error: network 'forest' does not exist; expected all, or some of mem_clf, mem_reg, wall_reg with commas "
        "between\n",
    )


def test_every_option_says_what_it_takes():
    for command in (main, mem_bin, crossval, retrain):
        assert all(option.help for option in script_command(command).params), command
