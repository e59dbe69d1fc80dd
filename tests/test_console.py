"""A failure is one line and a status; a signal ends a command as an exception would."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import pytest
import typer

from calmlflow.console import byte_progress, fail, new_app, progress, run_guarded, say
from calmlflow.errors import CalmlflowError, InputError
from tests.samples.commands import ROOT, started


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    """What `run_guarded` sets for a process of its own is taken back."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def guarded(command, capsys) -> tuple[object, list[str]]:
    """Exit status and lines on standard error; nothing may stand on standard output."""
    with pytest.raises(SystemExit) as caught:
        run_guarded(command)
    captured = capsys.readouterr()
    assert captured.out == ""
    return caught.value.code, captured.err.splitlines()


def raising(error):
    def command():
        raise error

    return command


def mlflow_error(text):
    from mlflow.exceptions import MlflowException

    return MlflowException(text)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CalmlflowError("no server"), 1, "error: no server"),
        (InputError("stage 'x' does not exist;\n expected\tone"), 1, "error: stage 'x' does not exist; expected one"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (typer.Abort(), 130, "error: interrupted"),
        (mlflow_error("no such run\nand a long tale"), 1, "error: no such run"),
    ],
)
def test_a_failure_is_one_line_and_a_status(capsys, error, status, line):
    assert guarded(raising(error), capsys) == (status, [line])


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_guarded(lambda: 1 / 0)


def test_a_wrong_option_ends_with_2_and_a_right_one_runs(capsys):
    app = new_app()
    given = []

    @app.command()
    def main(number: Annotated[int, typer.Option()] = 1) -> None:
        given.append(number)

    run_guarded(lambda: app(["--number", "5"], standalone_mode=False))
    assert given == [5]
    for words in (["--number", "five"], ["--other", "5"]):
        status, (line,) = guarded(lambda words=words: app(words, standalone_mode=False), capsys)
        assert status == 2
        assert line.startswith("error: ")
        assert words[0] in line


def test_no_password_is_shown(capsys):
    with pytest.raises(SystemExit) as caught:
        fail("https://user:pass@host/path\nfailed", status=3)
    assert caught.value.code == 3
    assert capsys.readouterr().err == "error: https://***@host/path failed\n"


def test_progress_is_for_terminals(capsys):
    with progress("training", "epochs") as update, byte_progress("sending") as advance:
        update(1, 10, "validation loss 0.5")
        advance(5)
    say("done")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "done\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_from_outside_cleans_up(tmp_path, number, status):
    code = """
import signal
from contextlib import contextmanager
from pathlib import Path
from calmlflow.console import run_guarded
from calmlflow.storage.files import new_tree

def command():
    with new_tree(Path("output")) as tree:
        (tree.partial / "half").touch()
        print("began", flush=True)
        while True:
            signal.pause()

# Under nohup it is ignored, and so it would be here.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
run_guarded(command)
"""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    with started(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "began\n"
        assert len(list((tmp_path / "output").iterdir())) == 1
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (status, "")
    assert list((tmp_path / "output").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("cd {tmp} && exec {run} >/dev/full", "output cannot be written (No space left on device); expected"),
        ("cd {tmp} && exec {run} >&-", "standard output is closed; expected an open one"),
        ("cd {tmp} && rmdir {tmp} && exec {run}", "the working folder cannot be used (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_where_nothing_can_be_written_or_read_is_one_sentence(tmp_path, place, words, unbuffered):
    command = f"{sys.executable} -c 'from calmlflow.__main__ import main; main()' --version"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    more = {"PYTHONPATH": path, "PYTHONUNBUFFERED": unbuffered}
    shell = ["sh", "-c", place.format(tmp=tmp_path, run=command)]
    done = subprocess.run(shell, env={**os.environ, **more}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {words}")


WITH_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("command", [["calmlflow", "stages"], [sys.executable, "-m", "entrypoints.promote"]])
def test_ctrl_c_is_no_success(tmp_path, command):
    # A server that takes the question and never answers.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # MLflow keeps the registry of another test in the environment.
        shell = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        shell["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        shell["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{shell['PATH']}"
        # What runs in the background of a shell has Ctrl-C switched off, and hands that on.
        wrapped = ["python", "-c", WITH_CTRL_C, *command]
        process = subprocess.Popen(wrapped, cwd=ROOT, env=shell, stderr=subprocess.PIPE, text=True)
        listener.settimeout(120)
        connection, _ = listener.accept()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: interrupted"


@pytest.mark.parametrize(("entry", "words", "place"), [
    ("main", [], "output data"),
    ("ingest", ["--bucket", "b"], "store sqlite:///"),
    ("copy", ["--source", "sample:5", "--target", "sqlite:///jobs.db"], "target sqlite:///jobs.db"),
])  # fmt: skip
def test_a_project_of_a_git_address_leaves_nothing_in_its_temporary_folder(entry, words, place):
    # Where MLflow fetches it to.
    with tempfile.TemporaryDirectory() as folder:
        code = f"import runpy; runpy.run_module('entrypoints.{entry}', run_name='__main__')"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CALMLFLOW_")}
        environment |= {"MLFLOW_RUN_ID": "0" * 32, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert (done.returncode, list(Path(folder).iterdir())) == (1, [])
        assert done.stderr.startswith(f"error: {place}")
        assert "lies in the temporary folder that MLflow fetched" in done.stderr
