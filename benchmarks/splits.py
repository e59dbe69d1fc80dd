"""Score the default training on each of the splits of `main`, with intervals over programmes."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.rivals import networks_and_answer
from calmlflow.console import say, script
from calmlflow.hst.dataset import programmes
from calmlflow.networks.preprocess import SPLITS
from calmlflow.predictor.bundle import Predictions
from calmlflow.results.comparison import score_intervals
from calmlflow.results.scores import SCORES, score_predictions
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.train import TrainingRequest

SHOWN = {
    "mem_bin": ("accuracy", "recall_16g", "recall_64g", "excess_cost", "log_loss"),
    "memory": ("mae",),
    "wallclock": ("rmse", "mae", "log_mae", "kill_time_coverage", "kill_time_reserved"),
}


def score_cells(data: TrainingData, predictions: Predictions) -> dict[str, str]:
    """Each shown score of the test jobs with its interval; recalls with their hits."""
    jobs, cells = data.jobs.iloc[data.test], {}
    for target, names in SHOWN.items():
        values = score_predictions(target, jobs, predictions)
        intervals = score_intervals(target, jobs, predictions)
        for name in names:
            score = SCORES[target][name]
            cell = "-"
            if name in values:
                cell = score.text(values[name])
                if name in intervals:
                    hits = f"; {intervals[name].behind(score, values[name])}" if name.startswith("recall") else ""
                    cell += f" ({intervals[name].text(score)}{hits})"
            cells[f"{target.replace('mem_bin', 'bin')} {score.title}"] = cell
    return cells


def main(data: str = "sample", config: str = "default") -> None:
    """Train once for each split, and print the answers' scores as a table in Markdown."""
    request = TrainingRequest(data, config=config)
    columns = {}
    for split in SPLITS:
        say(split)
        jobs = load_training_data(data, request.seed, request.test_size, split)
        with tempfile.TemporaryDirectory() as folder:
            _, answer, _ = networks_and_answer(jobs, replace(request, split=split), Path(folder))
        counted = len(np.unique(programmes(jobs.jobs["ipst"].iloc[jobs.test])))
        heading = f"{split}: {len(jobs.test):,} jobs of {counted:,} programmes"
        columns[heading] = score_cells(jobs, answer.predictions)
    print("| score |", " | ".join(columns), "|")
    print("| --- |", " | ".join("---" for _ in columns), "|")
    for name in next(iter(columns.values())):
        print(f"| {name} |", " | ".join(cells[name] for cells in columns.values()), "|")


if __name__ == "__main__":
    script(main)
