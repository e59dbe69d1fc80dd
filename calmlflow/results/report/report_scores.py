"""The scores of a report: how each is called and written, which way is better, and the verdict on the champion."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from calmlflow.results.scores import DECISIVE, SCORES

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target -> whose scores (keys of `PREDICTORS`) -> name of a score -> value."""

PREDICTORS = {"test": "this run", "floor": "floor", "forest": "random forest", "champion": "champion ({})"}
"""Whose scores stand in which column; the braces hold the champion's name."""

TITLES = {"mem_bin": "Memory bin", "memory": "Memory", "wallclock": "Wallclock"}

SAME = 0.01
"""Relative difference up to which two scores are called equal."""


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
        score = SCORES[target][name]
        found = {whose: scores[name] for whose, scores in columns.items() if name in scores}
        if not found:
            continue
        rivals = [value for whose, value in found.items() if whose != "floor"]
        best = score.best(rivals) if len(rivals) > 1 else None
        cells = tuple(
            Cell(
                score.text(found[whose]) if whose in found else "",
                whose in found and whose != "floor" and found[whose] == best,
            )
            for whose in columns
        )
        rows.append(Row(score.title, "higher" if score.higher_is_better else "lower", cells))
    return rows


def verdict(scores: Scores, champion_name: str) -> str:
    """One sentence on whether the new networks are better than those in Production, target by target."""
    said = []
    for target, name in DECISIVE.items():
        score, held = SCORES[target][name], scores.get(target, {})
        new, old = (held.get(whose, {}).get(name) for whose in ("test", "champion"))
        if new is None or old is None:
            continue
        word = score.verdict(new - old, margin=SAME * max(abs(new), abs(old)))
        how = "as good" if word == "no difference" else word
        said.append(f"{TITLES[target].lower()} is {how} ({score.title} {score.text(new)} against {score.text(old)})")
    if not said:
        return "No champion in Production was scored on these jobs, so there is nothing to be better than yet."
    return f"Against the champion, {champion_name}: {'; '.join(said)}."
