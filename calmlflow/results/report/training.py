"""One page per run that holds everything worth seeing, and needs nothing else to be seen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.results.plots.charts import Chart
from calmlflow.results.plots.common import UNITS, instruments, rounded
from calmlflow.results.plots.png import write_aside
from calmlflow.results.report.page import figure_json, render
from calmlflow.results.report.report_page import PAGE
from calmlflow.results.report.report_scores import (
    PREDICTORS,
    TITLES,
    Row,
    Scores,
    score_rows,
    verdict,
)
from calmlflow.results.scores import SCORES

WORST = 50
SECTIONS = TITLES | {"jobs": "The jobs"}


@dataclass(frozen=True, eq=False)
class ReportContent:
    """What a report says. Everything from ``champion_name`` on may be missing.

    Attributes
    ----------
    title, run_id, created, source : str
        ``source`` is where the jobs came from. Any text is safe.
    scores : mapping of str to mapping of str to mapping of str to float
        Target (mem_bin, memory, wallclock) -> whose they are -> scores on the test jobs: ``test`` of the network, and
        what it is held against, ``floor``, ``forest`` (a random forest) and ``champion``. Any may be missing.
    champion_name : str
        Such as ``version 3``.
    charts : mapping of str to mapping of str to Chart
        By section (mem_bin, memory, wallclock, jobs) and name, such as `classification_charts` gives them.
    jobs : DataFrame, optional
        Job records with features, targets, predictions and ``split`` (``data/latest.csv``).
    quarantine : mapping of str to int
        Reason -> records left out for it.
    sizes : mapping of str to int
        What was counted, such as n_jobs, n_distinct_rows, n_quarantined.
    """

    title: str
    run_id: str
    created: str
    source: str
    scores: Scores
    champion_name: str = "champion"
    charts: Mapping[str, Mapping[str, Chart]] = field(default_factory=dict)
    jobs: pd.DataFrame | None = None
    quarantine: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of texts; ``words`` is how many of its columns, from the left, hold words rather than numbers."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1


def write_report(path: Path, content: ReportContent) -> None:
    """Write a report as one HTML file that loads nothing from anywhere, about 5.5 MB (plotly.js is 4.8 of them).

    Raises
    ------
    CalmlflowError
        The file cannot be written.
    """
    write_aside(path, report_html(content).encode(errors="replace"))


def report_html(content: ReportContent) -> str:
    """The text of a report; texts of the content are shown as they are, and never read as HTML."""
    return render(
        PAGE,
        content.title,
        has_plots=bool(content.charts),
        content=content,
        verdict=verdict(content.scores, content.champion_name),
        summary=_score_tables(content, summary=True),
        all_scores=_score_tables(content, summary=False),
        columns=[column.format(content.champion_name) for column in _columns(content).values()],
        has_champion="champion" in _columns(content),
        sections=[
            (section, title, [(f"{section}-{name}", chart, figure_json(chart)) for name, chart in charts.items()])
            for section, title in SECTIONS.items()
            if (charts := content.charts.get(section))
        ],
        worst=[] if content.jobs is None else worst_jobs(content.jobs),
        facts=_facts(content),
    )


def _columns(content: ReportContent) -> dict[str, str]:
    """Columns of the tables of scores that are not empty: whose the scores are, and their heading."""
    known = {whose for scores in content.scores.values() if "test" in scores for whose in scores}
    return {whose: heading for whose, heading in PREDICTORS.items() if whose in known}


def _score_tables(content: ReportContent, summary: bool) -> list[tuple[str, list[Row]]]:
    """Title and rows of every target that was trained; of the others a champion may have scores too."""
    tables = []
    for target, title in TITLES.items():
        scores = content.scores.get(target, {})
        columns = {whose: scores.get(whose, {}) for whose in _columns(content)}
        rows = score_rows(target, columns, [name for name, score in SCORES[target].items() if score.summary == summary])
        if "test" in scores and rows:
            tables.append((title, rows))
    return tables


def worst_jobs(jobs: pd.DataFrame) -> list[Table]:
    """The fifty test jobs on which each network did worst, with their features.

    Parameters
    ----------
    jobs : DataFrame
        Job records with ``split`` and some of bin_pred, mem_pred and wall_pred.

    Returns
    -------
    list of Table
        By excess cost (only jobs that cost more than they had to), by error of memory, by error of wallclock; no table
        for a prediction that is not there.
    """
    test = jobs[jobs["split"] == "test"] if "split" in jobs else jobs
    tables = []
    if "bin_pred" in test:
        chosen, needed, wallclock_s = (test[name].to_numpy() for name in ("bin_pred", "mem_bin", "wallclock"))
        lost = allocation_cost(chosen, needed, wallclock_s) - allocation_cost(needed, needed, wallclock_s)
        table = test.assign(lost=lost)[lost > 0].nlargest(WORST, "lost")
        found = {
            "needed": _bins(table["mem_bin"]),
            "predicted": _bins(table["bin_pred"]),
            "excess cost": [f"${value:.4f}" for value in table["lost"]],
            "wallclock, s": _numbers(table["wallclock"]),
        }
        note = f"All jobs of the test split together: ${lost.sum():.2f} more than always choosing the needed bin."
        tables.append(_worst_table("Memory bin: largest excess cost", note, table, found))
    for target, prediction in (("memory", "mem_pred"), ("wallclock", "wall_pred")):
        if prediction in test:
            error = test[prediction] - test[target]
            table = test.assign(error=error, size=error.abs()).nlargest(WORST, "size")
            unit = UNITS[target]
            found = {
                f"actual, {unit}": _numbers(table[target]),
                f"predicted, {unit}": _numbers(table[prediction]),
                f"residual, {unit}": _numbers(table["error"], "+"),
            }
            note = "Residuals are predicted - actual: a minus is a job that took more than was predicted."
            tables.append(_worst_table(f"{TITLES[target]}: largest residuals", note, table, found))
    return tables


def _worst_table(title: str, note: str, table: pd.DataFrame, found: Mapping[str, list[str]]) -> Table:
    names = [str(name) for name in table["ipst"]]
    columns: dict[str, list[str]] = {"dataset": names, "instrument": list(instruments(pd.Index(names, dtype=str)))}
    columns |= dict(found) | {name: _numbers(table[name]) for name in FEATURES if name != "instr"}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table(title, note, list(columns), rows, words=2)


def _bins(values: pd.Series) -> list[str]:
    return list(np.array(BIN_NAMES)[values.to_numpy(dtype=int)])


def _numbers(values: pd.Series, sign: str = "") -> list[str]:
    return [rounded(value, sign) for value in values]


def _facts(content: ReportContent) -> list[Table]:
    """What is to be known of the data: counts, quarantine, bins by instrument."""
    counted = [[name.removeprefix("n_").replace("_", " "), f"{count:,}"] for name, count in content.sizes.items()]
    reasons = [[reason, f"{count:,}"] for reason, count in content.quarantine.items()]
    tables = [
        Table("Counts", "Distinct rows: different combinations of the nine features.", ["what", "count"], counted),
        Table("Quarantine", "Records left out, and why; one record can have several reasons.",
              ["reason", "records"], reasons or [["none: every record was valid", "0"]]),
    ]  # fmt: skip
    if content.jobs is not None:
        group = instruments(pd.Index(content.jobs["ipst"]))
        known = [name for name in [*INSTRUMENTS.values(), "other"] if name in set(group)]
        bins = range(len(BIN_NAMES))
        counts = pd.crosstab(group, content.jobs["mem_bin"]).reindex(known).reindex(columns=bins, fill_value=0)
        total = pd.concat([counts, counts.sum().to_frame("all").T])
        rows = [[str(name), *(f"{count:,}" for count in row), f"{row.sum():,}"]
                for name, row in zip(total.index, total.to_numpy(), strict=True)]  # fmt: skip
        note = "Jobs that needed each memory bin, training and test together."
        tables.append(Table("Bins by instrument", note, ["instrument", *BIN_NAMES, "all"], rows))
    return [table for table in tables if table.rows]
