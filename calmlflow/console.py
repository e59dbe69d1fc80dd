"""Print what a command says: one line for a failure, and progress on a terminal."""

import errno
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.settings import hide_password, jobs_uri

if TYPE_CHECKING:
    import typer


def say(text: str) -> None:
    """Print one line of progress on standard error, so that standard output stays for answers."""
    print(text, file=sys.stderr, flush=True)


class Update(Protocol):
    """Take the progress of `progress`."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show units done, units in all where they are known by now, and a note."""


@contextmanager
def progress(description: str, unit: str, total: int | None = None) -> Iterator[Update]:
    """Show a progress bar on standard error while the block runs; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    in_all = total
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None, note="")

        def update(done: int, total: int | None = None, note: str = "") -> None:
            total = total or in_all
            counted = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
            bar.update(task, completed=done, total=total, note=f"{counted} {note}")

        yield update


@contextmanager
def byte_progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show the progress of bytes: yields a callable that takes the bytes done since the last call, from any thread."""
    counting = threading.Lock()
    done = 0
    with progress(description, "bytes", total) as update:

        def advance(size: int) -> None:
            nonlocal done
            with counting:
                done += size
                update(done)

        yield advance


def run_guarded(command: Callable[[], Any]) -> None:
    """Run a command; a failure that is not a bug becomes one line on standard error and a non-zero exit status.

    A wrong option exits with 2, anything else with 1. An error of MLflow (an unreachable server, an unknown version, a
    refused login) is a failure too: its first line is shown.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Ended by a scheduler or a closed terminal: leave as after an exception, so that runs are marked and temporary
    # files removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        _check_place()
        status = command()
        # Typer returns this exit status for Ctrl-C.
        if status == 130:
            fail("interrupted", status=130)
    except CalmlflowError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except OSError as error:
        _fail_of_output(error)
        raise
    except Exception as error:
        # By their modules: importing Typer and MLflow would take seconds.
        library = type(error).__module__.partition(".")[0]
        if library == "mlflow":
            fail(str(error).strip().partition("\n")[0] or type(error).__name__)
        if library != "typer":
            raise
        if not hasattr(error, "format_message"):
            fail("interrupted", status=130)
        text = error.format_message()
        if text.startswith("Usage:"):
            say(text)
            sys.exit(2)
        fail(text, status=2)
    finally:
        _flush_output()


def _check_place() -> None:
    """Refuse to work where answers would be lost, or paths lead nowhere."""
    if sys.stdout is None:
        raise CalmlflowError("standard output is closed; expected an open one, or /dev/null")
    try:
        Path.cwd()
    except OSError as error:
        raise CalmlflowError(
            f"the working folder cannot be used ({error.strerror}); expected one that exists"
        ) from error


def _flush_output() -> None:
    """Write what is left in the buffer; a failure is one line."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would write again at exit, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail_of_output(error)


def _fail_of_output(error: OSError) -> None:
    # Of a stream; what opens or replaces files names them.
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF):
        fail(f"output cannot be written ({error.strerror}); expected a reader, and room")


def fail(text: str, status: int = 1) -> NoReturn:
    """Print ``error: ...`` as one line on standard error and exit."""
    say("error: " + hide_password(" ".join(text.split())))
    sys.exit(status)


def new_app(**settings: Any) -> "typer.Typer":
    """Make a command line with plain text, whose errors `run_guarded` prints."""
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
        if option.name in ("output", "store", "target"):
            option.callback = _refuse_lost
    return command


def _refuse_lost(context: Any, option: Any, value: Any) -> Any:
    """Refuse a place in the folder that `mlflow run` fetches a git address into: nobody finds it afterwards."""
    del context
    here, temporary = Path.cwd().resolve(), Path(tempfile.gettempdir()).resolve()
    is_fetched = here.is_relative_to(temporary) and re.match("tmp[a-z0-9_]{8}(/|$)", str(here.relative_to(temporary)))
    place = jobs_uri() if option.name == "store" and value in ("", "default") else str(value)
    path = place.removeprefix("sqlite:///")
    is_lost = "://" not in path and (here / path).resolve().is_relative_to(here)
    if os.environ.get("MLFLOW_RUN_ID") and is_fetched and is_lost:
        raise InputError(
            f"{option.name} {place} lies in the temporary folder that MLflow fetched this project into, and would be "
            f"lost; expected an absolute path or an address: -P {option.name}=..."
        )
    return value
