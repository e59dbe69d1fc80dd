"""`make bench`: calmlflow, the seed recipe, a random forest and a log-linear fit on the same jobs and split."""

import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.growth import FACTORS, fit_networks
from benchmarks.reach import verdicts
from benchmarks.rivals import log_linear, networks_and_answer, random_forest
from benchmarks.scores import floor_of, paired_scores, scores_of
from benchmarks.seed_recipe import load_jobs, read_stored, seed_recipe, time_epochs
from benchmarks.tables import Measured, print_tables
from calmlflow.console import say, script
from calmlflow.runs.train import TrainingRequest
from calmlflow.storage.files import replacing


def measure(request: TrainingRequest) -> Measured:
    """Train calmlflow and its rivals on the same jobs, and score them on the same test split."""
    load = [os.getloadavg()[0]]
    data = load_jobs(request.data, request.seed, request.test_size)
    test = data.jobs.iloc[data.test]

    say("seed recipe: some epochs, timed")
    epoch_seconds = time_epochs(data, request.seed)
    stored = read_stored(data)
    say("random forest and log-linear fit")
    rivals = [seed_recipe(data, epoch_seconds, stored), random_forest(data, request.seed), log_linear(data)]
    growth = []
    for factor in FACTORS:
        say(f"calmlflow: {factor}x the jobs")
        with tempfile.TemporaryDirectory() as folder:
            if factor == 1:
                *ours, fit = networks_and_answer(data, request, Path(folder))
                rivals += ours
            else:
                _, fit = fit_networks(data, request, Path(folder), factor)
        growth.append(fit)

    say("scores")
    predictions = {rival.name: rival.predictions for rival in rivals}
    scores = {rival.name: {"fit_seconds": rival.fit_seconds, **scores_of(test, rival.predictions)} for rival in rivals}
    scores["floor"] = floor_of(data)

    def interval(key: str, rival: str) -> tuple[float, float]:
        found = paired_scores(key, test, predictions["networks"], predictions[rival], request.seed)
        return float(found["low"]), float(found["high"])

    reach = verdicts(scores, growth[-1].fit_seconds / growth[0].fit_seconds, len(test), interval)
    timed = {"epoch_seconds": epoch_seconds, "scores_of": "stored full-length run" if stored else "none"}
    if stored:
        timed["stored_fit_seconds"] = stored.fit_seconds
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": [*load, os.getloadavg()[0]]}
    return Measured(request.data, request.seed, data.sizes(), machine, timed, scores, growth, reach)


def main(data: str = "sample", output: str = "out/bench.json") -> None:
    """Train and score calmlflow and its rivals on the same jobs; print the table, and write it as JSON."""
    found = measure(TrainingRequest(data))
    with replacing(Path(output)) as file:
        file.write(json.dumps(asdict(found), indent=2) + "\n")
    print_tables(found)
    say(f"written: {output}")


if __name__ == "__main__":
    script(main)
