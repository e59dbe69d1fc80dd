"""Command lines of images and containers: each is one that the project has, with options that it has."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import typer.main

from calmlflow.cli.app import app
from calmlflow.console import script_command


def check_command(words: list[str]) -> None:
    """Parse a command line as the command would, which raises where a word is unknown, and run nothing."""
    if words[:2] == ["/bin/sh", "-c"]:
        for part in re.split(r"&&|\|\|", words[2]):
            check_command(shlex.split(part))
    elif words[0] == "calmlflow":
        _parse(typer.main.get_command(app), words[1:])
    else:
        assert words[:2] == ["python", "-m"], words
        script = importlib.import_module(words[2])
        (command,) = (found for found in vars(script).values() if callable(found) and found is not script.script)
        _parse(script_command(command), words[3:])


def _parse(command: Any, words: list[str]) -> None:
    context = command.make_context(command.name, list(words))
    while hasattr(command, "resolve_command") and (left := [*context._protected_args, *context.args]):
        name, command, words = command.resolve_command(context, left)
        context = command.make_context(name, words, parent=context)
    assert not context.args


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and their words."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def last(dockerfile: Path, name: str) -> str:
    """The words of the last instruction of a name."""
    return dict(instructions(dockerfile))[name]


def command_of(words: str) -> list[str]:
    """The list in what follows CMD."""
    return json.loads(words[words.index("[") :])
