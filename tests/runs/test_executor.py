"""Tasks give the same results in processes of this machine and on a Dask cluster, of which any may die."""

import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.runs import executor as module
from calmlflow.runs.executor import KILLED, executor, name_of
from tests.samples.dask_cluster import dask_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with dask_cluster(tmp_path_factory.mktemp("dask")) as found:
        yield found


def work(task):
    """Double a number, fail, or end the process."""
    if task["number"] == 3:
        raise ValueError("no\nluck")
    if task["number"] == 4:
        os._exit(7)
    return 2 * task["number"]


def die_once(task):
    """End the process of the first call, wherever that is."""
    if not (place := Path(task["folder"], "died")).exists():
        place.touch()
        os._exit(7)
    return task["number"]


def wait_for_end(task):
    Path(task["folder"], "begun").touch()
    time.sleep(60)


def test_results_and_failures_are_those_of_their_tasks_and_the_next_tasks_run_too(cluster):
    for scheduler, expected in (
        ("local", {0: 0, 1: 2, 2: 4, 3: "no luck", 4: KILLED}),
        (cluster.address, {0: 0, 1: 2, 2: 4, 3: "no luck"}),
    ):
        with executor(scheduler, 2) as run:
            assert dict(run(work, [{"number": number} for number in expected], None)) == expected
            assert list(run(work, [{"number": 5}], None)) == [(0, 10)]


def test_a_signal_while_a_worker_starts_leaves_no_worker(monkeypatch):
    spawn = multiprocessing.util.spawnv_passfds
    started_pids = []

    def spawn_and_end(*arguments):
        started_pids.append(spawn(*arguments))
        if len(started_pids) == 2:
            # To the process, as a scheduler does; the worker waits for what it shall do.
            os.kill(os.getpid(), signal.SIGTERM)
        return started_pids[-1]

    multiprocessing.resource_tracker.ensure_running()
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", spawn_and_end)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        # More than a pipe holds, so that the queue of the pool waits for a reader.
        tasks = [{"number": number, "more": "x" * 1_000_000} for number in range(4)]
        with pytest.raises(SystemExit), executor("local", 2) as run:
            list(run(work, tasks, None))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(started_pids) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_dead_worker_costs_its_task_only_a_second_run(tmp_path):
    with dask_cluster(tmp_path / "dask") as cluster:
        for scheduler in ("local", cluster.address):
            (folder := tmp_path / scheduler[:3]).mkdir()
            with executor(scheduler, 2) as run:
                found = dict(run(die_once, [{"number": n, "folder": str(folder)} for n in range(6)], None))
            assert found == {n: n for n in range(6)}
        assert [worker.poll() for worker in cluster.workers].count(7) == 1


@pytest.mark.slow
def test_a_lost_scheduler_is_one_sentence(tmp_path):
    with dask_cluster(tmp_path / "dask") as cluster, executor(cluster.address) as run:
        threading.Timer(2, cluster.scheduler.kill).start()
        with pytest.raises(CalmlflowError, match="was lost after 0 of 1 tasks; expected it until the end"):
            list(run(wait_for_end, [{"folder": str(tmp_path)}], None))
    assert (tmp_path / "begun").exists()


def test_a_task_that_comes_after_the_death_of_a_process_is_lost_as_those_before_it():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert isinstance(pool.submit(os._exit, 7).exception(), BrokenProcessPool)
        assert isinstance(module._submit(pool, work, {}).exception(), BrokenProcessPool)


def test_a_worker_with_other_software_is_refused():
    other = {**module.software(), "tensorflow": "1.0"}
    with pytest.raises(CalmlflowError, match=r"the worker has tensorflow .*; expected 1.0"):
        module.call(other, f"{__name__}:work", {"number": 1})


def test_names_are_by_content():
    assert name_of({"a": 1, "b": 2}) == name_of({"b": 2, "a": 1}) != name_of({"a": 1, "b": 3})


@pytest.mark.parametrize("address", ["host:8786", "http://host:1", "dask", "tcp://host"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match=rf"scheduler is '{address}'; expected local, or"), executor(address):
        pass


def test_an_address_without_a_scheduler_is_told_within_ten_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        dead = gone.getsockname()[1]
        gone.close()
        for port in (dead, silent.getsockname()[1]):
            began = time.monotonic()
            with pytest.raises(CalmlflowError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{port}"):  # noqa: SIM117
                with executor(f"tcp://127.0.0.1:{port}"):
                    pass
            assert time.monotonic() - began < 10
