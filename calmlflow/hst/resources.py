"""Compute the targets of a finished job from its metrics files."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from calmlflow.errors import InputError
from calmlflow.hst.ladder import needed_bin

MAX_METRICS_FILE_BYTES = 1_048_576

KILLS = ("time", "memory", "machine", "failed")
"""What ends a job early: its kill time, lack of memory, its machine, or a failure of its own."""

_ELAPSED = "Elapsed (wall clock) time (h:mm:ss or m:ss)"
_RESIDENT = "Maximum resident set size (kbytes)"
_STATUS = "Exit status"
_LABELS = (_ELAPSED, _RESIDENT, _STATUS)
_SIGNAL = "Command terminated by signal"
_KILLED = re.compile(_SIGNAL + " ([0-9]{1,3})")
_CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-5]?[0-9]):([0-5][0-9])(?:[.,][0-9]+)?")


class StepFailedError(InputError):
    """A step of the job failed, so that the job has no targets."""


class Usage(NamedTuple):
    """Whole seconds elapsed (not rounded), peak memory in kB, and exit status of a step (128 + signal if killed)."""

    elapsed_s: int
    resident_kb: int
    exit_status: int


class Targets(NamedTuple):
    """Wallclock in seconds, memory in GB (10^9 bytes), and needed rung of a job."""

    wallclock: int
    memory: float
    mem_bin: int


def parse_runs(text: str | bytes, source: str = "metrics file") -> list[Usage]:
    """Read the output of GNU ``time --verbose`` by its labels: one or more runs of a step, the last one last.

    Parameters
    ----------
    text : str or bytes
        Content of the file.
    source : str
        Name used in errors.

    Raises
    ------
    InputError
        Too large, a label missing, or a value that does not parse.
    """
    if len(text) > MAX_METRICS_FILE_BYTES:
        raise InputError(f"{source} has {len(text)} bytes; expected at most {MAX_METRICS_FILE_BYTES}")
    if isinstance(text, bytes):
        # The timed command may hold a path in any encoding; the lines that are read are ASCII.
        text = text.decode("utf-8", errors="replace")
    runs: list[dict[str, str]] = [{}]
    for line in map(str.strip, text.splitlines()):
        killed = _KILLED.fullmatch(line)
        label = _SIGNAL if killed else next((label for label in _LABELS if line.startswith(label + ":")), None)
        if label is None:
            continue
        # A run ends where the next one begins. Of lines before that the last one counts: the step itself may have
        # printed such a line.
        if all(known in runs[-1] for known in _LABELS) and (killed or label in runs[-1]):
            runs.append({})
        runs[-1][label] = killed[1] if killed else line[len(label) + 1 :].strip()
    return [_usage(values, source) for values in runs]


def parse_usage(text: str | bytes, source: str = "metrics file") -> Usage:
    """The last one of `parse_runs`."""
    return parse_runs(text, source)[-1]


def _usage(values: Mapping[str, str], source: str) -> Usage:
    for label in _LABELS:
        if label not in values:
            raise InputError(f"{source} has no line {label!r}; expected the output of time --verbose")
    clock = _CLOCK.fullmatch(values[_ELAPSED])
    if not clock:
        raise InputError(f"{source}: elapsed time is {values[_ELAPSED][:40]!r}; expected h:mm:ss or m:ss.ss")
    hours, minutes, seconds = (int(part or 0) for part in clock.groups())
    return Usage(
        elapsed_s=3600 * hours + 60 * minutes + seconds,
        resident_kb=_whole(source, _RESIDENT, values[_RESIDENT]),
        # time writes exit status 0 for a step that was killed, and the signal on a line above.
        exit_status=128 + int(values[_SIGNAL]) if _SIGNAL in values else _whole(source, _STATUS, values[_STATUS]),
    )


def job_targets(name: str, process: str | bytes, preview: str | bytes) -> Targets:
    """Compute the targets of one finished job from ``process_metrics.txt`` and ``preview_metrics.txt``.

    Raises
    ------
    StepFailedError
        A step did not end with exit status 0.
    InputError
        A file does not parse, or says that a step took no memory.
    """
    steps = {
        "process_metrics.txt": parse_usage(process, f"{name}: process_metrics.txt"),
        "preview_metrics.txt": parse_usage(preview, f"{name}: preview_metrics.txt"),
    }
    for file, usage in steps.items():
        if usage.exit_status != 0:
            raise StepFailedError(f"{name}: {file} says exit status {usage.exit_status}; expected 0")
        if usage.resident_kb == 0:
            raise InputError(f"{name}: {file} says {_RESIDENT} is 0; expected the memory of a step that ran")
    memory_gb = sum(usage.resident_kb for usage in steps.values()) / 1e6
    wallclock_s = sum(usage.elapsed_s for usage in steps.values()) + 1
    return Targets(wallclock=wallclock_s, memory=memory_gb, mem_bin=int(needed_bin(memory_gb)))


def _whole(source: str, label: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,15}", value, re.ASCII):
        raise InputError(f"{source}: {label} is {value[:40]!r}; expected a whole number")
    return int(value)
