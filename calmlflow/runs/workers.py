"""Work shared out to separate processes, of which any may fail or be killed without taking the others along.

The pools of the standard library lose all open work when one process dies, and so cannot tell which piece killed it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

# One thread per process: the processes are as many as the cores. And numbers must not depend on how many there are.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


@dataclass(frozen=True)
class Failure:
    """A piece of work that came to nothing, and why."""

    reason: str


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(
    function: Callable[[Any, Any], Any], shared: Any, tasks: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    """Call ``function(shared, task)`` for each task in separate processes; results come in the order of their ends.

    Parameters
    ----------
    function : callable
        Of a module that can be imported; TensorFlow does not survive a fork, so processes start anew.
    shared : object
        Sent to each process once.
    tasks : sequence
    workers : int
        Processes, 1 or more. Each uses one thread, imports what it needs once, and handles several tasks.

    Yields
    ------
    task, result
        The result is a `Failure` where the function raised an exception or its process was ended; a new process then
        goes on with the rest. Closing the iterator, as any exception in its loop does, ends all processes.
    """
    waiting = deque(tasks)
    busy: dict[Connection, tuple[BaseProcess, Any]] = {}
    hired: list[BaseProcess] = []

    def hire() -> None:
        pipe, far_end = context.Pipe()
        process = context.Process(target=_work, args=(far_end,), daemon=True)
        process.start()
        hired.append(process)
        far_end.close()
        _send(pipe, (function, shared))
        give(pipe, process)

    def give(pipe: Connection, process: BaseProcess) -> None:
        task = waiting.popleft()
        busy[pipe] = process, task
        _send(pipe, task)

    context = multiprocessing.get_context("spawn")
    try:
        for _ in range(min(workers, len(tasks))):
            hire()
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)  # noqa: S101 - nothing else was waited for
                process, task = busy.pop(pipe)
                try:
                    result = pipe.recv()
                except (EOFError, OSError):
                    pipe.close()
                    process.join()
                    result = Failure(_end_of(process.exitcode))
                    if waiting:
                        hire()
                else:
                    if waiting:
                        give(pipe, process)
                    else:
                        pipe.close()
                yield task, result
    finally:
        for process in hired:
            process.kill()
        for process in hired:
            process.join()


def _send(pipe: Connection, what: Any) -> None:
    try:
        pipe.send(what)
    except OSError:
        # The process is gone; the next look at its pipe tells.
        return


def _end_of(exitcode: int | None) -> str:
    ending = (
        f"was ended by {signal.Signals(-exitcode).name}"
        if exitcode and exitcode < 0
        else f"ended with status {exitcode}"
    )
    return f"its worker process {ending}"


def _work(pipe: Connection) -> None:
    """What a process does until its pipe is closed."""
    # Ctrl-C reaches the whole group; the parent decides. Without it, nobody would read the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        # Imports the function's module, and only now: what counts threads reads the environment when imported.
        function, shared = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                result = function(shared, task)
            except Exception as error:
                result = Failure(" ".join(str(error).split()) or type(error).__name__)
            pipe.send(result)
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
