"""The recipe of the earlier library: the same layers in Keras, every job a row, mini-batches, a fixed number of epochs.

``python -m benchmarks.seed_recipe --data FILE`` trains it at full length and keeps what it predicts, for `make bench`.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals import Rival, of_test_jobs
from calmlflow.console import say, script
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.architectures import HIDDEN
from calmlflow.networks.backend import keras
from calmlflow.predictor.bundle import Predictions
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.runs.data import TrainingData, hold_out, load_training_data
from calmlflow.runs.train import TrainingRequest
from calmlflow.settings import NETWORKS, TARGETS
from calmlflow.storage.files import replacing

EPOCHS = {"mem_clf": 60, "mem_reg": 60, "wall_reg": 300}
BATCH = {"mem_clf": 32, "mem_reg": 32, "wall_reg": 64}
LEARNING_RATE = 1e-4
TIMED_EPOCHS = 3

STORED = Path(__file__).parent / "seed_recipe.json"
"""What the full-length run left: digest of its jobs, seconds, scores, and predictions of the distinct rows."""


@dataclass(frozen=True)
class SeedRecipe:
    """Full-length training of the recipe, timed or extrapolated.

    Attributes
    ----------
    fit_seconds : dict of str to float
        Of each network at full length.
    by_row : Predictions
        Of the distinct rows of the jobs; empty where no full-length run was made.
    """

    fit_seconds: dict[str, float]
    by_row: Predictions


def load_jobs(data: str, seed: int, test_size: float) -> TrainingData:
    """Read jobs and hold out a share of each memory bin, as trainings did when the stored run was made."""
    everyone = load_training_data(data, seed, None, "job")
    bins, generator = everyone.jobs["mem_bin"].to_numpy(), np.random.default_rng(seed)
    is_test = np.zeros(len(bins), dtype=np.int64)
    for value in np.unique(bins):
        members = generator.permutation(np.flatnonzero(bins == value))
        is_test[members[: min(max(round(test_size * len(members)), 1), len(members) - 1)]] = 1
    return hold_out(everyone, everyone.train, is_test, 1)


def build(network: str) -> keras.Model:
    """One network as the recipe has it, compiled."""
    classifier = network == "mem_clf"
    last = keras.layers.Dense(len(LADDER), "softmax") if classifier else keras.layers.Dense(1)
    hidden = [keras.layers.Dense(width, "relu") for width in HIDDEN[network]]
    model = keras.Sequential([keras.Input((len(FEATURES),)), *hidden, last])
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        loss="categorical_crossentropy" if classifier else "mse",
        metrics=["accuracy"] if classifier else [keras.metrics.RootMeanSquaredError()],
    )
    return model


def full_length_seconds(epoch_seconds: Mapping[str, float]) -> dict[str, float]:
    """Extrapolate from seconds of one epoch to those of the whole recipe, for each network."""
    return {network: seconds * EPOCHS[network] for network, seconds in epoch_seconds.items()}


def time_epochs(data: TrainingData, seed: int) -> dict[str, float]:
    """Measure the seconds of one epoch of each network (median of some); building and compiling are not counted."""
    keras.utils.set_random_seed(seed)
    found = {}
    for network in NETWORKS:
        model = build(network)
        inputs, targets = _training_set(network, data)
        # One batch and a smaller one: every shape that an epoch meets is compiled here.
        warm_up = BATCH[network] + 1
        model.fit(inputs[:warm_up], targets[:warm_up], batch_size=BATCH[network], verbose=0)
        ends = [time.perf_counter()]
        tick = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, ends=ends: ends.append(time.perf_counter()))
        model.fit(inputs, targets, batch_size=BATCH[network], epochs=TIMED_EPOCHS, verbose=0, callbacks=[tick])
        found[network] = float(np.median(np.diff(ends)))
    return found


def train_fully(data: TrainingData, seed: int, epochs: Mapping[str, int]) -> SeedRecipe:
    """Train the three networks for so many epochs each."""
    keras.utils.set_random_seed(seed)
    by_row, seconds = {}, {}
    rows = data.scaling.apply(data.rows.features)
    for network in NETWORKS:
        say(f"seed recipe: {network}, {epochs[network]} epochs")
        model = build(network)
        inputs, targets = _training_set(network, data)
        started = time.perf_counter()
        model.fit(inputs, targets, batch_size=BATCH[network], epochs=epochs[network], verbose=0)
        seconds[network] = time.perf_counter() - started
        answers = model.predict(rows, batch_size=len(rows), verbose=0).astype(float)
        if network == "mem_clf":
            by_row["probabilities"] = answers
            by_row["bin_pred"] = answers.argmax(axis=1)
        else:
            by_row[PREDICTED[TARGETS[network]]] = answers[:, 0]
    return SeedRecipe(seconds, by_row)


def seed_recipe(data: TrainingData, epoch_seconds: Mapping[str, float], stored: SeedRecipe | None) -> Rival:
    """The recipe as a rival: seconds of this machine, predictions of the stored run of the same jobs, if any."""
    predictions = of_test_jobs(data, stored.by_row) if stored else {}
    return Rival("seed recipe", predictions, sum(full_length_seconds(epoch_seconds).values()))


def store(run: SeedRecipe, data: TrainingData, seed: int, path: Path = STORED) -> None:
    """Keep a full-length run: what its networks answer, and no job."""
    jobs, predictions = data.jobs.iloc[data.test], of_test_jobs(data, run.by_row)
    kept = {name: values for name, values in run.by_row.items() if name != "bin_pred"}
    content = {
        "digest": digest(data),
        "seed": seed,
        **data.sizes(),
        "fit_seconds": {network: round(seconds, 1) for network, seconds in run.fit_seconds.items()},
        "scores": {target: score_predictions(target, jobs, predictions) for target in TARGETS.values()},
        # Six digits are past what 32-bit networks know.
        "predictions": {name: _six_digits(values).tolist() for name, values in kept.items()},
    }
    with replacing(path) as file:
        file.write(json.dumps(content) + "\n")


def read_stored(data: TrainingData, path: Path = STORED) -> SeedRecipe | None:
    """The full-length run of these very jobs and this very split; None where there is none."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    if content["digest"] != digest(data):
        return None
    by_row = {name: np.asarray(values, dtype=float) for name, values in content["predictions"].items()}
    return SeedRecipe(content["fit_seconds"], by_row | {"bin_pred": by_row["probabilities"].argmax(axis=1)})


def digest(data: TrainingData) -> str:
    """SHA-256 of features, targets and split: what a stored run belongs to."""
    targets = data.jobs[list(TARGETS.values())].to_numpy(dtype=float)
    found = hashlib.sha256()
    for part in (data.features, targets, data.test):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def _training_set(network: str, data: TrainingData) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    inputs = data.scaling.apply(data.features[data.train])
    values = data.jobs[TARGETS[network]].to_numpy()[data.train]
    if network == "mem_clf":
        return inputs, np.eye(len(LADDER), dtype=np.float32)[values]
    return inputs, values.astype(np.float32)


def _six_digits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values)


def main(data: str = "sample") -> None:
    """Train the recipe at full length (a quarter of an hour and more) and keep what it predicts for `make bench`."""
    request = TrainingRequest()
    jobs = load_jobs(data, request.seed, request.test_size)
    run = train_fully(jobs, request.seed, EPOCHS)
    store(run, jobs, request.seed)
    say(f"{STORED.name} written; seconds: {run.fit_seconds}")


if __name__ == "__main__":
    script(main)
