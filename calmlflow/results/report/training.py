"""Build the report of a training: one HTML page with its scores, plots, worst jobs and data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import BIN_NAMES, allocation_cost
from calmlflow.results.comparison import Comparison, Interval
from calmlflow.results.plots.common import instruments, rounded
from calmlflow.results.report.comparison import paired_rows
from calmlflow.results.report.page import TITLES, render
from calmlflow.results.scores import DECISIVE, KINDS, NOTES, PREDICTED, SCORES, UNITS, Score, score_predictions
from calmlflow.results.table import COUNTS, PROBABILITIES

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Target -> whose scores (keys of `KINDS`) -> name of a score -> value."""

WORST = 50

_SAID = {"better": " is better", "worse": " is worse", "no difference": " is not different beyond chance"}

BY_EVIDENCE = {
    "accuracy": ("mem_bin", "accuracy"),
    "excess cost": ("mem_bin", "excess_cost"),
    "memory MAE": ("memory", "mae"),
    "wallclock MAE": ("wallclock", "mae"),
    "wallclock log MAE": ("wallclock", "log_mae"),
    "end before kill time": ("wallclock", "kill_time_coverage"),
}
"""Heading -> target and score, of the table by what is known of a job."""


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Content of a report; any text is safe."""

    title: str
    run_id: str
    created: str
    source: str  # where the jobs came from
    scores: Scores
    # Target -> score -> interval of the answer's, or else of the network's.
    intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    against: Mapping[str, Comparison] = field(default_factory=dict)  # by target: this with the champion
    champion_name: str = "champion"
    # By section (answer, a target for its network, jobs) and name.
    figures: Mapping[str, Mapping[str, go.Figure]] = field(default_factory=dict)
    jobs: pd.DataFrame | None = None  # job records with ``split`` and answers, or else predictions of the networks
    quarantine: Mapping[str, int] = field(default_factory=dict)  # reason -> records left out for it
    sizes: Mapping[str, int] = field(default_factory=dict)  # counts such as n_jobs
    split: str = ""  # what was held out, in words
    # Target -> score -> mean and standard deviation over training seeds, and how many seeds; where they are known.
    seeds: Mapping[str, Mapping[str, tuple[float, float, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of texts; ``words`` is how many of its columns, from the left, hold words rather than numbers."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1


def report_html(content: ReportContent) -> str:
    """The report as one HTML page of about 5.5 MB that loads nothing from anywhere."""
    # Of a target that has no answer of this run the champion may have scores; they say nothing about the run.
    own = {target: found for target, found in content.scores.items() if {"answer", "test"} & set(found)}
    scores = {target: own[target] for target in TITLES if target in own}
    known = {whose for found in scores.values() for whose in found}
    headings = KINDS | {"champion": f"champion ({content.champion_name})"}
    columns = {whose: text for whose, text in headings.items() if whose in known}
    tables = {
        summary: {target: rows for target in scores if (rows := score_rows(target, scores[target], columns, summary))}
        for summary in (True, False)
    }
    alone = ": network" if "answer" in known else ""
    networks = {target: f"{text}{alone}" for target, text in TITLES.items()}
    sections = {"answer": "The answer", **networks, "jobs": "The jobs"}
    return render(
        "training.html",
        content.title,
        has_plots=bool(content.figures),
        content=content,
        verdict=verdict(content.against, content.champion_name),
        beside={target: _beside(target, scores[target], content) for target in scores},
        summary=tables[True],
        others=tables[False],
        columns=list(columns.values()),
        notes=[f"{KINDS[whose].capitalize()}: {note}." for whose, note in NOTES.items() if whose in known],
        by_evidence=None if content.jobs is None else scores_by_evidence(content.jobs),
        sections=[(name, text, content.figures[name]) for name, text in sections.items() if content.figures.get(name)],
        worst=[] if content.jobs is None else worst_jobs(content.jobs),
        facts=_facts(content),
    )


def score_rows(
    target: str, scores: Mapping[str, Mapping[str, float]], columns: Iterable[str], summary: bool
) -> list[tuple[Score, list[tuple[str, bool]]]]:
    """Rows of a table of scores: the score, and for each column its text and whether it is the best of the predictors.

    The floor is no predictor, and where all predictors score the same none is the best. A score that nobody has gives
    no row.
    """
    rows = []
    for name, score in SCORES[target].items():
        found = {whose: values[name] for whose, values in scores.items() if name in values}
        if score.summary != summary or not found:
            continue
        rivals = [value for whose, value in found.items() if whose != "floor"]
        best = score.best(rivals) if len(set(rivals)) > 1 else None
        texts = {whose: (score.text(value), whose != "floor" and value == best) for whose, value in found.items()}
        rows.append((score, [texts.get(whose, ("", False)) for whose in columns]))
    return rows


def _beside(
    target: str, scores: Mapping[str, Mapping[str, float]], content: ReportContent
) -> dict[str, tuple[str, ...]]:
    """Score -> its interval, the jobs behind it and, where any is known, its spread over training seeds, as texts."""
    own, table = scores.get("answer", scores.get("test", {})), SCORES[target]
    intervals, seeds = content.intervals.get(target, {}), content.seeds.get(target, {})
    found: dict[str, tuple[str, ...]] = {}
    for name, value in own.items():
        score, texts = table[name], ("", "")
        if name in intervals:
            texts = intervals[name].text(score), intervals[name].behind(score, value)
        spread = ""
        if name in seeds:
            mean, sd, count = seeds[name]
            spread = f"{score.text(mean)} ± {score.text(sd)} ({count})"
        found[name] = (*texts, spread) if content.seeds else texts
    return found


def verdict(against: Mapping[str, Comparison], champion_name: str) -> str:
    """One sentence on whether the answer, or else the network, is better than the champion's, target by target."""
    said = []
    for target, name in DECISIVE.items():
        rows = paired_rows(against[target]) if target in against else []
        for row in rows:
            if row.score.name == name:
                how = _SAID.get(row.verdict, f": {row.verdict} to tell")
                found = f"{row.score.title} {row.this} against {row.other}, difference {row.interval}"
                said.append(f"{TITLES[target].lower()}{how} ({found})")
    if not said:
        return "No champion in Production was scored on these jobs, so there is nothing to be better than yet."
    return f"Against the champion, {champion_name}: {'; '.join(said)}."


def scores_by_evidence(jobs: pd.DataFrame) -> Table | None:
    """Scores of the answers to the test jobs by what was known of a job; None without answers."""
    if not set(COUNTS) <= set(jobs):
        return None
    test = jobs[jobs["split"] == "test"]
    in_row, in_programme = test["jobs_row"] > 0, test["jobs_programme"] > 0
    states = {
        "programme and row": in_programme,
        "row only": in_row & ~in_programme,
        "neither": ~in_row & ~in_programme,
    }
    rows = []
    for state, is_so in states.items():
        group, cells = test[is_so], [""] * len(BY_EVIDENCE)
        if len(group):
            answers: dict[str, NDArray] = {"probabilities": group[PROBABILITIES].to_numpy()}
            answers |= {name: group[name].to_numpy() for name in (*PREDICTED.values(), "kill_time")}
            scores = {target: score_predictions(target, group, answers) for target in PREDICTED}
            cells = [SCORES[target][name].text(scores[target][name]) for target, name in BY_EVIDENCE.values()]
        rows.append([state, f"{len(group):,}", *cells])
    note = "Known: finished jobs of the same programme and row, of the same row, or none. A row: equal nine features."
    return Table("The answer by what is known of a job", note, ["known", "test jobs", *BY_EVIDENCE], rows)


def worst_jobs(jobs: pd.DataFrame) -> list[Table]:
    """The fifty test jobs with the largest excess cost, error of memory and error of wallclock, with their features."""
    test = jobs[jobs["split"] == "test"] if "split" in jobs else jobs
    tables = []
    if "bin_pred" in test:
        chosen, needed, wallclock_s = (test[name].to_numpy() for name in ("bin_pred", "mem_bin", "wallclock"))
        lost = allocation_cost(chosen, needed, wallclock_s) - allocation_cost(needed, needed, wallclock_s)
        table = test.assign(lost=lost)[lost > 0].nlargest(WORST, "lost")
        names = np.array(BIN_NAMES)
        found = {
            "needed": names[table["mem_bin"].astype(int)],
            "decided on": names[table["bin_pred"].astype(int)],
            "excess cost": [f"${value:.4f}" for value in table["lost"]],
            "wallclock, s": map(rounded, table["wallclock"]),
        }
        note = f"All jobs of the test split together: ${lost.sum():.2f} more than always choosing the needed bin."
        tables.append(_worst_table("Memory bin: largest excess cost", note, table, found))
    for target, unit in UNITS.items():
        if PREDICTED[target] in test:
            error = test[PREDICTED[target]] - test[target]
            table = test.assign(error=error, size=error.abs()).nlargest(WORST, "size")
            found = {
                f"actual, {unit}": map(rounded, table[target]),
                f"predicted, {unit}": map(rounded, table[PREDICTED[target]]),
                f"residual, {unit}": [rounded(value, "+") for value in table["error"]],
            }
            note = "Residuals are predicted - actual: a minus is a job that took more than was predicted."
            tables.append(_worst_table(f"{TITLES[target]}: largest residuals", note, table, found))
    return tables


def _worst_table(title: str, note: str, jobs: pd.DataFrame, found: Mapping[str, object]) -> Table:
    names = pd.Index(jobs["ipst"], dtype=str)
    if set(COUNTS) <= set(jobs):
        note += " Row, programme, visit, run: how many finished jobs of the same stood behind the answer."
    shown = [name for name in (*COUNTS, *FEATURES) if name in jobs and name != "instr"]
    others = {name.removeprefix("jobs_"): map(rounded, jobs[name]) for name in shown}
    table = pd.DataFrame({"dataset": names, "instrument": instruments(names)} | dict(found) | others, dtype=str)
    return Table(title, note, list(table.columns), table.to_numpy().tolist(), words=2)


def _facts(content: ReportContent) -> list[Table]:
    """Counts, quarantine, and bins by instrument."""
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
        counts = pd.crosstab(group, content.jobs["mem_bin"]).reindex(known, columns=range(len(BIN_NAMES)), fill_value=0)
        counts.loc["all"] = counts.sum()
        rows = [[str(name), *(f"{count:,}" for count in (*row, row.sum()))] for name, row in counts.T.items()]
        note = "Jobs that needed each memory bin, training and test together."
        tables.append(Table("Bins by instrument", note, ["instrument", *BIN_NAMES, "all"], rows))
    return [table for table in tables if table.rows]
