"""Read the results of a training from its folder, and score, plot, summarise and compare them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.results.classification import ClassificationResults, classification_scores
from calmlflow.results.comparison import BinAnswers, Comparison, ValueAnswers, compare_bins, compare_values
from calmlflow.results.files import read_results
from calmlflow.results.regression import RegressionResults, regression_scores
from calmlflow.results.scores import SCORES
from calmlflow.results.table import read_training_table
from calmlflow.settings import TARGETS


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Loaded:
    """Results of one network of one training, loaded from its folder."""

    target: str
    test_jobs: int
    source: str
    jobs: pd.DataFrame | None
    """The training set with predictions (``data/latest.csv``); None where the training left none."""

    @property
    def answers(self) -> BinAnswers | ValueAnswers:
        """Answers of the network for its test jobs."""
        raise NotImplementedError

    def scores(self) -> dict[str, float]:
        """Scores on the test jobs, see `calmlflow.results.scores`; costs only where the wallclock is known."""
        raise NotImplementedError

    def summary(self) -> str:
        """Scores as a table of text."""
        table = SCORES[self.target]
        rows = (f"{name:<20}{table[name].text(value):>14}" for name, value in self.scores().items())
        return "\n".join([str(self), *rows])

    def compare(self, other: "Loaded") -> Comparison:
        """Compare with the same network of another training, on the test jobs of both."""
        if not isinstance(other, Loaded) or other.target != self.target:
            raise InputError(
                f"results of {self.target} cannot be compared with {other!r}; expected another {self.target}"
            )
        compare: Any = compare_bins if self.target == "mem_bin" else compare_values
        return compare(self.answers, other.answers)

    def __str__(self) -> str:
        return f"{self.target}: {self.test_jobs:,} test jobs of {self.source}"

    def __repr__(self) -> str:
        # The arrays would fill a screen.
        return f"<{self}>"


@dataclass(frozen=True, eq=False, repr=False)
class LoadedClassification(Loaded, ClassificationResults):
    """Results of the classifier of one training."""

    @property
    def answers(self) -> BinAnswers:
        """Answers for the test jobs; where ``jobs`` lacks them, the decision is the most probable bin."""
        chosen, wallclock_s = self._of_test_jobs("bin_pred"), self._of_test_jobs("wallclock")
        likeliest = self.y_scores.argmax(axis=1)
        return BinAnswers(self.test_idx, self.y_scores, likeliest if chosen is None else chosen, wallclock_s)

    def _of_test_jobs(self, column: str) -> NDArray[Any] | None:
        """A column of the training set for each test job; None where it is not known of every one of them."""
        if self.jobs is None or column not in self.jobs or not self.jobs["ipst"].is_unique:
            return None
        rows = pd.Index(self.jobs["ipst"]).get_indexer(self.test_idx.index)
        return None if np.any(rows < 0) else self.jobs[column].to_numpy()[rows]

    def scores(self) -> dict[str, float]:
        return classification_scores(*self.answers)

    def plots(self) -> dict[str, Any]:
        """Plotly figures by name, see `classification_plots`."""
        from calmlflow.results.plots.classification import classification_plots

        return classification_plots(self, self.jobs)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRegression(Loaded, RegressionResults):
    """Results of a regressor of one training."""

    @property
    def answers(self) -> ValueAnswers:
        """Answers for the test jobs; an InputError where an old folder does not name them."""
        if self.test_idx is None:
            raise InputError(f"{self.source}: results of {self.target} have no test_idx.csv; expected the jobs' names")
        return ValueAnswers(self.test_idx, self.predictions[:, 0])

    def scores(self) -> dict[str, float]:
        return regression_scores(self.predictions[:, 1], self.predictions[:, 0])

    def plots(self) -> dict[str, Any]:
        """Plotly figures by name, see `regression_plots`."""
        from calmlflow.results.plots.regression import regression_plots

        return regression_plots(self, self.jobs)


@dataclass(frozen=True, eq=False, repr=False)
class TrainingResults:
    """Results of one training; a field is None where the training has no such network, or left no such file."""

    mem_bin: LoadedClassification | None
    memory: LoadedRegression | None
    wallclock: LoadedRegression | None
    jobs: pd.DataFrame | None
    """The training set with predictions (``data/latest.csv``)."""
    source: str

    def by_target(self) -> dict[str, LoadedClassification | LoadedRegression]:
        """Target -> results, of the networks that the training has."""
        found = {target: getattr(self, target) for target in TARGETS.values()}
        return {target: results for target, results in found.items() if results is not None}

    def plots(self) -> dict[str, dict[str, Any]]:
        """Target -> plotly figures by name; and those of the jobs themselves under ``data``, where there are jobs."""
        from calmlflow.results.plots.data import data_plots

        figures = {target: results.plots() for target, results in self.by_target().items()}
        return figures if self.jobs is None else {**figures, "data": data_plots(self.jobs)}

    def summary(self) -> str:
        """Scores of all networks as tables of text."""
        return "\n\n".join(results.summary() for results in self.by_target().values())

    def compare(self, other: "TrainingResults") -> dict[str, Comparison]:
        """Target -> comparison, of the targets that both have; an InputError where they have none in common."""
        mine, others = self.by_target(), other.by_target()
        shared = [target for target in mine if target in others]
        if not shared:
            raise InputError(
                f"{self.source} has {', '.join(mine)} and {other.source} has {', '.join(others)}; "
                "expected a target in common to compare on"
            )
        return {target: mine[target].compare(others[target]) for target in shared}

    def __repr__(self) -> str:
        return f"<training {self.source}: {', '.join(self.by_target())}>"


def read_training(folder: str | Path, source: str) -> TrainingResults:
    """Read the results of a training from its folder, its ``results`` folder, or the folder of one target in there.

    ``source`` is its name in summaries and errors. An InputError names a file that is missing, damaged or pickled.
    """
    folder = Path(folder)
    places = [folder / "results", folder, folder.parent] if folder.is_dir() else []
    results = next((place for place in places if any((place / name).is_dir() for name in TARGETS.values())), None)
    if results is None:
        raise InputError(f"{folder} holds no results; expected a training's folder, with results/mem_bin in it")
    table = results.parent / "data" / "latest.csv"
    jobs = read_training_table(table) if results.name == "results" and table.exists() else None
    found: dict[str, Any] = dict.fromkeys(TARGETS.values())
    for target in found:
        if (results / target).is_dir():
            fields = vars(read_results(results / target, target))
            kind, answers = (
                (LoadedClassification, "y_scores") if target == "mem_bin" else (LoadedRegression, "predictions")
            )
            found[target] = kind(**fields, target=target, test_jobs=len(fields[answers]), source=source, jobs=jobs)
    return TrainingResults(**found, jobs=jobs, source=source)
