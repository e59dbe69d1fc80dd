"""Build the page of a comparison: two trainings side by side, with a verdict on each score."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import plotly.graph_objects as go

from calmlflow.results.comparison import INTERVAL_PERCENT, Comparison
from calmlflow.results.plots import theme
from calmlflow.results.report.page import TITLES, render
from calmlflow.results.scores import FEWEST_JOBS, FEWEST_PROGRAMMES, SCORES, Score, Verdict

_SAID: dict[Verdict, str] = {
    "better": "better on",
    "worse": "worse on",
    "no difference": f"no difference that {INTERVAL_PERCENT} % intervals could tell on",
    "too few jobs": "too few jobs to tell on",
    "too few programmes": "too few programmes to tell on",
}
_COMPARED = {
    "answers": "Compared are the answers, that is the networks corrected by evidence.",
    "networks": "Compared are the networks alone, for not both trainings have answers with evidence.",
}
_LOOKS = {
    "better": (theme.BLUE, "circle"),
    "worse": (theme.VERMILION, "square"),
    "no difference": (theme.GREY, "circle"),
    "too few jobs": (theme.PURPLE, "circle-open"),
    "too few programmes": (theme.PURPLE, "square-open"),
}


@dataclass(frozen=True)
class ComparisonContent:
    """Content of the page of a comparison; any text is safe."""

    this: str  # where the trainings come from, as the user said it
    other: str
    run_id: str
    created: str
    comparisons: Mapping[str, Comparison]  # by target
    # Target that is not compared -> the one that alone has it, "this" or "the other".
    only_in: Mapping[str, str] = field(default_factory=dict)
    compared: str = "networks"  # or answers


@dataclass(frozen=True)
class PairedRow:
    """One score of both, their difference and its interval as texts, and the verdict on it."""

    score: Score
    jobs: int
    programmes: int
    this: str
    other: str
    difference: str
    interval: str
    verdict: Verdict


def comparison_html(content: ComparisonContent) -> str:
    """The page, about 5 MB; it loads nothing, and texts of the content are never read as HTML."""
    sections = {
        target: (comparison, paired_rows(comparison), comparison_figure(comparison))
        for target in TITLES
        if (comparison := content.comparisons.get(target))
    }
    return render(
        "comparison.html",
        f"{content.this} against {content.other}",
        has_plots=any(drawn for *_, drawn in sections.values()),
        content=content,
        sections=sections,
        compared=_COMPARED[content.compared],
        verdict=counted_verdict(chain(*(rows for _, rows, _ in sections.values()))),
        interval=INTERVAL_PERCENT,
        fewest=FEWEST_JOBS,
        fewest_programmes=FEWEST_PROGRAMMES,
    )


def counted_verdict(rows: Iterable[PairedRow]) -> str:
    """``better on 3 scores, worse on 1, too few jobs to tell on 2``."""
    counts = Counter(row.verdict for row in rows)
    said = [f"{text} {counts[word]}" for word, text in _SAID.items() if counts[word]]
    return ", ".join([f"{said[0]} score{'' if said[0].endswith(' 1') else 's'}", *said[1:]])


def paired_rows(comparison: Comparison) -> list[PairedRow]:
    """Rows of the table of one target."""
    rows = []
    for name, found in comparison.scores.iterrows():
        score = SCORES[comparison.target][str(name)]
        difference, low, high = (score.difference_text(found[column]) for column in ("difference", "low", "high"))
        jobs, programmes = int(found["jobs"]), int(found["programmes"])
        word = score.verdict(found["difference"], (found["low"], found["high"]), jobs, programmes=programmes)
        interval = f"{low.split()[0]} to {high}"
        this, other = score.text(found["this"]), score.text(found["other"])
        rows.append(PairedRow(score, jobs, programmes, this, other, difference, interval, word))
    return rows


def comparison_figure(comparison: Comparison) -> go.Figure | None:
    """Dots and whiskers of the differences, as shares of the other's score; None where all of these are 0."""
    rows, other = paired_rows(comparison), comparison.scores["other"].to_numpy()
    title = f"{TITLES[comparison.target]}: {counted_verdict(rows)}"
    undrawn = [row.score.title for row, value in zip(rows, other, strict=True) if value == 0]
    # The first score stands on top.
    order = np.flatnonzero(other)[::-1]
    if not len(order):
        return None
    rows = [rows[index] for index in order]
    middle, low, high = (comparison.scores[["difference", "low", "high"]].to_numpy()[order] / other[order, None]).T
    traces = [theme.line([0, 0], [-0.6, len(rows) - 0.4], theme.GREY, dashed=True)]
    for word, (color, symbol) in _LOOKS.items():
        at = np.array([place for place, row in enumerate(rows) if row.verdict == word], dtype=np.int64)
        if len(at):
            texts = [
                f"{row.score.title}: {row.this} against {row.other}\ndifference {row.difference} ({row.interval})"
                for row in (rows[place] for place in at)
            ]
            dots = theme.points(middle[at], at, texts, color, word, symbol=symbol, size=11)
            bars = {"array": (high - middle)[at], "arrayminus": (middle - low)[at]}
            dots.error_x = {**bars, "color": color, "width": 3}
            traces.append(dots)
    least, most = min(low.min(), 0.0), max(high.max(), 0.0)
    air = 0.06 * (most - least) or 0.01
    return theme.figure(
        title,
        "A dot is the difference, this - other, as a share of the other's score; its whisker is the"
        f" {INTERVAL_PERCENT} % interval. Where that crosses the dashed line, chance alone could make the difference."
        + (f" Not drawn, as the other's is 0: {', '.join(undrawn)}." if undrawn else ""),
        traces,
        height=162 + 42 * len(rows),
        xaxis=theme.share_axis("difference, % of the other's score", (least - air, most + air)),
        yaxis=theme.category_axis([row.score.title for row in rows]),
    )
