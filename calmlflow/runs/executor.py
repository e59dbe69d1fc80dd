"""Decide where tasks run: in processes of this machine, or on the workers of a Dask cluster."""

# A Dask scheduler imports what the functions it is given are of, so it gets `call` of this module, which is light. A
# task is a dictionary of plain values: what to read, and never what was read.

import json
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import wait
from typing import Any

from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.http_client import within
from calmlflow.settings import hide_password

LOCAL = "local"
CONNECT_S = 5.0

Task = Mapping[str, Any]
Prepare = Callable[[], None] | None
Run = Callable[[Callable[[Any], Any], Sequence[Task], Prepare], Iterator[tuple[int, Any]]]
"""Runs a function on each of some tasks, and gives, as they end, the position of each with its result or `Failure`.

What prepares goes along with each task to the processes of this machine, and is called first; no cluster gets it.
"""

_ADDRESS = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+:\d{1,5}")
_alone = threading.Lock()


class Failure(str):
    """Why a task failed, in one line."""


KILLED = Failure("its worker process was killed")


@contextmanager
def executor(scheduler: str = LOCAL, workers: int = 0) -> Iterator[Run]:
    """Open the place where tasks run while the block does.

    A task whose worker dies runs again, on another one; a task that ends its process again and again fails alone.

    ``scheduler`` is `LOCAL` or the address of a Dask scheduler, ``workers`` the processes of this machine (0: one per
    core). Raises an InputError where one is none or Dask is not installed, and a CalmlflowError where no scheduler
    answers within `CONNECT_S` seconds, or it is lost while tasks run.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}; expected a number of processes, or 0 for one per core")
    if scheduler == LOCAL:
        with _local(workers or None) as run:
            yield run
    else:
        with _connected(scheduler) as pool:
            yield partial(_run_there, pool, hide_password(scheduler))


def software() -> dict[str, str]:
    """What results depend on beside a task: the same here and on a worker, or its tasks fail."""
    packages = ("calmlflow", "keras", "numpy", "onnxruntime", "tensorflow")
    return {"ladder": LADDER.version, **{package: version(package) for package in packages}}


def name_of(task: Task) -> str:
    """A name by content: equal tasks give equal results."""
    return sha256(json.dumps([task, software()], sort_keys=True).encode()).hexdigest()[:24]


def call(expected: dict[str, str], function: str, task: Task, prepare: Prepare = None) -> Any:
    """Call a function, given as ``module:name``, in a worker; one at a time, as random seeds are of a process."""
    here = software()
    if different := [name for name, value in expected.items() if here[name] != value]:
        name = different[0]
        raise CalmlflowError(f"the worker has {name} {here[name]}; expected {expected[name]}, as where it was asked")
    module, _, name = function.partition(":")
    with _alone:
        if prepare:
            prepare()
        return getattr(import_module(module), name)(task)


def _submit(pool: Executor, function: Callable[[Any], Any], task: Task, *more: Any) -> Future[Any]:
    name = f"{function.__module__}:{function.__qualname__}"
    try:
        # A signal raises in the main thread alone. Raised while a worker starts, it would leave a process that nobody
        # knows and that holds the queues of the pool: the parent would wait for it for ever.
        with ThreadPoolExecutor(1) as starter:
            return starter.submit(pool.submit, call, software(), name, task, *more).result()
    except BrokenProcessPool as error:  # a process was killed before the pool took this task
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def _outcome(future: Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if type(error).__name__ in ("BrokenProcessPool", "KilledWorker"):
        return KILLED
    return Failure(" ".join(str(error).split()) or type(error).__name__)


# -- This machine -----------------------------------------------------------------------------------------------------


@contextmanager
def _local(workers: int | None) -> Iterator[Run]:
    """Run tasks in a pool of processes, kept from one call to the next; one that broke is replaced.

    If a process is killed, the pool loses all open tasks: they run again one by one, and the culprit fails.
    """
    pools: list[ProcessPoolExecutor] = []

    def run(
        function: Callable[[Any], Any], tasks: Sequence[Task], prepare: Prepare = None
    ) -> Iterator[tuple[int, Any]]:
        if not pools:
            pools.append(opened.enter_context(_processes(workers)))
        lost = []
        futures = {_submit(pools[0], function, task, prepare): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            if isinstance(future.exception(), BrokenProcessPool):
                lost.append(futures[future])
            else:
                yield futures[future], _outcome(future)
        if lost:
            opened.close()
            pools.clear()
        while lost:
            with _processes(1) as pool:
                outcome = None
                while lost and outcome is not KILLED:
                    number = lost.pop(0)
                    outcome = _outcome(_submit(pool, function, tasks[number], prepare))
                    yield number, outcome

    with ExitStack() as opened:
        yield run


@contextmanager
def _processes(workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes that end with the block."""
    others = set(multiprocessing.active_children())
    # TensorFlow does not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)


# -- A cluster --------------------------------------------------------------------------------------------------------


@contextmanager
def _connected(address: str) -> Iterator[Executor]:
    """Connect to a scheduler, by Dask's own protocol and with the TLS of Dask's own configuration."""
    shown = hide_password(address)
    if not _ADDRESS.fullmatch(address):
        raise InputError(f"scheduler is {shown!r}; expected {LOCAL}, or an address such as tcp://host:8786")
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError(f"scheduler {shown} needs Dask; expected: pip install 'calmlflow[distributed]'") from error

    class Quiet(Client):
        def __del__(self) -> None:
            """One that never connected would wait, and print a traceback, when it is thrown away."""

    # It would log what is told in a sentence here.
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
    try:
        # Something else that answers there may keep it waiting for ever.
        client = within(CONNECT_S + 2, lambda: Quiet(address, timeout=CONNECT_S, set_as_default=False))
    except Exception as error:
        raise CalmlflowError(f"no Dask scheduler answers at {shown}; expected one: dask scheduler") from error
    try:
        if not client.scheduler_info()["workers"]:
            say(f"warning: the Dask scheduler at {shown} has no workers; waiting for one: dask worker {shown}")
        yield client.get_executor(pure=True)
    finally:
        # What nobody waits for any more is not begun.
        with suppress(Exception):
            client.close(timeout=CONNECT_S)


def _run_there(
    pool: Executor, address: str, function: Callable[[Any], Any], tasks: Sequence[Task], prepare: Prepare = None
) -> Iterator[tuple[int, Any]]:
    futures = {_submit(pool, function, task): number for number, task in enumerate(tasks)}
    for done, future in enumerate(as_completed(futures)):
        if future.cancelled():
            raise CalmlflowError(
                f"the Dask scheduler at {address} was lost after {done} of {len(tasks)} tasks; expected it until the "
                "end: the same command goes on with what is done"
            )
        yield futures[future], _outcome(future)
