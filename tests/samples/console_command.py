"""Commands of calmlflow in the test's own process: quicker than one of their own."""

import signal
from collections.abc import Callable

import pytest

from calmlflow.cli import app as cli
from calmlflow.console import run_guarded, script_command


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Exit status, standard output and standard error of an operator's command."""
    return _run(capsys, lambda: cli.app(list(words), standalone_mode=False))


def entry_here(
    capsys: pytest.CaptureFixture[str], command: Callable[..., None], **options: object
) -> tuple[object, str, str]:
    """The same of an entry point's command."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return _run(capsys, lambda: script_command(command).main(words, standalone_mode=False))


def _run(capsys: pytest.CaptureFixture[str], command: Callable[[], object]) -> tuple[object, str, str]:
    capsys.readouterr()
    status: object = 0
    # A command sets these for a process of its own.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        run_guarded(command)
    except SystemExit as error:
        status = error.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    captured = capsys.readouterr()
    return status, captured.out, captured.err
