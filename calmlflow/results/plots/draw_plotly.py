"""Draw a chart as an interactive plotly figure."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from calmlflow.results.plots.charts import (
    GREY,
    HIGHEST,
    INK,
    LOWEST,
    Axis,
    Bars,
    Boxes,
    Chart,
    Density,
    Guide,
    Line,
    Mark,
    Matrix,
    Numbers,
    Panel,
    Points,
    has_legend,
    log_ticks,
)

SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "x": "x-thin", "ring": "circle-open"}
PANEL_HEIGHT = {1: 560, 2: 380, 3: 290}
"""Pixels of one panel, by the number of rows."""
TITLE_HEIGHT, LEGEND_HEIGHT = 44, 32
GAP_ACROSS, GAP_DOWN = 0.025, 0.12
"""Room between panels, as shares of the figure."""


def figure(chart: Chart) -> go.Figure:
    """A chart as a figure that holds all it shows: it can be shown, saved or sent on by itself."""
    top = TITLE_HEIGHT + (LEGEND_HEIGHT if has_legend(chart) else 12)
    # One dictionary for the whole layout: plotly checks every later change against all that is there.
    layout: dict[str, Any] = {
        "template": "none",
        "title": {"text": _plain(chart.title), "font": {"size": 17, "weight": 600}, "x": 0.01, "xanchor": "left",
                  "y": 0.985, "yanchor": "top", "yref": "container", "pad": {"t": 12}},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                   "itemsizing": "constant"},
        "margin": {"l": 80, "r": 24, "t": top, "b": 64},
        "height": chart.rows * PANEL_HEIGHT.get(chart.rows, 290) + top,
        "barmode": "overlay",
        "hovermode": "closest",
    }  # fmt: skip
    traces = []
    for number, panel in enumerate(chart.panels):
        row, column = divmod(number, chart.columns)
        name = str(number + 1) if number else ""
        x, y = _axis(panel.x), _axis(panel.y, titled=column == 0)
        x |= {"domain": _part(column, chart.columns, GAP_ACROSS), "anchor": f"y{name}"}
        y |= {"domain": _part(chart.rows - 1 - row, chart.rows, GAP_DOWN), "anchor": f"x{name}"}
        if number:
            y |= {"matches": "y", "showticklabels": column == 0}
        if any(isinstance(mark, Matrix) for mark in panel.marks):
            y |= {"autorange": "reversed"}
        layout |= {f"xaxis{name}": x, f"yaxis{name}": y}
        for trace in (_trace(mark, panel) for mark in panel.marks):
            trace.update(xaxis=f"x{name}", yaxis=f"y{name}", showlegend=bool(trace.name) and not number)
            traces.append(trace)
    return go.Figure(traces, layout)


def _part(number: int, parts: int, gap: float) -> list[float]:
    """The share of the figure that one of several equal parts takes, with gaps between them."""
    size = (1 - gap * (parts - 1)) / parts
    start = number * (size + gap)
    return [start, min(start + size, 1)]


def _trace(mark: Mark, panel: Panel) -> Any:
    match mark:
        case Line():
            return go.Scatter(
                x=_small(mark.x), y=_small(mark.y), name=_plain(mark.name),
                mode="lines+markers" if mark.markers else "lines",
                line={"color": mark.color, "dash": "dash" if mark.dashed else "solid", "width": 2},
                hoverinfo="x+y+name" if mark.name else "skip",
            )  # fmt: skip
        case Guide():
            return _guide(mark, panel)
        case Points():
            down, up = mark.error if mark.error is not None else (None, None)
            return go.Scatter(
                x=_small(mark.x), y=_small(mark.y), name=_plain(mark.name), mode="markers",
                marker={"color": mark.color, "opacity": 1, "symbol": SYMBOLS[mark.symbol], "size": mark.size,
                        "line": {"width": 1.5 if mark.symbol in ("x", "ring") else 0, "color": mark.color}},
                error_y=None if down is None else {"array": up, "arrayminus": down, "color": mark.color, "width": 3},
                text=_texts(mark.texts), hoverinfo="text" if len(mark.texts) else "x+y+name",
            )  # fmt: skip
        case Bars():
            at, values = ("y", "x") if mark.horizontal else ("x", "y")
            error = None if mark.error is None else {"array": mark.error, "color": INK, "width": 3}
            return go.Bar(
                {at: mark.at, values: mark.values, f"error_{values}": error},
                orientation="h" if mark.horizontal else "v", width=mark.width, name=_plain(mark.name),
                marker_color=mark.color, text=_texts(mark.texts), textposition="outside" if error is None else "none",
                hoverinfo="text", cliponaxis=False,
            )  # fmt: skip
        case Boxes():
            low, q1, median, q3, high = mark.quantiles.T
            return go.Box(
                x=np.arange(len(median)), lowerfence=low, q1=q1, median=median, q3=q3, upperfence=high,
                line={"color": mark.color, "width": 2}, width=0.55,
            )  # fmt: skip
        case Density():
            return _density(mark)
        case Matrix():
            return go.Heatmap(
                z=mark.shades, zmin=0, zmax=1, colorscale=[LOWEST, HIGHEST], showscale=False, xgap=2, ygap=2,
                text=[[_plain(text) for text in row] for row in mark.texts], texttemplate="%{text}",
                textfont={"size": 16}, hoverinfo="skip",
            )  # fmt: skip


def _guide(mark: Guide, panel: Panel) -> go.Scatter:
    span = (panel.y if mark.vertical else panel.x).span
    ends, flat = list(span or (0, 1)), [mark.at, mark.at]
    if mark.vertical:
        ends.reverse()
    x, y = (flat, ends) if mark.vertical else (ends, flat)
    return go.Scatter(
        x=x, y=y, mode="lines+text", line={"color": GREY, "width": 1, "dash": "dot"}, text=["", _plain(mark.label)],
        textposition="top left", textfont={"color": GREY, "size": 12},
        hoverinfo="skip", cliponaxis=False,
    )  # fmt: skip


def _density(mark: Density) -> go.Heatmap:
    most = int(mark.counts.max())
    decades = [10**power for power in range(len(str(most)))]
    shown = np.log10(np.where(mark.counts > 0, mark.counts, np.nan)).astype(np.float32)
    return go.Heatmap(
        x=_small(mark.x_edges), y=_small(mark.y_edges), z=shown, customdata=mark.counts.astype(np.int32),
        zmin=0, zmax=max(np.log10(most), 1), colorscale="Viridis", hoverongaps=False,
        hovertemplate="%{customdata:,} jobs near actual %{x:.3~g}, predicted %{y:.3~g}<extra></extra>",
        colorbar={"title": {"text": "jobs per cell", "side": "right"}, "tickvals": np.log10(decades),
                  "ticktext": [f"{count:,}" for count in decades], "thickness": 14},
    )  # fmt: skip


def _axis(axis: Axis, titled: bool = True) -> dict[str, Any]:
    settings: dict[str, Any] = {"title": {"text": _plain(axis.title) if titled else ""}, "zeroline": False}
    settings |= {"automargin": True, "title_standoff": 8, "showline": True, "linecolor": GREY}
    if axis.percent:
        settings["tickformat"] = ".2~%"
    if axis.log and axis.span:
        ticks = log_ticks(axis.span)
        settings |= {"type": "log", "tickvals": list(ticks), "ticktext": list(ticks.values())}
    if axis.labels:
        settings |= {"tickvals": np.arange(len(axis.labels)), "ticktext": _texts(axis.labels), "showgrid": False}
    if axis.span:
        settings["range"] = np.log10(axis.span) if axis.log else axis.span
    return settings


def _small(values: Numbers) -> NDArray[np.float32]:
    """Half the bytes, and more digits than a screen has pixels."""
    return np.asarray(values, dtype=np.float32)


def _texts(texts: Sequence[str]) -> list[str]:
    return [_plain(text) for text in texts]


def _plain(text: str) -> str:
    """Plotly reads tags in every text."""
    return html.escape(text).replace("\n", "<br>")
