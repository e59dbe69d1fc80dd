"""Read the results of a training from its folder, and score, plot, summarise and compare them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.errors import InputError
from calmlflow.hst.ladder import DEFAULT, LADDER, LADDER_FILE, Ladder
from calmlflow.results.classification import ClassificationResults, classification_scores
from calmlflow.results.comparison import BinAnswers, Comparison, ValueAnswers, compare_bins, compare_values
from calmlflow.results.files import read_results
from calmlflow.results.regression import RegressionResults
from calmlflow.results.scores import PREDICTED, SCORES, score_predictions
from calmlflow.results.table import read_answers, read_training_table, with_answers
from calmlflow.settings import TARGETS


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Loaded:
    """Results of one target of one training, loaded from its folder."""

    target: str
    test_jobs: int
    source: str
    jobs: pd.DataFrame | None
    """See `TrainingResults`."""

    @property
    def answers(self) -> BinAnswers | ValueAnswers:
        """Answers for the test jobs."""
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
        """Compare with the same target of another training, on the test jobs of both."""
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


def _column(jobs: pd.DataFrame | None, name: str, test_idx: pd.Series | None) -> NDArray[Any] | None:
    """A column of a table of jobs for each test job; None where it is not known of every one of them."""
    if jobs is None or test_idx is None or name not in jobs or not jobs["ipst"].is_unique:
        return None
    rows = pd.Index(jobs["ipst"]).get_indexer(test_idx.index)
    return None if np.any(rows < 0) else jobs[name].to_numpy()[rows]


@dataclass(frozen=True, eq=False, repr=False)
class LoadedClassification(Loaded, ClassificationResults):
    """Memory bins of one training."""

    @property
    def answers(self) -> BinAnswers:
        """Answers for the test jobs; where ``jobs`` lacks them, the decision is the most probable bin."""
        chosen, wallclock_s = (_column(self.jobs, name, self.test_idx) for name in ("bin_pred", "wallclock"))
        likeliest = self.y_scores.argmax(axis=1)
        return BinAnswers(self.test_idx, self.y_scores, likeliest if chosen is None else chosen, wallclock_s)

    def scores(self) -> dict[str, float]:
        return classification_scores(*self.answers)

    def plots(self) -> dict[str, Any]:
        """Plotly figures by name, see `classification_plots`."""
        from calmlflow.results.plots.classification import classification_plots

        return classification_plots(self, self.jobs, decided=_column(self.jobs, "bin_pred", self.test_idx))


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRegression(Loaded, RegressionResults):
    """Memory or wallclock of one training."""

    @property
    def answers(self) -> ValueAnswers:
        """Answers for the test jobs; an InputError where an old folder does not name them."""
        if self.test_idx is None:
            raise InputError(f"{self.source}: results of {self.target} have no test_idx.csv; expected the jobs' names")
        return ValueAnswers(self.test_idx, self.predictions[:, 0], self._kill_time_s())

    def scores(self) -> dict[str, float]:
        found = {PREDICTED[self.target]: self.predictions[:, 0]}
        if (kill_time_s := self._kill_time_s()) is not None:
            found["kill_time"] = kill_time_s
        return score_predictions(self.target, pd.DataFrame({self.target: self.predictions[:, 1]}), found)

    def _kill_time_s(self) -> NDArray[Any] | None:
        return _column(self.jobs, "kill_time", self.test_idx) if self.target == "wallclock" else None

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
    """The training set with predictions (``data/latest.csv``); of an answer, with answers, see `with_answers`."""
    source: str
    answer: "TrainingResults | None" = None
    """The same of the answers, the networks corrected by evidence; None for one network alone, or an older training."""

    def by_target(self) -> dict[str, LoadedClassification | LoadedRegression]:
        """Target -> results, of the targets that the training has."""
        found = {target: getattr(self, target) for target in TARGETS.values()}
        return {target: results for target, results in found.items() if results is not None}

    def plots(self) -> dict[str, dict[str, Any]]:
        """Target -> plotly figures by name; and those of the jobs themselves under ``data``, where there are jobs."""
        from calmlflow.results.plots.data import data_plots

        figures = {target: results.plots() for target, results in self.by_target().items()}
        return figures if self.jobs is None else {**figures, "data": data_plots(self.jobs)}

    def summary(self) -> str:
        """Scores of the answers, where there are any, and of the networks as tables of text."""
        answers = [self.answer.summary()] if self.answer else []
        return "\n\n".join([*answers, *(results.summary() for results in self.by_target().values())])

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
        return f"<training {self.source}: {', '.join([*self.by_target(), *(['answer'] if self.answer else [])])}>"


def read_training(folder: str | Path, source: str) -> TrainingResults:
    """Read the results of a training from its folder, its ``results`` folder, or the folder of one target in there.

    ``source`` is its name in summaries and errors. An InputError names a file that is missing, damaged or pickled.
    """
    folder = Path(folder)
    places = [folder / "results", folder, folder.parent] if folder.is_dir() else []
    # A training of evidence alone has answers, and no network of its own.
    parts = (*TARGETS.values(), "answer")
    results = next((place for place in places if any((place / name).is_dir() for name in parts)), None)
    if results is None:
        raise InputError(f"{folder} holds no results; expected a training's folder, with results/mem_bin in it")
    trained_for = results.parent / "models" / LADDER_FILE
    ladder = Ladder.from_json(trained_for.read_bytes()) if trained_for.exists() else DEFAULT
    if not ladder.has_bins_of(LADDER):
        raise InputError(
            f"{source} has memory bins of {ladder}; in force is {LADDER}: set CALMLFLOW_LADDER to the training's own, "
            f"models/{LADDER_FILE}"
        )
    table, answers = (results.parent / "data" / name for name in ("latest.csv", "answers.csv"))
    jobs = read_training_table(table) if results.name == "results" and table.exists() else None
    answer = None
    if (results / "answer").is_dir():
        answered = with_answers(jobs, read_answers(answers)) if jobs is not None and answers.exists() else None
        answer = TrainingResults(**_read_targets(results / "answer", f"{source} (answers)", answered))
    return TrainingResults(**_read_targets(results, source, jobs), answer=answer)


def _read_targets(results: Path, source: str, jobs: pd.DataFrame | None) -> dict[str, Any]:
    """The fields of `TrainingResults` from a folder with a folder for each target."""
    found: dict[str, Any] = dict.fromkeys(TARGETS.values())
    for target in found:
        if (results / target).is_dir():
            _check_format(results / target)
            fields = vars(read_results(results / target, target))
            kind, answers = (
                (LoadedClassification, "y_scores") if target == "mem_bin" else (LoadedRegression, "predictions")
            )
            found[target] = kind(**fields, target=target, test_jobs=len(fields[answers]), source=source, jobs=jobs)
    return {**found, "jobs": jobs, "source": source}


def _check_format(folder: Path) -> None:
    """Raise an InputError for the folder of an early release of the earlier library, whose files have no endings."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if files and not any(path.suffix for path in files):
        raise InputError(
            f"{folder} holds {files[0].name} and others without endings, which are pickles, and no pickle is read; "
            "expected .npy, .npz and .csv files: load them with the library that wrote them, and save them anew"
        )
