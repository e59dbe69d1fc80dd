"""Score a random forest and the version in Production on the test jobs of a training, and find runs of other seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.parallel import Parallel, delayed

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.rows import DistinctRows
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.evidence import Finished
from calmlflow.predictor.registry_client import NoSuchVersionError, fetch, resolve_stage
from calmlflow.registry.against import on_this_ladder
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.runs.data import TrainingData

TREES = 100
# Parameters that say where a training goes, or that follow from its seed.
_NOT_THE_TRAINING = {
    "seed", "output", "register", "stage", "writeback", "destination", "n_train", "n_test", "n_train_programmes",
    "n_test_programmes", "n_test_answer",
}  # fmt: skip
# Seconds for the files of the champion.
FETCH_S = 120.0


@dataclass(frozen=True)
class Champion:
    """The version of the bundle in Production, with the folder of its files."""

    version: str
    folder: Path
    bundle: Bundle

    def answers(self, data: TrainingData) -> Predictions:
        """Its answers to the test jobs, each left out of its own, by programme with all jobs of its programme.

        Too good where its networks were trained on some of them, and where, by time, its evidence is later than they.
        """
        finished = Finished.of(data.jobs.iloc[data.test])
        found = self.bundle.predict(finished.features, finished.names, finished, data.split == "programme")
        return on_this_ladder(found, self.bundle.ladder)


def random_forest(data: TrainingData, target: str, seed: int) -> dict[str, float]:
    """Train a random forest of 100 trees on the raw features of the training jobs, and score it on the test jobs.

    The forest is scikit-learn's with its defaults, grown on distinct rows: each tree draws as many *jobs*, with
    replacement, as there are, and sees them as weighted rows. To a tree that is the same (a split reads only counts of
    classes, or sums of targets), and it costs a tenth. Reference: Breiman, Random forests, Machine Learning 45 (2001).
    """
    generator = np.random.default_rng(seed)
    values = data.jobs[target].to_numpy()
    grow = _grow_classifier if target == "mem_bin" else _grow_regressor

    def trees():
        for _ in range(TREES):
            drawn = generator.choice(data.train, len(data.train))
            row, tree_seed = data.rows.row_of_job[drawn], int(generator.integers(2**31))
            yield delayed(grow)(data.rows, row, values[drawn], tree_seed)

    grown = Parallel(n_jobs=-1, prefer="threads", return_as="generator")(trees())
    found = (sum(grown) / TREES)[data.rows.row_of_job[data.test]]
    jobs = data.jobs.iloc[data.test]
    if target == "mem_bin":
        return score_predictions(target, jobs, {"probabilities": found, "bin_pred": found.argmax(axis=1)})
    return score_predictions(target, jobs, {PREDICTED[target]: found})


def other_seeds(run_id: str) -> list[dict[str, float]]:
    """Metrics of the runs that differ from a run, whose parameters are logged, in their seed alone.

    Of equal seeds the newest run counts.
    """
    client = MlflowClient()
    own = client.get_run(run_id)

    def kept(run: Run) -> dict[str, str]:
        return {name: value for name, value in run.data.params.items() if name not in _NOT_THE_TRAINING}

    query = f"attributes.run_name = '{own.info.run_name}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([own.info.experiment_id], query)
    by_seed = {run.data.params["seed"]: run.data.metrics for run in reversed(runs) if kept(run) == kept(own)}
    by_seed.pop(own.data.params["seed"], None)
    return list(by_seed.values())


def over_seeds(
    others: Sequence[Mapping[str, float]], kind: str, scores: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, tuple[float, float, int]]]:
    """Mean and standard deviation of scores, by target, of a run and of `other_seeds`.

    ``kind`` is a key of `KINDS`. The third number is how many runs there are; a score that no other has is left out.
    """
    found: dict[str, dict[str, tuple[float, float, int]]] = {}
    for target, of_target in scores.items():
        for name, value in of_target.items():
            metric = f"{kind}_{target}_{name}"
            values = [value, *(metrics[metric] for metrics in others if metric in metrics)]
            if len(values) > 1:
                spread = float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
                found.setdefault(target, {})[name] = spread
    return found


def champion(needed_for: Sequence[str] = ()) -> Champion | None:
    """Load the version of the bundle in Production; None if there is none, or if it cannot be loaded.

    Where the networks ``needed_for`` are to be taken from it, either is a CalmlflowError.
    """
    registry_uri = settings.registry_uri()
    cache = Cache(registry_uri)
    try:
        staged = resolve_stage("Production", registry_uri)
        bundle = cache.load(staged, FETCH_S)
        if needed_for:
            # The networks that training goes on with: the cache has those that answer.
            fetch(staged, registry_uri, FETCH_S, cache.path(staged), whole=True)
        return Champion(staged.version, cache.path(staged), bundle)
    except NoSuchVersionError as error:
        if needed_for:
            raise InputError(
                f"{', '.join(needed_for)} cannot be taken from the version of {settings.BUNDLE_MODEL} in Production, "
                "for there is none; expected one, or only=all"
            ) from error
    except CalmlflowError as error:
        if needed_for:
            raise
        say(f"the version in Production is not scored: {error}")
    return None


def _grow_classifier(rows: DistinctRows, row: NDArray[np.int64], bins: NDArray[np.int64], seed: int) -> NDArray:
    """Grow one tree; returns probabilities of the bins for each distinct row."""
    n_bins = len(LADDER)
    cells = np.bincount(row * n_bins + bins)
    used = np.flatnonzero(cells)
    tree = DecisionTreeClassifier(max_features="sqrt", random_state=seed)
    tree.fit(rows.features[used // n_bins], used % n_bins, cells[used])
    probabilities = np.zeros((len(rows.counts), n_bins))
    probabilities[:, tree.classes_] = tree.predict_proba(rows.features)
    return probabilities


def _grow_regressor(rows: DistinctRows, row: NDArray[np.int64], values: NDArray[np.float64], seed: int) -> NDArray:
    """Grow one tree; returns its value for each distinct row."""
    counts = np.bincount(row)
    used = np.flatnonzero(counts)
    means = np.bincount(row, weights=values)[used] / counts[used]
    tree = DecisionTreeRegressor(random_state=seed).fit(rows.features[used], means, counts[used])
    return tree.predict(rows.features)
