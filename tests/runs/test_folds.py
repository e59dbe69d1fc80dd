"""Folds are kept by the content of their task, and a worker reads the same jobs or none."""

import numpy as np
import pytest

from calmlflow.errors import InputError
from calmlflow.jobs.sample import draw_sample
from calmlflow.networks.config import TrainingConfig
from calmlflow.runs.executor import Failure
from calmlflow.runs.folds import Fold, Source, deal, forget, run_fold, score_folds

CONFIG = TrainingConfig(epochs=5, refit_epochs=0, members=2)


def source(data: str = "sample:200") -> Source:
    return Source(data, 0, None, "job", 3)


def same(one: Fold, other: Fold) -> bool:
    return repr(one) == repr(other)


def test_the_same_command_goes_on_with_the_folds_that_are_kept(tmp_path):
    dealt = deal(source())
    tasks = [dealt.task("mem_reg", CONFIG, fold, fold) for fold in range(3)]
    folds = [
        Fold({"mem_pred": np.arange(3.0)}, {"loss": np.ones(2)}, {"rmse": n, "r2": np.nan}, (0.1,), 1.5)
        for n in range(3)
    ]
    asked = []

    def run(function, given, prepare):
        assert function is run_fold
        asked.append([task["fold"] for task in given])
        yield from (
            (n, Failure("no luck") if task["fold"] == 1 else folds[task["fold"]]) for n, task in enumerate(given)
        )

    first = dict(score_folds(run, dealt, tasks, tmp_path / "kept"))
    # A damaged file is none.
    damaged = sorted((tmp_path / "kept").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    again = dict(score_folds(run, dealt, tasks, tmp_path / "kept"))
    assert asked[0] == [0, 1, 2]
    assert len(asked[1]) == 2 and 1 in asked[1]
    assert first[1] == again[1] == "no luck"
    assert all(same(found[n], folds[n]) for found in (first, again) for n in (0, 2))
    forget(tasks, tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_reads_other_jobs_refuses_its_task(tmp_path, monkeypatch):
    draw_sample(200).to_csv(tmp_path / "jobs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    task = deal(source("jobs.csv")).task("mem_reg", CONFIG, 0, 0)
    assert task["jobs"]["source"]["data"] == str(tmp_path / "jobs.csv")
    draw_sample(201).to_csv(tmp_path / "jobs.csv", index=False)
    with pytest.raises(InputError, match=r"jobs.csv holds other jobs for a worker; expected the same"):
        run_fold(task)
