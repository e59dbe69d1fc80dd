"""Train one network on prepared jobs and measure it: everything of a run that MLflow has no part in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.console import say
from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.distinct import distinct_rows
from calmlflow.networks.onnx import export_onnx
from calmlflow.networks.training import Trained, TrainingConfig, train_network
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.decision import fit_decision
from calmlflow.predictor.killtime import fit_kill_time
from calmlflow.predictor.manifest import write_manifest
from calmlflow.results.classification import ClassificationResults, classification_results, cross_entropy
from calmlflow.results.files import write_results
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.regression import RegressionResults, regression_results
from calmlflow.results.scores import score_predictions
from calmlflow.runs.data import TrainingData
from calmlflow.settings import TARGETS


@dataclass(frozen=True)
class FittedNetwork:
    """What the training of one network gave.

    Attributes
    ----------
    trained : Trained
    bundle : Bundle
        Of this network alone.
    predictions : Predictions
        For every job, from the ONNX file: what will be served is what is measured.
    results : ClassificationResults or RegressionResults
        Of the test split.
    scores, floor : dict of str to float
        Of the test split; the floor is the best that any function of the nine features could score there.
    """

    trained: Trained
    bundle: Bundle
    predictions: Predictions
    results: ClassificationResults | RegressionResults
    scores: dict[str, float]
    floor: dict[str, float]


def fit_network(
    network: str,
    data: TrainingData,
    config: TrainingConfig,
    seed: int,
    risk: float,
    tree: Path,
    on_progress: Callable[[int, int, float], None],
) -> FittedNetwork:
    """Train one network, export it, predict every job, and write models and results of its target into the tree.

    Raises
    ------
    CalmlflowError
        Training diverged, or ONNX and Keras disagree.
    """
    target = TARGETS[network]
    values = data.jobs[target].to_numpy()
    rows = data.training_rows(network, config.members, seed)
    target_range = None if network == "mem_clf" else TargetRange.of(values[data.train])
    trained = train_network(network, rows, config, seed, target_range, on_progress)

    models = tree / "models"
    folder = models / network
    folder.mkdir(parents=True)
    trained.model.save(folder / f"{network}.keras")
    export_onnx(trained.model, folder / f"{network}.onnx", data.scaling.apply(data.rows.features))
    (models / "tx_data.json").write_text(data.scaling.to_json())
    train_rows = distinct_rows(data.features[data.train])
    (models / "seen_rows.json").write_text(json.dumps(train_rows.features.tolist()))
    if network == "mem_clf":
        wallclock_s = data.jobs["wallclock"].to_numpy()[data.train]
        decision = fit_decision(values[data.train], wallclock_s, train_rows.row_of_job, risk)
        (models / "decision.json").write_text(decision.to_json())
    if network == "wall_reg":
        kill_time = fit_kill_time(trained.left_out[:, 0], values[data.train], train_rows.row_of_job)
        (models / "killtime.json").write_text(kill_time.to_json())
        if kill_time.held_coverage < kill_time.coverage:
            say(
                f"warning: {min(kill_time.jobs):,} jobs to calibrate kill times on are too few for "
                f"{kill_time.coverage:.1%}; they cover {kill_time.held_coverage:.1%}"
            )
    write_manifest(models)
    bundle = Bundle.load(models, [network])
    by_row = bundle.predict(data.rows.features)
    predictions = {name: column[data.rows.row_of_job] for name, column in by_row.items()}

    results, scores, floor = _measure(network, data, predictions, trained)
    write_results(results, tree / "results" / target)
    return FittedNetwork(trained, bundle, predictions, results, scores, floor)


def _measure(
    network: str, data: TrainingData, predictions: Predictions, trained: Trained
) -> tuple[ClassificationResults | RegressionResults, dict[str, float], dict[str, float]]:
    """Results, scores and floor of the test split."""
    target = TARGETS[network]
    jobs, features = data.jobs.iloc[data.test], data.features[data.test]
    test_idx = pd.Series(jobs[target].to_numpy(), index=pd.Index(jobs["ipst"], name="ipst"), name=target)
    scores = score_predictions(target, jobs, {name: column[data.test] for name, column in predictions.items()})
    actual = data.jobs[target].to_numpy()[data.train]
    if network == "mem_clf":
        answers = predictions["probabilities"]
        accuracy = float(np.mean(answers[data.train].argmax(axis=1) == actual))
        train_scores = accuracy, cross_entropy(actual, answers[data.train])
        results = classification_results(test_idx, answers[data.test], trained.history, train_scores)
        return results, scores, classification_floor(features, test_idx, jobs["wallclock"])
    answers = predictions["mem_pred" if network == "mem_reg" else "wall_pred"]
    train_mse = float(np.mean((answers[data.train] - actual) ** 2))
    return (
        regression_results(test_idx, answers[data.test], trained.history, train_mse),
        scores,
        regression_floor(features, test_idx),
    )
