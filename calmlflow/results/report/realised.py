"""Build the page of predictions against the finished and killed jobs that ran with them, month by month."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from calmlflow.hst.dataset import programmes
from calmlflow.hst.resources import KILLS
from calmlflow.results.comparison import INTERVAL_PERCENT, resampled_interval
from calmlflow.results.plots import theme
from calmlflow.results.plots.common import instruments
from calmlflow.results.realised import ended_runs, join_predictions, resampled_excess, share
from calmlflow.results.report.page import render
from calmlflow.results.report.training import Table
from calmlflow.results.scores import FEWEST_PROGRAMMES, SCORES, Score

_COUNTS = ("finished", *(f"killed_{kind}" for kind in KILLS), "too_low", "too_high")
_DOLLARS = ("paid", "perfect", "lost_to_kills", "lost_to_air")
_EXCESS, _COVERAGE = SCORES["mem_bin"]["excess_cost"], SCORES["wallclock"]["kill_time_coverage"]
_EVERY = "all"

_RULES = (
    "Each job that ended is held against the latest prediction before its end, whichever version gave it. Months are"
    " those of the end, in UTC. Answers by policy, and jobs without a recorded prediction, do not count.",
    "Paid: a finished job costs its wallclock on every rung from the predicted one up to the one that it needed; a"
    " perfect choice costs its wallclock on that rung alone. What is more went to kills where the rung was too low, and"
    " to air where it was too high.",
    "A job killed by its kill time, or for lack of memory, costs what it had reached on the predicted rung, all of it"
    " lost; a kill by memory of a job that climbed and finished with the same answer is in that job's cost already."
    " Jobs ended by their machine or by a failure of their own are counted, and cost nothing here: no prediction"
    " prevents them.",
    "Ended in time: of the finished jobs and those killed by time, the share that ended before its kill time.",
    f"Intervals are {INTERVAL_PERCENT} % ones over programmes, for jobs of one programme are alike; fewer than"
    f" {FEWEST_PROGRAMMES} programmes get none.",
)


@dataclass(frozen=True, eq=False)
class RealisedContent:
    """Content of the page; any text is safe."""

    data: str  # where the jobs came from
    created: str
    runs: pd.DataFrame  # those with a prediction, see `realised_runs`
    ended: int  # finished and killed jobs, with a prediction or without
    left_out: int = 0  # jobs that a policy answered, or whose prediction is incomplete
    unreadable: int = 0  # recorded predictions that cannot be read

    @cached_property
    def figures(self) -> dict[str, Any]:
        """All figures, for JSON: of all runs, by month, by instrument, and by both; None where undefined."""
        return {
            "data": self.data,
            "created": self.created,
            "ended": self.ended,
            "predicted": len(self.runs),
            "left_out": self.left_out,
            "unreadable": self.unreadable,
            _EVERY: _summed(self.runs),
            "by_month": _by(self.runs, "month"),
            "by_instrument": _by(self.runs, "instrument"),
            "by_month_and_instrument": _by(self.runs, "month", "instrument"),
        }


def realised_runs(jobs: pd.DataFrame, killed: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Runs, see `ended_runs`, that had a prediction, and how many had an incomplete one.

    For ``predictions`` see `calmlflow.jobs.predictions.Recorded`. Beside the columns of `count_runs`, n runs have
    ``month`` (``2026-01``, UTC) and ``instrument``.
    """
    joined = join_predictions(ended_runs(jobs, killed), predictions)
    runs = joined.judged
    month = pd.to_datetime(runs["finished_at"], unit="s").dt.strftime("%Y-%m")
    return runs.assign(month=month, instrument=instruments(pd.Index(runs["ipst"], dtype=str))), joined.left_out


def realised_html(content: RealisedContent) -> str:
    """The page, about 5 MB with plots; it loads nothing, and texts of the content are never read as HTML."""
    found = content.figures
    tables: dict[str, Table] = {}
    figures: dict[str, go.Figure] = {}
    if len(content.runs):
        total = {"month": _EVERY, "instrument": _EVERY, **found[_EVERY]}
        tables = {
            "months": _table("By month", ["month"], [*found["by_month"], total]),
            "instruments": _table("By instrument", ["instrument"], [*found["by_instrument"], total]),
            "both": _table("By month and instrument", ["month", "instrument"], found["by_month_and_instrument"]),
        }
        figures = _figures(found["by_month"], content.runs)
    return render(
        "realised.html",
        "Predictions against finished and killed jobs",
        has_plots=bool(figures),
        content=content,
        verdict=realised_verdict(content),
        notes=_notes(content),
        tables=tables,
        figures=figures,
        rules=_RULES,
    )


def realised_verdict(content: RealisedContent) -> str:
    """What the predictions came to, in words."""
    if not content.ended:
        return f"{content.data} holds no job that has ended, so there is nothing to hold against predictions yet."
    if content.runs.empty:
        return (
            f"No prediction was recorded before the end of any of {content.ended:,} jobs, so there is nothing to hold"
            " against them yet; calmlflow predict --emit keeps predictions."
        )
    found = content.figures[_EVERY]
    more = "" if found["excess_cost"] is None else f"{_cell(_EXCESS, found, 'excess_cost')} more than "
    covered = (
        "" if found["coverage"] is None else f" {_cell(_COVERAGE, found, 'coverage')} ended before their kill time."
    )
    kills = {kind: found[f"killed_{kind}"] for kind in KILLS if found[f"killed_{kind}"]}
    too_low = f" Put too low: {found['too_low']:,}." if found["too_low"] else ""
    killed = f" Killed: {', '.join(f'{count:,} ({kind})' for kind, count in kills.items())}." if kills else ""
    return (
        f"{len(content.runs):,} of {content.ended:,} jobs that ended had a prediction. They cost ${found['paid']:,.2f}:"
        f" {more}the ${found['perfect']:,.2f} of a perfect choice. ${found['lost_to_kills']:,.2f} went to kills and"
        f" ${found['lost_to_air']:,.2f} to air.{covered}{too_low}{killed}"
    )


def _notes(content: RealisedContent) -> list[str]:
    notes = []
    if content.left_out:
        notes.append(f"{content.left_out:,} jobs ran with an answer by policy, or with an incomplete one.")
    if content.unreadable:
        notes.append(f"{content.unreadable:,} recorded predictions cannot be read.")
    if len(content.runs) and not content.runs[[f"killed_{kind}" for kind in KILLS]].to_numpy().any():
        notes.append("No job with a prediction is known to have been killed.")
    if len(content.runs) and not content.runs["finished"].any():
        notes.append("No job with a prediction has finished, so there is no perfect choice to compare with.")
    return notes


def _by(runs: pd.DataFrame, *names: str) -> list[dict[str, Any]]:
    groups = runs.groupby(list(names))
    return [{**dict(zip(names, key, strict=True)), **_summed(group)} for key, group in groups]


def _summed(runs: pd.DataFrame) -> dict[str, Any]:
    """Counts, dollars and the two scores of some runs, with intervals; None where undefined."""
    found: dict[str, Any] = {name: int(runs[name].sum()) for name in (*_COUNTS, "judged", "covered")}
    found |= {name: float(runs[name].sum()) for name in _DOLLARS}
    found |= {"programmes": len(np.unique(programmes(runs["ipst"])))}
    found |= dict.fromkeys(f"{name}{end}" for name in ("excess_cost", "coverage") for end in ("", "_low", "_high"))
    if found["perfect"] > 0:
        found["excess_cost"], resamples, number = resampled_excess(runs, seed=0)
        if found["programmes"] >= FEWEST_PROGRAMMES:
            found["excess_cost_low"], found["excess_cost_high"] = resampled_interval(resamples, number)
    if found["judged"]:
        found["coverage"], low, high = share(runs, "covered", "judged")
        if len(np.unique(programmes(runs.loc[runs["judged"], "ipst"]))) >= FEWEST_PROGRAMMES:
            found["coverage_low"], found["coverage_high"] = low, high
    return found


# -- Tables and plots -----------------------------------------------------------------------------------------------


def _cell(score: Score, row: Mapping[str, Any], name: str) -> str:
    """``3.10% (2.00% to 4.20%)``; empty where undefined."""
    if row[name] is None:
        return ""
    text, low, high = score.text(row[name]), row[f"{name}_low"], row[f"{name}_high"]
    return text if low is None else f"{text} ({score.text(low)} to {score.text(high)})"


def _table(title: str, words: list[str], rows: list[dict[str, Any]]) -> Table:
    """One row a group; the columns that matter most stand where a narrow page shows them."""
    dollars = [f"{name.replace('_', ' ')}, $" for name in _DOLLARS]
    counts = [name.replace("killed_", "killed: ").replace("_", " ") for name in _COUNTS]
    columns = [*words, *dollars, "excess cost", "ended in time", *counts, "programmes"]
    texts = [
        [
            *(row[name].replace("-", "\N{NON-BREAKING HYPHEN}") for name in words),
            *(f"{row[name]:,.2f}" for name in _DOLLARS),
            _cell(_EXCESS, row, "excess_cost"),
            _cell(_COVERAGE, row, "coverage"),
            *(f"{row[name]:,}" for name in (*_COUNTS, "programmes")),
        ]
        for row in rows
    ]
    return Table(title, "Jobs with a prediction.", columns, texts, len(words))


def _figures(rows: list[dict[str, Any]], runs: pd.DataFrame) -> dict[str, go.Figure]:
    months = [row["month"] for row in rows]
    at, traces = np.arange(len(rows)), []
    # A narrow page has room for a dozen labels.
    step = math.ceil(len(rows) / 12)
    axis = theme.category_axis(months) | {"tickvals": at[::step], "ticktext": months[::step]}
    for name, color in (("lost_to_kills", theme.VERMILION), ("lost_to_air", theme.ORANGE)):
        dollars = [row[name] for row in rows]
        texts = [
            f"{month}: ${value:,.2f} {name.replace('_', ' ')}" for month, value in zip(months, dollars, strict=True)
        ]
        traces.append(
            go.Bar(
                x=at, y=dollars, width=0.7, name=name.replace("_", " "), marker_color=color, hovertext=texts,
                hoverinfo="text",
            )
        )  # fmt: skip
    kills, air = (runs[name].sum() for name in ("lost_to_kills", "lost_to_air"))
    lost = theme.figure(
        f"Lost by month: ${kills:,.2f} to kills, ${air:,.2f} to air",
        "The height of a bar is what a perfect choice of bins and kill times would have saved in that month.",
        traces,
        height=360,
        barmode="stack",
        xaxis=axis,
        yaxis={"title": {"text": "dollars"}, "rangemode": "tozero"},
    )
    drawn = {
        "excess": _trend("Excess cost by month", _EXCESS, "excess_cost", rows, axis),
        "coverage": _trend("Jobs that ended before their kill time, by month", _COVERAGE, "coverage", rows, axis),
    }
    return {"lost": lost, **{name: figure for name, figure in drawn.items() if figure}}


def _trend(title: str, score: Score, name: str, rows: list[dict[str, Any]], axis: dict[str, Any]) -> go.Figure | None:
    """A score over the months that have it; None where none has."""
    known = [(at, row) for at, row in enumerate(rows) if row[name] is not None]
    if not known:
        return None
    values = np.array([row[name] for _, row in known])
    ends = [np.array([row[f"{name}{end}"] for _, row in known], dtype=float) for end in ("_low", "_high")]
    low, high = (np.where(np.isfinite(end), end, values) for end in ends)
    texts = [f"{row['month']}: {_cell(score, row, name)}" for _, row in known]
    shown = theme.points([at for at, _ in known], values, texts, theme.BLUE, size=11)
    bars = {"array": np.maximum(high - values, 0), "arrayminus": np.maximum(values - low, 0)}
    shown.error_y = {**bars, "color": theme.BLUE, "width": 3}
    latest = known[-1][1]
    return theme.figure(
        f"{title}: {score.text(latest[name])} in {latest['month']}",
        f"Bars are {INTERVAL_PERCENT} % intervals over programmes; months whose bars overlap may differ by chance.",
        [shown],
        height=360,
        xaxis=axis,
        yaxis=theme.share_axis(score.title),
    )
