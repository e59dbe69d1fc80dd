"""Commands of calmlflow in the test's own process: quicker than one of their own."""

import signal

import pytest

from calmlflow.cli import app as cli
from calmlflow.console import run_guarded


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Exit status, standard output and standard error of a command."""
    capsys.readouterr()
    status: object = 0
    # What `run_guarded` sets for a process of its own is taken back.
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_guarded(lambda: cli.app(list(words), standalone_mode=False))
    except SystemExit as error:
        status = error.code
    finally:
        signal.signal(signal.SIGTERM, before)
    captured = capsys.readouterr()
    return status, captured.out, captured.err
