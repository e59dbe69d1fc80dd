"""The scores of a report: how each is called and written, which way is better, and the verdict on the champion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from calmlflow.results.plots.common import UNITS

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target -> whose scores (keys of `PREDICTORS`) -> name of a score -> value."""

PREDICTORS = {"test": "this run", "floor": "floor", "forest": "random forest", "champion": "champion ({})"}
"""Whose scores stand in which column; the braces hold the champion's name."""

TITLES = {"mem_bin": "Memory bin", "memory": "Memory", "wallclock": "Wallclock"}

SUMMARY = {
    "mem_bin": ("accuracy", "balanced_accuracy", "f1_macro", "recall_16g", "recall_64g", "underallocated",
                "overallocated", "excess_cost", "log_loss", "ece"),
    "memory": ("rmse", "mae", "r2", "log_mae", "ape_median", "ape_p95"),
    "wallclock": ("rmse", "mae", "r2", "log_mae", "ape_median", "ape_p95", "kill_time_coverage", "kill_time_reserved",
                  "kill_time_3x_coverage", "kill_time_3x_reserved", "kill_time_6x_coverage", "kill_time_6x_reserved"),
}  # fmt: skip
"""Scores that stand in the first table; all others stand in a second one."""

DECISIVE = {"mem_bin": "excess_cost", "memory": "rmse", "wallclock": "rmse"}
"""What a target is judged by: dollars where they can be told, otherwise what the networks minimise."""

SAME = 0.01
"""Relative difference up to which two scores are called equal."""

_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "f1_macro": "macro F1",
    "underallocated": "jobs put too low",
    "overallocated": "jobs put too high",
    "excess_cost": "excess cost over always right",
    "excess_cost_argmax": "excess cost of the most probable bin",
    "log_loss": "log loss",
    "ece": "expected calibration error",
    "rmse": "RMSE",
    "rmse_unbiased": "RMSE, unbiased",
    "mae": "mean absolute error",
    "r2": "R²",
    "log_rmse": "RMSE of logarithms",
    "log_mae": "mean absolute error of logarithms",
    "log_r2": "R² of logarithms",
    "ape_mean": "absolute error in %, mean",
    "ape_median": "absolute error in %, median",
    "ape_p95": "absolute error in %, 95th percentile",
    "ape_p99": "absolute error in %, 99th percentile",
    "kill_time_coverage": "jobs that end before their kill time",
    "kill_time_reserved": "kill time reserved over time used",
    "kill_time_3x_coverage": "jobs that end before 3 x the prediction",
    "kill_time_3x_reserved": "3 x the prediction over time used",
    "kill_time_6x_coverage": "jobs that end before 6 x the prediction",
    "kill_time_6x_reserved": "6 x the prediction over time used",
}
_SHARES = ("accuracy", "balanced_accuracy", "underallocated", "overallocated", "excess_cost", "excess_cost_argmax",
           "ece")  # fmt: skip
_HIGHER_IS_BETTER = ("accuracy", "balanced_accuracy", "f1_macro", "r2", "log_r2")


class Cell(NamedTuple):
    """A score as text; ``best`` if no other predictor in its row is better. The floor is no predictor."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One score of one target, from every column of the table in turn."""

    name: str
    better: str
    cells: tuple[Cell, ...]


def score_rows(target: str, columns: Mapping[str, Mapping[str, float]], names: Iterable[str]) -> list[Row]:
    """Rows of a table of scores.

    Parameters
    ----------
    target : str
    columns : mapping of str to mapping of str to float
        Whose scores -> scores. One that is missing gives an empty cell.
    names : iterable of str
        Scores wanted, in order; a score that no column has gives no row.
    """
    rows = []
    for name in names:
        found = {whose: scores[name] for whose, scores in columns.items() if name in scores}
        if not found:
            continue
        rivals = [value for whose, value in found.items() if whose != "floor"]
        best = (max if higher_is_better(name) else min)(rivals) if len(rivals) > 1 else None
        cells = tuple(
            Cell(score_text(target, name, found[whose]) if whose in found else "",
                 whose in found and whose != "floor" and found[whose] == best)
            for whose in columns
        )  # fmt: skip
        rows.append(
            Row(_NAMES.get(name, name.replace("_", " ")), "higher" if higher_is_better(name) else "lower", cells)
        )
    return rows


def other_scores(target: str, columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Scores that some column has and the summary does not show, in the order they come."""
    return [name for name in dict.fromkeys(chain(*columns.values())) if name not in SUMMARY[target]]


def higher_is_better(name: str) -> bool:
    """Which way a score is better."""
    return (
        name in _HIGHER_IS_BETTER
        or name.startswith(("precision_", "recall_", "roc_auc_"))
        or name.endswith("_coverage")
    )


def score_text(target: str, name: str, value: float) -> str:
    """A score with its unit."""
    if name in _SHARES or name.startswith(("ape_", "precision_", "recall_")) or name.endswith("_coverage"):
        return f"{value:.2%}"
    if name.endswith("_reserved"):
        return f"{value:.2f} x"
    if name == "log_loss":
        return f"{value:.4f} nats"
    if name in ("rmse", "rmse_unbiased", "mae"):
        unit = UNITS.get(target, "")
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{value:.4f}"


def verdict(scores: Scores, champion_name: str) -> str:
    """One sentence on whether the new networks are better than those in Production, target by target."""
    said = []
    for target, name in DECISIVE.items():
        held = scores.get(target, {})
        new, old = (held.get(whose, {}).get(name) for whose in ("test", "champion"))
        if new is None or old is None:
            continue
        if abs(new - old) <= SAME * max(abs(new), abs(old)):
            how = "as good"
        else:
            how = "better" if (new > old) == higher_is_better(name) else "worse"
        texts = [score_text(target, name, value) for value in (new, old)]
        said.append(f"{TITLES[target].lower()} is {how} ({_NAMES[name]} {texts[0]} against {texts[1]})")
    if not said:
        return "No champion in Production was scored on these jobs, so there is nothing to be better than yet."
    return f"Against the champion, {champion_name}: {'; '.join(said)}."
