"""How a command of calmlflow talks to a person: one line for a failure, progress only on a terminal."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from calmlflow.hst.errors import CalmlflowError


def say(text: str) -> None:
    """Print one line of progress on standard error, so that standard output stays for answers."""
    print(text, file=sys.stderr, flush=True)


def run_guarded(command: Callable[[], Any]) -> None:
    """Run a command; a failure that is not a bug becomes one line on standard error and exit status 1.

    MLflow's own failures (an unreachable server, an unknown version, a refused login) count as such: their text is
    cut to its first line.
    """
    try:
        command()
    except CalmlflowError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except Exception as error:
        # MLflow is heavy and often not loaded here; its exceptions are told by the module they come from.
        if type(error).__module__.partition(".")[0] == "mlflow":
            fail(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise


def fail(text: str, status: int = 1) -> None:
    """Print ``error: ...`` as one line on standard error and exit."""
    say("error: " + " ".join(text.split()))
    sys.exit(status)


def script(main: Callable[..., Any]) -> None:
    """Run ``main`` as the command line of an entry point: its annotated arguments become options."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_guarded(app)
