"""How a command of calmlflow talks to a person: one line for a failure, progress only on a terminal."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from calmlflow.errors import CalmlflowError
from calmlflow.settings import hide_password

if TYPE_CHECKING:
    import typer


def say(text: str) -> None:
    """Print one line of progress on standard error, so that standard output stays for answers."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int, float], None]]:
    """A progress bar on standard error while the block runs; nothing where that is no terminal.

    Yields
    ------
    callable
        Called with epochs done, epochs at most, and the latest validation loss.
    """
    with _bar(description) as update:
        yield lambda done, total, loss: update(done, total, f"epoch {done}/{total}, validation loss {loss:.4g}")


@contextmanager
def byte_progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """The same for bytes: yields a callable that takes the bytes done since the last call, from any thread."""
    counting = threading.Lock()
    done = 0
    of_total = f" of {total / 1e6:.1f}" if total is not None else ""
    with _bar(description) as update:

        def advance(size: int) -> None:
            nonlocal done
            with counting:
                done += size
                update(done, total, f"{done / 1e6:.1f}{of_total} MB")

        yield advance


@contextmanager
def counted(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """The same for parts of some work: yields a callable that takes the parts done and a note."""
    with _bar(description) as update:
        yield lambda done, note: update(done, total, f"{done}/{total} {note}")


@contextmanager
def row_progress(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """The same for rows: yields a callable that takes rows done and, where they are known, rows in all."""
    with _bar(description) as update:
        yield lambda done, total: update(done, total, f"{done:,} of {total:,} rows" if total else f"{done:,} rows")


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int | None, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def run_guarded(command: Callable[[], Any]) -> None:
    """Run a command; a failure that is not a bug becomes one line on standard error and a non-zero exit status.

    A wrong option exits with 2, anything else with 1. MLflow's own failures (an unreachable server, an unknown version,
    a refused login) count as such: their text is cut to its first line.
    """
    # What libraries write into the home folder when they are imported, and what nobody asked for, stays away.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Ended by a scheduler: leave as after an exception, so that runs are marked and temporary files removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        status = command()
        # What Typer makes of Ctrl-C is an exit that it gives back like a result.
        if status == 130:
            fail("interrupted", status=130)
    except CalmlflowError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except Exception as error:
        # Typer and MLflow are heavy and often not loaded here; their exceptions are told by the module they come from.
        library = type(error).__module__.partition(".")[0]
        if library == "mlflow":
            fail(str(error).strip().partition("\n")[0] or type(error).__name__)
        if library != "typer":
            raise
        if not hasattr(error, "format_message"):
            fail("interrupted", status=130)
        text = error.format_message()
        # The bare command explains itself.
        if text.startswith("Usage:"):
            say(text)
            sys.exit(2)
        fail(text, status=2)


def fail(text: str, status: int = 1) -> NoReturn:
    """Print ``error: ...`` as one line on standard error and exit."""
    say("error: " + hide_password(" ".join(text.split())))
    sys.exit(status)


def new_app(**settings: Any) -> "typer.Typer":
    """A command line in plain text: help without boxes, errors left to `run_guarded`."""
    import typer

    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


def script(main: Callable[..., Any]) -> None:
    """Run ``main`` as the command line of an entry point: its annotated arguments become options."""
    command = script_command(main)
    run_guarded(lambda: command.main(standalone_mode=False))


def script_command(main: Callable[..., Any]) -> Any:
    """The Typer command of an entry point.

    MLflow passes a value for every parameter, so a flag of an operator's command (``--force``) takes one here
    (``--force true``).
    """
    import typer.main

    app = new_app()
    app.command()(main)
    command: Any = typer.main.get_command(app)
    for option in command.params:
        option.is_flag = option.is_bool_flag = False
        option.secondary_opts = []
    return command
