"""Count how often the gate refuses a training that differs in its seed alone, and lets a worse one pass."""

# python -m benchmarks.gate --data ../path/to/jobs.csv
#
# Trains the three networks once for each seed, on the same jobs, with whole programmes held out, and holds every
# training against others as the gate does. No server is needed.

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.figures import Figure, show
from calmlflow.console import say, script
from calmlflow.networks.config import read_config
from calmlflow.predictor.bundle import Predictions
from calmlflow.registry.against import champion_checks, rung_checks, settled
from calmlflow.registry.checks import Check
from calmlflow.registry.limits import Limits, read_limits
from calmlflow.runs.data import TrainingData, load_training_data
from calmlflow.runs.fit import fit_answers, fit_network
from calmlflow.settings import NETWORKS

SEEDS = 8
PAIRS = 25


def gate_checks(
    jobs: pd.DataFrame, test: np.ndarray, this: Predictions, other: Predictions, limits: Limits
) -> list[Check]:
    """Make the checks that rest on answers to n jobs, of which those at ``test`` were held out by both trainings."""
    held_out = jobs.iloc[test].reset_index(drop=True)
    of_test = ({name: column[test] for name, column in answers.items()} for answers in (this, other))
    checks, _ = champion_checks("the champion", held_out, *of_test, limits)
    wider, _ = champion_checks("the champion", jobs, this, other, limits)
    return settled(checks, wider, "of all jobs") + rung_checks(jobs, this)


# -- Ten challengers made worse on purpose ----------------------------------------------------------------------------


def _without_rung(rung: int) -> Callable[[pd.DataFrame, Predictions], Predictions]:
    """The rung below in place of one."""

    def change(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
        probabilities = answers["probabilities"].copy()
        probabilities[:, rung - 1] += probabilities[:, rung]
        probabilities[:, rung] = 0
        chosen = np.where(answers["bin_pred"] == rung, rung - 1, answers["bin_pred"])
        return {**answers, "probabilities": probabilities, "bin_pred": chosen}

    return change


def _times(
    factor: float, *names: str, where: Callable[[pd.DataFrame], pd.Series] = lambda jobs: jobs["n_files"] > 0
) -> Callable[[pd.DataFrame, Predictions], Predictions]:
    """Some answers to some jobs, times a factor."""

    def change(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
        factors = np.where(where(jobs), factor, 1.0)
        return answers | {name: answers[name] * factors for name in names}

    return change


def _flattened(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
    roots = np.sqrt(answers["probabilities"])
    return {**answers, "probabilities": roots / roots.sum(axis=1, keepdims=True)}


def _dearer(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
    return {**answers, "bin_pred": np.minimum(answers["bin_pred"] + (np.arange(len(jobs)) % 10 == 0), 3)}


def _cheaper(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
    return {**answers, "bin_pred": np.maximum(answers["bin_pred"] - (np.arange(len(jobs)) % 10 == 0), 0)}


def _noisy(jobs: pd.DataFrame, answers: Predictions) -> Predictions:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.25, len(jobs)))
    return {**answers, "wall_pred": answers["wall_pred"] * noise}


WORSE: dict[str, Callable[[pd.DataFrame, Predictions], Predictions]] = {
    "64g is never given": _without_rung(3),
    "16g is never given": _without_rung(2),
    "one instrument (STIS) 10 % slower": _times(1.1, "wall_pred", "kill_time", where=lambda jobs: jobs["instr"] == 2),
    "kill times halved": _times(0.5, "kill_time"),
    "probabilities flattened": _flattened,
    "memory 20 % low for one detector (WFC3 IR)": _times(
        0.8, "mem_pred", where=lambda jobs: (jobs["instr"] == 3) & (jobs["detector"] == 0)
    ),
    "associations 15 % faster": _times(0.85, "wall_pred", "kill_time", where=lambda jobs: jobs["dtype"] == 1),
    "a rung too many for each tenth job": _dearer,
    "a rung too few for each tenth job": _cheaper,
    "wallclock with 25 % of noise": _noisy,
}
"""What is worse -> how answers to jobs are made so."""


# -- Trainings --------------------------------------------------------------------------------------------------------


def answers_of_seeds(data: TrainingData, seeds: range) -> Iterator[Predictions]:
    """Train for each seed on the same jobs, and give the answers to all of them, each left out of its own."""
    configs = read_config("default")
    for number, seed in enumerate(seeds, 1):
        say(f"training {number} of {len(seeds)}, seed {seed}")
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder) / "models"
            models.mkdir()
            fits = {network: fit_network(network, data, configs[network], seed, models) for network in NETWORKS}
            yield fit_answers(fits, data, models, None).predictions


def main(data: str = "sample", gate: str = "default", seed: int = 0, output: str = "out/gate.json") -> None:
    """Print how many of 25 pairs the gate refuses, and which of ten challengers that were made worse it lets pass.

    ``seed`` is the first of the eight seeds of training, and deals the programmes. The margins of gate.yaml were set in
    view of seeds 0 to 7.
    """
    load = [os.getloadavg()[0]]
    limits, training = read_limits(gate), load_training_data(data, seed, 0.2)
    answers = list(answers_of_seeds(training, range(seed, seed + SEEDS)))
    table, pairs = training.jobs, list(itertools.combinations(range(SEEDS), 2))[:PAIRS]

    def failed(this: Predictions, other: Predictions) -> list[str]:
        checks = gate_checks(table, training.test, this, other, limits)
        return [check.name for check in checks if check.passed is False]

    refused = {f"{a} against {b}": names for a, b in pairs if (names := failed(answers[a], answers[b]))}
    say(f"refused, of {len(pairs)} pairs that differ in their seed alone: {refused or 'none'}")
    caught: dict[str, dict[str, int]] = {}
    passed = []
    for name, worsen in WORSE.items():
        found = [failed(worsen(table, answers[a]), answers[b]) for a, b in pairs[:5]]
        caught[name] = dict(Counter(check for names in found for check in names))
        passed += [name] if not all(found) else []
        say(
            f"{name}: refused {sum(map(bool, found))} of {len(found)} times, for {', '.join(caught[name]) or 'nothing'}"
        )
    figures = [
        Figure(f"pairs of {len(pairs)} that differ in their seed alone, refused", len(refused), "<=", 2),
        Figure(f"challengers of {len(WORSE)} that were made worse, let pass", len(passed), "<=", 0),
    ]
    show(figures, [*load, os.getloadavg()[0]], output, {"data": data, "refused": refused, "caught": caught})


if __name__ == "__main__":
    script(main)
