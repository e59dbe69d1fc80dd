"""Train, score and export one network: the one way for main, cross-validation, search and adoption."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import programmes
from calmlflow.hst.features import FEATURES, row_codes
from calmlflow.networks.architectures import TargetRange
from calmlflow.networks.backend import keras
from calmlflow.networks.config import TrainingConfig
from calmlflow.networks.onnx import export_onnx
from calmlflow.networks.rows import distinct_rows
from calmlflow.networks.training import train_network
from calmlflow.predictor.bundle import Bundle, Predictions, combine, in_logs
from calmlflow.predictor.decision import fit_decision
from calmlflow.predictor.evidence import (
    DEFAULT_STRENGTH,
    Evidence,
    Finished,
    build_evidence,
    fit_campaign,
    fit_strength,
)
from calmlflow.predictor.killtime import KillTime, fit_kill_time
from calmlflow.predictor.manifest import write_manifest
from calmlflow.results.classification import ClassificationResults, classification_results, cross_entropy
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.regression import RegressionResults, regression_results
from calmlflow.results.scores import score_predictions
from calmlflow.runs.data import TrainingData
from calmlflow.settings import NETWORKS, TARGETS

ANSWERS = {"mem_clf": "probabilities", "mem_reg": "mem_pred", "wall_reg": "wall_pred"}
"""Network -> the prediction that holds its own answers, before any decision."""


@dataclass(frozen=True)
class Fit:
    """One network, exported and measured. Results, scores and floor are of the test split."""

    predictions: Predictions  # for every job, from the ONNX file: what will be served is what is measured
    results: ClassificationResults | RegressionResults
    scores: dict[str, float]
    floor: dict[str, float]  # the best that any function of the nine features could score
    # Of the training split: accuracy and cross-entropy in nats, or the mean squared error; none if trained elsewhere.
    train_scores: tuple[float, ...] = ()
    best_epoch: int = 0
    fit_seconds: float = 0.0
    warning: str = ""  # where jobs are too few to calibrate kill times
    # (n, 4) or (n, 1), answers to the n training jobs by members that left them out.
    left_out: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class AnswerFit:
    """The answers of three networks with evidence, each job left out of its own; results and scores as in `Fit`."""

    predictions: Predictions
    results: dict[str, ClassificationResults | RegressionResults]  # by target
    scores: dict[str, dict[str, float]]
    networks: Predictions  # of the same networks without evidence
    warning: str  # where jobs are too few to calibrate kill times


def fit_network(
    network: str,
    data: TrainingData,
    config: TrainingConfig,
    seed: int,
    models: Path,
    risk: float = 0.0,
    on_progress: Callable[[int, int, float], None] = lambda epoch, epochs, val_loss: None,
) -> Fit:
    """Train a network on the training split, write its files into the folder ``models``, and score the test split."""
    values = data.jobs[TARGETS[network]].to_numpy()[data.train]
    target = None if network == "mem_clf" else TargetRange.of(values)
    trained = train_network(
        network, data.training_rows(network, config.members, seed), config, seed, target, on_progress
    )

    seen = distinct_rows(data.features[data.train])
    warning = ""
    tables = {"seen_rows.json": json.dumps(seen.features.tolist())}
    if network == "mem_clf":
        wallclock_s = data.jobs["wallclock"].to_numpy()[data.train]
        tables["decision.json"] = fit_decision(values, wallclock_s, seen.row_of_job, risk).to_json()
    if network == "wall_reg":
        killed = censored(data)
        features = killed[list(FEATURES)].to_numpy(dtype=float)
        said = (
            trained.model(data.scaling.apply(features).astype(np.float32)).numpy() if len(killed) else np.empty((0, 1))
        )
        kill_time = fit_kill_time(
            np.append(trained.left_out[:, 0], said[:, 0]),
            np.append(values, killed["wallclock"].to_numpy(dtype=float)),
            distinct_rows(np.vstack([data.features[data.train], features])).row_of_job,
            was_killed=np.arange(len(values) + len(killed)) >= len(values),
        )
        tables["killtime.json"], warning = kill_time.to_json(), coverage_warning(kill_time)
    (models / network).mkdir(parents=True)
    trained.model.save(models / network / f"{network}.keras")
    fit = export_and_score(network, trained.model, data, tables, models, trained.history)
    return replace(
        fit,
        best_epoch=trained.best_epoch,
        fit_seconds=trained.fit_seconds,
        warning=warning,
        left_out=trained.left_out[: len(data.train)],
    )


def fit_answers(fits: Mapping[str, Fit], data: TrainingData, models: Path, champion: Evidence | None) -> AnswerFit:
    """Fit evidence and kill times to the three networks in ``models``, write them there, and score the test split.

    Without test jobs there are no results and no scores. What is scored rests on the finished jobs of the training
    split, what is written on all jobs. ``fits`` are those of this training; the strengths of networks that come from
    the champion are those of its evidence, or else the `DEFAULT_STRENGTH`, and its kill times stay.
    """
    alone = Bundle.load(models)
    outputs = alone.run(data.rows.features)[data.rows.row_of_job]
    said = in_logs(outputs)
    # In place of a network that was not trained here, what it answers; it may know these jobs.
    out_of_fold = said[data.train]
    for network, kept in {"mem_clf": slice(None, -2), "mem_reg": slice(-2, -1), "wall_reg": slice(-1, None)}.items():
        if network in fits and (left_out := fits[network].left_out) is not None:
            out_of_fold[:, kept] = left_out if network == "mem_clf" else np.log(left_out)
    finished = Finished.of(data.jobs.iloc[data.train])
    strength = fit_strength(out_of_fold, finished, Finished.of(data.earlier))
    # What a network answers to jobs that it knows fits no strength.
    taken = [network not in fits for network in NETWORKS]
    strength[:, taken] = (champion.strength if champion else DEFAULT_STRENGTH)[:, taken]
    shift = fit_campaign(out_of_fold, finished, strength, time.time())
    runs = Finished.of(data.jobs.iloc[data.train], data.earlier)
    measured, kill_time, warning = build_evidence(finished, strength, shift, runs), alone.kill_time, ""

    if "wall_reg" in fits:
        killed = Finished.of(censored(data))
        answers = np.vstack([out_of_fold, in_logs(alone.run(killed.features))])
        kill_time = calibrate(measured, answers, finished, killed)
        warning = coverage_warning(kill_time)
        (models / "killtime.json").write_text(kill_time.to_json())
    everyone = Finished.of(data.jobs)
    corrected = measured.correct(said, data.features, everyone.names, everyone.observed(), at=everyone.timestamp)
    predictions = combine(outputs, alone.decision, kill_time, corrected)
    for name, content in build_evidence(everyone, strength, shift).files().items():
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_bytes(content)
    write_manifest(models)

    jobs, scored = data.jobs.iloc[data.test], NETWORKS if len(data.test) else ()
    of_test = {name: column[data.test] for name, column in predictions.items()}
    return AnswerFit(
        predictions,
        {TARGETS[name]: network_results(name, jobs, of_test[ANSWERS[name]], None, ()) for name in scored},
        {TARGETS[name]: score_predictions(TARGETS[name], jobs, of_test) for name in scored},
        alone.answer(outputs, None),
        warning,
    )


def censored(data: TrainingData) -> pd.DataFrame:
    """Killed jobs to calibrate kill times on: a row that no finished job has gets the longest kill time anyway."""
    killed = data.known_killed
    known_rows = np.isin(row_codes(killed[list(FEATURES)]), row_codes(data.features[data.train]))
    return killed[known_rows & (killed["wallclock"] > 0)]


def calibrate(
    evidence: Evidence, answers: NDArray[np.float64], finished: Finished, killed: Finished | None = None
) -> KillTime:
    """Fit kill times to what evidence of n jobs corrects the answers to these and to m killed jobs to.

    ``answers``, shape (n + m, 6), are out-of-fold. Of a killed job the wallclock is what it had reached.
    """
    killed = finished.take(slice(0, 0)) if killed is None else killed
    n = len(finished.names)
    found = []
    for whole_programme in (False, True):
        of_finished, of_killed = (
            evidence.correct(said, jobs.features, jobs.names, observed, whole_programme, jobs.timestamp)
            for said, jobs, observed in ((answers[:n], finished, finished.observed()), (answers[n:], killed, None))
        )
        predicted_s = np.exp(np.append(of_finished.answers[:, -1], of_killed.answers[:, -1]))
        found.append((predicted_s, np.append(of_finished.jobs[:, 1], of_killed.in_programme)))
    known, (new_s, _) = found
    return fit_kill_time(
        new_s,
        np.append(finished.wallclock_s, killed.wallclock_s),
        distinct_rows(np.vstack([finished.features, killed.features])).row_of_job,
        programmes([*finished.names, *killed.names]),
        known,
        was_killed=np.arange(len(new_s)) >= n,
    )


def coverage_warning(kill_time: KillTime) -> str:
    """A sentence where jobs are too few to keep the promise of kill times."""
    if kill_time.held_coverage >= kill_time.coverage:
        return ""
    return (
        f"warning: {min(kill_time.jobs):,} jobs to calibrate kill times on are too few for {kill_time.coverage:.1%}; "
        f"they cover {kill_time.held_coverage:.1%}"
    )


def export_and_score(
    network: str,
    model: keras.Model,
    data: TrainingData,
    tables: Mapping[str, str],
    models: Path,
    history: Mapping[str, NDArray] | None = None,
) -> Fit:
    """Write a network as ONNX with the tables that it is served with, predict every job, and score the test split.

    ``tables`` are names and contents of files for the top of ``models``, beside the scaling; ``history`` is that of
    the training, if the network was trained on the training split.
    """
    export_onnx(model, models / network / f"{network}.onnx", data.scaling.apply(data.rows.features))
    for name, text in {"tx_data.json": data.scaling.to_json(), **tables}.items():
        (models / name).write_text(text)
    write_manifest(models)
    by_row = Bundle.load(models, [network]).predict(data.rows.features)
    predictions = {name: column[data.rows.row_of_job] for name, column in by_row.items()}

    jobs, answers = data.jobs.iloc[data.test], predictions[ANSWERS[network]]
    train_scores = _train_scores(network, data, answers) if history else ()
    return Fit(
        predictions,
        network_results(network, jobs, answers[data.test], history, train_scores),
        score_predictions(TARGETS[network], jobs, {name: column[data.test] for name, column in predictions.items()}),
        _floor(network, jobs),
        train_scores,
    )


def network_results(
    network: str,
    jobs: pd.DataFrame,
    answers: NDArray,
    history: Mapping[str, NDArray] | None,
    train_scores: Sequence[float],
) -> ClassificationResults | RegressionResults:
    """Results of n test jobs, whose answers are probabilities, shape (n, 4), or values, shape (n,)."""
    test_idx = jobs.set_index("ipst")[TARGETS[network]]
    if network == "mem_clf":
        accuracy_and_loss = (train_scores[0], train_scores[1]) if train_scores else None
        return classification_results(test_idx, answers, history, accuracy_and_loss)
    return regression_results(test_idx, answers, history, train_scores[0] if train_scores else None)


def _train_scores(network: str, data: TrainingData, answers: NDArray) -> tuple[float, ...]:
    """Accuracy and cross-entropy, or the mean squared error, on the training split."""
    known, actual = answers[data.train], data.jobs[TARGETS[network]].to_numpy()[data.train]
    if network == "mem_clf":
        return float(np.mean(known.argmax(axis=1) == actual)), cross_entropy(actual, known)
    return (float(np.mean((known - actual) ** 2)),)


def _floor(network: str, jobs: pd.DataFrame) -> dict[str, float]:
    features = jobs[list(FEATURES)].to_numpy(dtype=float)
    if network == "mem_clf":
        return classification_floor(features, jobs["mem_bin"], jobs["wallclock"])
    return regression_floor(features, jobs[TARGETS[network]])
