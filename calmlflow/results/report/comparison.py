"""The page of a comparison: two trainings side by side, with a word on each score. Needs nothing else to be seen."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from calmlflow.results.comparison import INTERVAL_PERCENT, Comparison
from calmlflow.results.plots.charts import BLUE, GREY, PURPLE, VERMILION, Axis, Chart, Line, Points, single
from calmlflow.results.report.page import figure_json, render
from calmlflow.results.report.report_scores import TITLES, Row, score_rows
from calmlflow.results.scores import FEWEST_JOBS, SCORES

_SAID = {
    "better": "better on",
    "worse": "worse on",
    "no difference": f"no difference that {INTERVAL_PERCENT} % intervals could tell on",
    "too few jobs": "too few jobs to tell on",
}
_LOOKS = {
    "better": (BLUE, "o"),
    "worse": (VERMILION, "s"),
    "no difference": (GREY, "o"),
    "too few jobs": (PURPLE, "ring"),
}
_PANEL_HEIGHT, _SCORE_HEIGHT = 162, 42


@dataclass(frozen=True)
class ComparisonContent:
    """What the page of a comparison says.

    Attributes
    ----------
    this, other : str
        Where the two trainings come from, as the user said it. Any text is safe.
    run_id, created : str
    comparisons : mapping of str to Comparison
        By target (mem_bin, memory, wallclock).
    only_in : mapping of str to str
        Target that is not compared -> which of the two alone has it, ``this`` or ``the other``.
    """

    this: str
    other: str
    run_id: str
    created: str
    comparisons: Mapping[str, Comparison]
    only_in: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedRow:
    """One score of both, as texts, and the verdict on it; ``score`` holds its name, and the cells this and other."""

    score: Row
    jobs: str
    difference: str
    interval: str
    verdict: str


def comparison_html(content: ComparisonContent) -> str:
    """The text of the page, about 5 MB; it loads nothing, and texts of the content are never read as HTML."""
    charts = comparison_charts(content.comparisons)
    rows = {target: paired_rows(comparison) for target, comparison in content.comparisons.items()}
    return render(
        PAGE,
        f"{content.this} against {content.other}",
        has_plots=bool(charts),
        content=content,
        titles=TITLES,
        verdict=counted_verdict(chain(*rows.values())),
        interval=INTERVAL_PERCENT,
        fewest=FEWEST_JOBS,
        sections=[
            (target, title, comparison, rows[target], charts.get(target))
            for target, title in TITLES.items()
            if (comparison := content.comparisons.get(target))
        ],
        plots={
            target: figure_json(chart, _PANEL_HEIGHT + _SCORE_HEIGHT * len(chart.panels[0].y.labels))
            for target, chart in charts.items()
        },
    )


def counted_verdict(rows: Iterable[PairedRow]) -> str:
    """``better on 3 scores, worse on 1, too few jobs to tell on 2``."""
    counts = Counter(row.verdict for row in rows)
    said = [f"{text} {counts[word]}" for word, text in _SAID.items() if counts[word]]
    return ", ".join([f"{said[0]} score{'' if said[0].endswith(' 1') else 's'}", *said[1:]])


def paired_rows(comparison: Comparison) -> list[PairedRow]:
    """Rows of the table of one target.

    A score is better or worse where the interval leaves out 0, and where it is of `FEWEST_JOBS` at least.
    """
    target, scores = comparison.target, comparison.scores
    sides = {whose: {str(name): value for name, value in scores[whose].items()} for whose in ("this", "other")}
    named = score_rows(target, sides, sides["this"])

    rows = []
    for row, name, values in zip(named, sides["this"], scores.to_dict("records"), strict=True):
        score = SCORES[target][name]
        difference, low, high = (score.difference_text(values[column]) for column in ("difference", "low", "high"))
        word = score.verdict(values["difference"], (values["low"], values["high"]), int(values["jobs"]))
        rows.append(PairedRow(row, f"{values['jobs']:,.0f}", difference, f"{low.split()[0]} to {high}", word))
    return rows


def comparison_charts(comparisons: Mapping[str, Comparison]) -> dict[str, Chart]:
    """Describe the chart of the differences of each target; none for one whose other scores are all 0."""
    charts = {target: _chart(comparison) for target, comparison in comparisons.items()}
    return {target: chart for target, chart in charts.items() if chart}


def _chart(comparison: Comparison) -> Chart | None:
    """Dots and whiskers; nothing is a share of 0, so a score that is 0 for the other is not drawn, but named."""
    rows, other = paired_rows(comparison), comparison.scores["other"].to_numpy()
    title = f"{TITLES[comparison.target]}: {counted_verdict(rows)}"
    undrawn = [row.score.name for row, value in zip(rows, other, strict=True) if value == 0]
    # The first score stands on top.
    order = np.flatnonzero(other)[::-1]
    if not len(order):
        return None
    rows = [rows[index] for index in order]
    middle, low, high = (comparison.scores[["difference", "low", "high"]].to_numpy()[order] / other[order, None]).T
    ends = (-0.6, len(rows) - 0.4)
    marks: list[Line | Points] = [Line([0, 0], ends, color=GREY, dashed=True)]
    for word, (color, symbol) in _LOOKS.items():
        at = np.array([place for place, row in enumerate(rows) if row.verdict == word], dtype=np.int64)
        if len(at):
            # A gap after each whisker, so that one line draws them all.
            whiskers = np.column_stack([low[at], high[at], np.full(len(at), np.nan)]).ravel()
            texts = [_hover(rows[place]) for place in at]
            marks.append(Line(whiskers, np.repeat(at, 3), color=color))
            marks.append(Points(middle[at], at, word, color, symbol, 11, texts))
    return single(
        title,
        "A dot is the difference, this - other, as a share of the other's score; its whisker is the"
        f" {INTERVAL_PERCENT} % interval. Where that crosses the dashed line, chance alone could make the difference."
        + (f" Not drawn, as the other's is 0: {', '.join(undrawn)}." if undrawn else ""),
        Axis("difference, % of the other's score", percent=True, span=_span(low, high)),
        Axis("", labels=tuple(row.score.name for row in rows), span=ends),
        *marks,
    )


def _hover(row: PairedRow) -> str:
    this, other = (cell.text for cell in row.score.cells)
    return f"{row.score.name}: {this} against {other}\ndifference {row.difference} ({row.interval})"


def _span(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float]:
    """All whiskers and 0, with some air; 1 % either way where there is no difference at all."""
    least, most = min(low.min(), 0.0), max(high.max(), 0.0)
    air = 0.06 * (most - least) or 0.01
    return float(least - air), float(most + air)


PAGE = """\
{% extends "layout" %}
{% from "figure" import figure %}
{% block header %}
<p class="quiet">run {{ content.run_id }}, {{ content.created }}</p>
<p>In tables and plots, <b>this</b> is {{ content.this }}, and <b>other</b> is {{ content.other }}.</p>
<nav>{% for target, title, comparison, rows, chart in sections %}<a href="#{{ target }}">{{ title }}</a>
{% endfor %}</nav>
{% endblock %}
{% block main %}
<p class="verdict">This against the other: {{ verdict }}.</p>
{% for target, title in titles.items() if target in content.only_in %}
<p>{{ title }}: only {{ content.only_in[target] }} has it, so there is nothing to compare.</p>
{% endfor %}
<p class="quiet">Both are scored on the jobs that are in the test split of both, so neither was trained on them. The
interval of a difference comes from resampling these jobs, drawn for both at once. A difference is called better or
worse where its {{ interval }} % interval leaves out 0; by chance alone one in twenty would. A score of fewer than
{{ fewest }} jobs gets no verdict. pp: percentage points.</p>
{% for target, title, comparison, rows, chart in sections %}
<h2 id="{{ target }}">{{ title }}</h2>
<p><b>{{ "{:,}".format(comparison.jobs) }}</b> test jobs compared. Left out:
<b>{{ "{:,}".format(comparison.only_this) }}</b> that only this saw,
<b>{{ "{:,}".format(comparison.only_other) }}</b> that only the other saw,
<b>{{ "{:,}".format(comparison.differing) }}</b> whose actual values differ (the same dataset, run again).</p>
<div class="wide"><table class="scores paired">
<thead><tr><th class="word">score</th><th class="word">better</th><th>jobs</th><th>this</th><th>other</th>
<th>difference</th><th>{{ interval }} % interval</th><th class="word">this is</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><td class="word">{{ row.score.name }}</td><td class="word quiet">{{ row.score.better }}</td><td>{{ row.jobs }}</td>
{% for cell in row.score.cells %}<td>{{ cell.text }}</td>{% endfor %}
<td>{{ row.difference }}</td><td>{{ row.interval }}</td><td class="word {{ row.verdict }}">{{ row.verdict }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if chart %}
{{ figure("differences-" + target, chart, plots[target]) }}
{% endif %}
{% endfor %}
{% endblock %}
"""
