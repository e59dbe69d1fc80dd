"""Score predictions, and judge the scores: one table of all scores, one rule for better and worse."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.settings import KILL_TIME_MAX_S, KILL_TIME_MIN_S

if TYPE_CHECKING:
    import pandas as pd

PREDICTED = {"mem_bin": "bin_pred", "memory": "mem_pred", "wallclock": "wall_pred"}
"""Target -> its prediction, as job records and bundles name it."""

KINDS = {
    "answer": "answer",
    "test": "network",
    "forest": "random forest",
    "champion": "champion",
    "floor": "best without evidence",
}
"""Whose scores, as metrics begin -> heading of their column; all are of the same test jobs."""

NOTES = {
    "answer": "what is served, the networks corrected by evidence; no job is evidence for its own answer",
    "test": "the networks alone",
    "champion": "the version in Production, which may have trained on some of these jobs",
    "floor": "the best that any function of the nine features could score on these very jobs",
}
"""What headings do not say."""

UNITS = {"memory": "GB", "wallclock": "s"}
"""Unit of each target that has one."""

FIXED_FACTORS = (3, 6)
"""Kill times as multiples of the prediction, for comparison with the calibrated ones."""

FEWEST_JOBS = 10
"""A score of fewer jobs gets no verdict: resamples of so few hardly differ, so their interval is too narrow."""

FEWEST_PROGRAMMES = 5
"""A score of fewer programmes gets no verdict: jobs of one programme are alike, so it says little of others."""

FEWEST_JUDGED = 40
"""Fewer jobs than this are too few to judge a version by."""

Verdict = Literal["better", "worse", "no difference", "too few jobs", "too few programmes"]


@dataclass(frozen=True)
class Score:
    """One score of one target; values of a score in % are shares: 0.03 is shown as 3 %."""

    name: str  # in metrics, tags and files
    title: str  # in reports
    unit: str  # "%", "GB", "s", "nats", "x" or ""
    higher_is_better: bool = False
    headline: bool = False  # the gate compares it with the champion's, and a version carries it as a tag
    summary: bool = False  # it stands in the first table of a report
    relative_margin: bool = False  # the gate's margin is a share of the champion's score

    def text(self, value: float) -> str:
        """A value with its unit: ``95.40%``, ``0.487 GB``, ``3.60 x``."""
        if self.unit == "%":
            return f"{value:.2%}"
        if self.unit in UNITS.values():
            return f"{value:,.0f} {self.unit}" if abs(value) >= 100 else f"{value:.3g} {self.unit}"
        return f"{value:.2f} x" if self.unit == "x" else f"{value:.4f} {self.unit}".rstrip()

    def difference_text(self, value: float) -> str:
        """A difference of two values with sign and unit; of two shares in percentage points."""
        text = self.text(abs(value)).replace("%", " pp")
        return ("+" if value > 0 else "-" if value < 0 else "") + text

    def best(self, values: Iterable[float]) -> float:
        return max(values) if self.higher_is_better else min(values)

    def verdict(
        self,
        difference: float,
        interval: tuple[float, float] | None = None,
        jobs: int | None = None,
        margin: float = 0.0,
        programmes: int | None = None,
    ) -> Verdict:
        """Judge a difference (this - other): it counts where its interval leaves out 0 and it exceeds the margin.

        Without an interval chance is not considered. Fewer than `FEWEST_JOBS` jobs or `FEWEST_PROGRAMMES` programmes
        behind the score give the verdict "too few jobs" or "too few programmes".
        """
        if jobs is not None and jobs < FEWEST_JOBS:
            return "too few jobs"
        if programmes is not None and programmes < FEWEST_PROGRAMMES:
            return "too few programmes"
        low, high = interval or (difference, difference)
        if not (low > 0 or high < 0) or abs(difference) <= margin:
            return "no difference"
        return "better" if (difference > 0) == self.higher_is_better else "worse"


def _regression_table(unit: str) -> list[Score]:
    return [
        Score("rmse", "RMSE", unit, headline=True, summary=True, relative_margin=True),
        Score("rmse_unbiased", "RMSE, unbiased", unit),
        Score("mae", "mean absolute error", unit, headline=True, summary=True, relative_margin=True),
        Score("r2", "R²", "", higher_is_better=True, summary=True),
        Score("log_rmse", "RMSE of logarithms", ""),
        Score("log_mae", "mean absolute error of logarithms", "", summary=True),
        Score("log_r2", "R² of logarithms", "", higher_is_better=True),
        Score("ape_mean", "absolute error in %, mean", "%"),
        Score("ape_median", "absolute error in %, median", "%", summary=True),
        Score("ape_p95", "absolute error in %, 95th percentile", "%", summary=True),
        Score("ape_p99", "absolute error in %, 99th percentile", "%"),
    ]


_TABLE = {
    "mem_bin": [
        Score("accuracy", "accuracy", "%", higher_is_better=True, headline=True, summary=True),
        Score("balanced_accuracy", "balanced accuracy (mean recall)", "%", higher_is_better=True, summary=True),
        Score("f1_macro", "macro F1", "", higher_is_better=True, summary=True),
        *(
            Score(f"recall_{name}", f"recall {name}", "%", higher_is_better=True, headline=True, summary=True)
            for name in BIN_NAMES
        ),
        *(Score(f"precision_{name}", f"precision {name}", "%", higher_is_better=True) for name in BIN_NAMES),
        *(Score(f"roc_auc_{name}", f"area under ROC {name}", "", higher_is_better=True) for name in BIN_NAMES),
        Score("underallocated", "jobs put too low", "%", summary=True),
        Score("overallocated", "jobs put too high", "%", summary=True),
        Score("excess_cost", "excess cost over always right", "%", headline=True, summary=True),
        Score("excess_cost_argmax", "excess cost of the most probable bin", "%"),
        Score("log_loss", "log loss", "nats", summary=True),
        # No headline: it has no interval, for in resamples of the jobs it is larger than in the jobs themselves.
        Score("ece", "expected calibration error", "%"),
    ],
    "memory": _regression_table("GB"),
    "wallclock": [
        *_regression_table("s"),
        Score(
            "kill_time_coverage", "jobs that end before their kill time", "%",
            higher_is_better=True, headline=True, summary=True,
        ),
        Score(
            "kill_time_reserved", "kill time reserved over time used", "x",
            headline=True, summary=True, relative_margin=True,
        ),
        *(
            score
            for n in FIXED_FACTORS
            for score in (
                Score(
                    f"kill_time_{n}x_coverage", f"jobs that end before {n} x the prediction", "%",
                    higher_is_better=True, summary=True,
                ),
                Score(f"kill_time_{n}x_reserved", f"{n} x the prediction over time used", "x", summary=True),
            )
        ),
    ],
}  # fmt: skip

SCORES: dict[str, dict[str, Score]] = {
    target: {score.name: score for score in scores} for target, scores in _TABLE.items()
}
"""Target -> name -> score, in the order of reports."""

DECISIVE = {"mem_bin": "excess_cost", "memory": "rmse", "wallclock": "rmse"}
"""Target -> the score that sums it up: dollars where they are known, otherwise what the networks minimise."""


def headlines(target: str) -> tuple[str, ...]:
    """Names of the scores of a target that the gate compares and that a version carries as tags."""
    return tuple(score.name for score in SCORES[target].values() if score.headline)


def score_predictions(target: str, jobs: "pd.DataFrame", predictions: Mapping[str, NDArray]) -> dict[str, float]:
    """Score predictions of one target, of whatever made them: a network, a forest, the champion.

    Parameters
    ----------
    target : {"mem_bin", "memory", "wallclock"}
    jobs : DataFrame of n jobs
        Job records; their actual values are what the predictions are compared with.
    predictions : mapping of str to ndarray of n rows
        ``bin_pred`` and ``probabilities``, ``mem_pred``, or ``wall_pred`` and, optionally, ``kill_time`` (seconds).

    Returns
    -------
    dict of str to float
        See `classification_scores` and `regression_scores`. With kill times also kill_time_coverage (share of jobs that
        end before theirs), kill_time_reserved (seconds reserved over seconds used), and the same of 3 and 6 times the
        prediction.
    """
    # Commands that only show scores of the table need not load scikit-learn.
    from calmlflow.results.classification import classification_scores
    from calmlflow.results.regression import regression_scores

    actual = jobs[target].to_numpy()
    predicted = predictions[PREDICTED[target]]
    if target == "mem_bin":
        return classification_scores(actual, predictions["probabilities"], predicted, jobs["wallclock"].to_numpy())
    scores = regression_scores(actual, predicted)
    if target == "wallclock" and "kill_time" in predictions:
        fixed = {f"_{n}x": np.clip(np.ceil(n * predicted), KILL_TIME_MIN_S, KILL_TIME_MAX_S) for n in FIXED_FACTORS}
        for name, kill_time_s in {"": predictions["kill_time"], **fixed}.items():
            scores[f"kill_time{name}_coverage"] = float(np.mean(actual <= kill_time_s))
            scores[f"kill_time{name}_reserved"] = float(kill_time_s.sum() / actual.sum())
    return scores
