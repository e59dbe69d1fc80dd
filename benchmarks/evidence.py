"""`make bench-evidence`: score networks, answers and forests on splits by job, programme and time."""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, show
from benchmarks.rivals import WITH_EVIDENCE, Rival, forest_with_evidence, networks_and_answer, random_forest
from benchmarks.scores import score_of
from benchmarks.tables import ROWS, empty_table
from calmlflow.console import say, script
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import needed_bin
from calmlflow.networks.preprocess import parts_of_jobs
from calmlflow.predictor.bundle import Bundle, Predictions, in_logs
from calmlflow.predictor.evidence import LEVELS, Finished, build_evidence, fit_strength
from calmlflow.results.comparison import compare_predictions
from calmlflow.results.scores import PREDICTED
from calmlflow.runs.data import TrainingData, hold_out, load_training_data
from calmlflow.runs.train import TrainingRequest

SEEDS = (0, 1, 2)
FOLDS = 5
TEST_SIZE = 0.2
RUN = LEVELS.index("run")
MAX_COLLECTIONS = 10
"""The jobs of a collection have one time. Jobs of more different times were not collected so."""

RANDOM, PROGRAMMES = "fifth of the jobs, seed {}", "fifths of the programmes"
FIRST, LATER = "collection 1 -> 2", "collections 1, 2 -> 3"

CAPTION = (
    "better, worse: the interval by programmes of the difference leaves out 0, and the score is of ten jobs or more"
)

SCORED = (
    *("mem_bin_accuracy", "mem_bin_recall_64g", "mem_bin_excess_cost", "mem_bin_log_loss"),
    *("memory_rmse", "memory_mae", "memory_log_mae", "wallclock_rmse", "wallclock_mae", "wallclock_log_mae"),
    *("wallclock_kill_time_coverage", "wallclock_kill_time_reserved"),
)

LIMITS = {
    RANDOM: {
        "mem_bin_accuracy": 0.993,
        "mem_bin_excess_cost": 0.014,
        "mem_bin_log_loss": 0.024,
        "memory_mae": 0.040,
        "wallclock_mae": 160,
        "wallclock_rmse": 440,
        "wallclock_log_mae": 0.176,
        "wallclock_kill_time_coverage": 0.999,
        "wallclock_kill_time_reserved": 3.0,
    },
    LATER: {
        "mem_bin_accuracy": 0.965,
        "mem_bin_excess_cost": 0.023,
        "wallclock_mae": 222,
        "wallclock_kill_time_coverage": 0.998,
    },
    FIRST: {"mem_bin_excess_cost": 0.030, "wallclock_kill_time_coverage": 0.996},
    PROGRAMMES: {"wallclock_kill_time_coverage": 0.998},
}
"""What is asked of the answers to the real jobs, by split; of the seeds of a random split each must reach it."""

NO_WORSE = {FIRST: ("networks",), PROGRAMMES: ("networks", "random forest")}
TRAINING = 1.2
"""Seconds of a fit with evidence over seconds of the networks' fit, at most."""

RERUNS = {"wallclock_rmse": -0.12, "wallclock_mae": -0.08, "memory_rmse": -0.25}
"""What the last run of a dataset must change in the answer's scores, as a share of them."""


@dataclass(frozen=True)
class Split:
    """Scores of the answer on the test jobs of a split, beside those of each rival.

    ``rivals`` have a row for each of `SCORED`, with the columns of `calmlflow.results.comparison.Comparison.scores`;
    intervals are of programmes. ``seconds`` are those of the fits with evidence and without.
    """

    jobs: int
    seconds: tuple[float, float]
    rivals: dict[str, pd.DataFrame]

    def worse(self, rival: str) -> list[str]:
        """Scores that are worse than a rival's beyond their interval."""
        rows = self.rivals[rival].to_dict("index")
        return [key for key, row in rows.items() if verdict(str(key), row) == "worse"]


def verdict(key: str, row: Mapping[str, float]) -> str:
    """Judge the difference of two scores by its interval."""
    return score_of(key).verdict(row["difference"], (row["low"], row["high"]), int(row["jobs"]))


def fold_of_programme(jobs: pd.DataFrame) -> NDArray[np.int64]:
    """Deal the programmes of jobs to `FOLDS` folds by a hash of their names, as `crossval` does."""
    return parts_of_jobs(jobs["ipst"], [], "programme", 0, [fold / FOLDS for fold in range(1, FOLDS)])


def splits_of(data: TrainingData) -> dict[str, list[TrainingData]]:
    """Train and test jobs of each split; the tests of several parts are scored together."""
    everyone, jobs = np.arange(len(data.jobs)), data.jobs
    splits = {}
    for seed in SEEDS:
        part = parts_of_jobs(jobs["ipst"], jobs["timestamp"], "job", seed, [TEST_SIZE])
        splits[RANDOM.format(seed)] = [hold_out(data, everyone, part, 0)]
    times, collection = np.unique(data.jobs["timestamp"], return_inverse=True)
    for last in range(1, len(times)) if len(times) <= MAX_COLLECTIONS else ():
        pool = np.flatnonzero(collection <= last)
        earlier = ", ".join(str(number) for number in range(1, last + 1))
        title = f"collection{'s' if last > 1 else ''} {earlier} -> {last + 1}"
        splits[title] = [hold_out(data, pool, collection[pool], last)]
    fold = fold_of_programme(data.jobs)
    splits[PROGRAMMES] = [hold_out(data, everyone, fold, number) for number in range(FOLDS)]
    return splits


def compare(jobs: pd.DataFrame, ours: Predictions, theirs: Predictions, seed: int = 0) -> pd.DataFrame:
    """Our scores beside theirs, the difference with its interval by programmes; a row for each of `SCORED`."""
    tables = []
    for target in PREDICTED:
        table = compare_predictions(target, jobs, ours, theirs, seed).scores
        tables.append(table.rename(index=lambda name, target=target: f"{target}_{name}"))
    found = pd.concat(tables)
    return found.loc[[key for key in SCORED if key in found.index]]


def measure(parts: list[TrainingData], request: TrainingRequest, models: Path) -> Split:
    """Train everybody on each part of a split, and score all test jobs; each part has a folder in ``models``."""
    found: dict[str, list[Rival]] = {}
    for number, data in enumerate(parts):
        folder = models / str(number)
        networks, answer, _ = networks_and_answer(data, request, folder)
        forest = random_forest(data, request.seed, out_of_bag=True)
        for rival in (answer, networks, forest, forest_with_evidence(forest, data, Bundle.load(folder))):
            found.setdefault(rival.name, []).append(rival)
    jobs = pd.concat([data.jobs.iloc[data.test] for data in parts])
    predictions = {
        name: {key: np.concatenate([one.predictions[key] for one in rivals]) for key in rivals[0].predictions}
        for name, rivals in found.items()
    }
    ours = predictions.pop("answer")
    seconds = tuple(sum(rival.fit_seconds for rival in found[name]) for name in ("answer", "networks"))
    return Split(len(jobs), seconds, {name: compare(jobs, ours, theirs) for name, theirs in predictions.items()})


def measure_reruns(file: str, data: TrainingData, bundle: Bundle) -> dict[str, pd.DataFrame]:
    """Answers to second runs that know the first, beside answers that do not; of the networks, and with evidence.

    The strength of the last run is fitted to the datasets of the other folds of programmes. ``data`` holds none of the
    datasets.
    """
    table = pd.read_csv(file)
    first, second = (
        table.assign(memory=table[f"memory_{run}"], wallclock=table[f"wallclock_{run}"], timestamp=run)
        for run in (1, 2)
    )
    second["mem_bin"] = needed_bin(second["memory"])
    features, names, fold = table[list(FEATURES)].to_numpy(float), table["ipst"].to_numpy(), fold_of_programme(table)
    outputs = bundle.run(features)
    logs = in_logs(outputs)
    fitted = bundle.evidence
    assert fitted is not None
    strengths = np.array([fitted.strength] * FOLDS)
    for number in range(FOLDS):
        others = fold != number
        earlier, later = (Finished.of(runs[others]) for runs in (first, second))
        strengths[number, RUN] = fit_strength(logs[others], later, earlier)[RUN]

    found = {}
    for title, jobs in (("networks", data.jobs[:0]), ("answer", data.jobs)):
        finished = Finished.of(jobs)
        without, *with_run = (
            build_evidence(finished, strength, fitted.shift, runs).correct(logs, features, names, at=time.time())
            for strength, runs in [(fitted.strength, None), *((one, Finished.of(first)) for one in strengths)]
        )
        answers = np.array([corrected.answers for corrected in with_run])[fold, np.arange(len(fold))]
        both = (bundle.answer(outputs, one) for one in (with_run[0]._replace(answers=answers), without))
        found[title] = compare(second, *both)
    return found


def reach(splits: Mapping[str, Split], reruns: Mapping[str, pd.DataFrame]) -> list[Figure]:
    """What is asked of the answer, and whether it was reached."""
    figures = []
    random = [splits[RANDOM.format(seed)] for seed in SEEDS]
    for title, limits in LIMITS.items():
        some = random if title == RANDOM else [splits[title]] if title in splits else []
        name = "fifth of the jobs, worst of the seeds" if title == RANDOM else title
        for key, limit in limits.items() if some else ():
            values = [float(split.rivals["networks"].loc[key, "this"]) for split in some]
            better = score_of(key).higher_is_better
            value = min(values) if better else max(values)
            figures.append(Figure(f"{name}: {ROWS[key][0]}", value, ">=" if better else "<=", limit))
    recalls = [split.rivals["random forest"]["difference"].get("mem_bin_recall_64g", np.nan) for split in random]
    figures.append(Figure("fifth of the jobs, worst of the seeds: recall 64g less the forest's", min(recalls), ">=", 0))
    for title, rivals in NO_WORSE.items():
        if title in splits:
            for rival in rivals:
                worse = splits[title].worse(rival)
                figures.append(Figure(f"{title}: scores worse than {rival}, by programmes", len(worse), "<=", 0))
    with_evidence, without = map(sum, zip(*(split.seconds for split in splits.values()), strict=True))
    figures.append(Figure("fit with evidence over without", with_evidence / without, "<=", TRAINING))
    for key, limit in RERUNS.items() if reruns else ():
        row = reruns["answer"].loc[key]
        figures.append(Figure(f"last run: change of {ROWS[key][0]}", row["this"] / row["other"] - 1, "<=", limit))
    return figures


def score_table(title: str, rivals: Mapping[str, pd.DataFrame], ours: str = "answer") -> Table:
    """Scores of everybody, and what ours differ by from each rival of which it is asked."""
    compared = [rival for rival in rivals if rival != WITH_EVIDENCE]
    headings = (ours, *rivals, *(f"less {rival}, 95 %" for rival in compared))
    table = empty_table("score", title, headings, CAPTION)
    # A forest has no kill times; the first rival has every score.
    for key, first in next(iter(rivals.values())).to_dict("index").items():
        label, form = ROWS[str(key)]
        rows = {name: scores.loc[key].to_dict() for name, scores in rivals.items() if key in scores.index}
        cells = [form.format(first["this"])]
        cells += [form.format(rows[name]["other"]) if name in rows else "-" for name in rivals]
        for name in compared:
            judged = verdict(str(key), rows[name]) if name in rows else ""
            mark = f" {judged}" if judged in ("better", "worse") else ""
            cells.append(f"{form} to {form}{mark}".format(rows[name]["low"], rows[name]["high"]) if judged else "-")
        table.add_row(label, *cells)
    return table


def main(
    data: str = "sample",
    reruns: Annotated[str, typer.Option(help="CSV of datasets that ran twice: ipst, features, memory_1 ... ")] = "",
    output: str = "out/bench-evidence.json",
    config: str = "default",
) -> None:
    """Train and score on every split; print the tables and what was to reach, and write them as JSON."""
    load = [os.getloadavg()[0]]
    request = TrainingRequest(data, config=config)
    jobs = load_training_data(data, request.seed, None, "job")
    found: dict[str, Split] = {}
    last_run: dict[str, pd.DataFrame] = {}
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, parts) in enumerate(splits_of(jobs).items()):
            say(title)
            seed = number if number in SEEDS else 0
            found[title] = measure(parts, replace(request, seed=seed), Path(folder) / str(number))
            console.print(score_table(f"{title}: {found[title].jobs:,} jobs", found[title].rivals))
            if reruns and number == 0:
                last_run = measure_reruns(reruns, jobs, Bundle.load(Path(folder) / "0" / "0"))
        for title, scores in last_run.items():
            console.print(score_table("Second runs of datasets", {title: scores}, f"{title}, last run"))
    load.append(os.getloadavg()[0])
    written = {
        title: {"jobs": split.jobs, "seconds": split.seconds, **_plain(split.rivals)} for title, split in found.items()
    }
    show(reach(found, last_run), load, output, {"splits": written, "reruns": _plain(last_run)})


def _plain(scores: Mapping[str, pd.DataFrame]) -> dict[str, dict]:
    return {name: table.to_dict("index") for name, table in scores.items()}


if __name__ == "__main__":
    script(main)
