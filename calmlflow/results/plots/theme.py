"""Colours, axes and layout of all plots."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

# The palette of Okabe and Ito, which people with any form of colour blindness can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, GREY, INK = "#D55E00", "#767676", "#222222"
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY, INK)
"""For memory bins, and for the four instruments."""

SHADES = ("#F2F7FB", "#08519C")
"""Ends of the colour scale of a matrix."""

HEIGHT, TITLE_HEIGHT, LEGEND_HEIGHT = 560, 44, 32
"""Pixels of the axes, and of the room above them."""

_AXIS = {"zeroline": False, "automargin": True, "title": {"standoff": 8}, "showline": True, "linecolor": GREY}
_TEMPLATE = go.layout.Template(
    layout={
        "title": {"font": {"size": 17, "weight": 600}, "x": 0.01, "xanchor": "left", "y": 0.985, "yanchor": "top",
                  "yref": "container", "pad": {"t": 12}},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                   "itemsizing": "constant"},
        "barmode": "overlay",
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)  # fmt: skip


def figure(title: str, reading: str, traces: Sequence[Any], height: int = HEIGHT, **layout: Any) -> go.Figure:
    """A figure with its title, and in ``layout.meta`` the plain title and a sentence on how to read it.

    Traces with a name stand in the legend. ``height`` is that of the axes, in pixels.
    """
    for trace in traces:
        trace.showlegend = bool(trace.name) and trace.showlegend is not False
    top = TITLE_HEIGHT + (LEGEND_HEIGHT if any(trace.showlegend for trace in traces) else 12)
    # One dictionary for the whole layout: plotly checks every later change against all that is there.
    whole = {
        "template": _TEMPLATE,
        "title": {"text": plain(title)},
        "meta": {"title": title, "reading": reading},
        "margin": {"l": 80, "r": 24, "t": top, "b": 64},
        "height": height + top,
    }
    return go.Figure(list(traces), whole | layout)


def line(x: ArrayLike, y: ArrayLike, color: str = INK, name: str = "", dashed: bool = False) -> go.Scatter:
    """A line through points."""
    return go.Scatter(
        x=small(x),
        y=small(y),
        name=plain(name),
        mode="lines",
        line={"color": color, "dash": "dash" if dashed else "solid", "width": 2},
        hoverinfo="x+y+name" if name else "skip",
    )


def points(x: ArrayLike, y: ArrayLike, texts: Iterable[str], color: str, name: str = "", **marker: Any) -> go.Scatter:
    """Markers that show their text when pointed at."""
    return go.Scatter(
        x=small(x),
        y=small(y),
        name=plain(name),
        mode="markers",
        text=[plain(text) for text in texts],
        hoverinfo="text",
        marker={"color": color, "opacity": 1, **marker},
    )


def boxes(quantiles: NDArray[np.float64]) -> go.Box:
    """Boxes from ``quantiles`` (k, 5): whisker, lower quartile, median, upper quartile, whisker."""
    low, q1, median, q3, high = quantiles.T
    at = np.arange(len(median))
    style = {"line": {"color": BLUE, "width": 2}, "width": 0.55}
    return go.Box(x=at, lowerfence=low, q1=q1, median=median, q3=q3, upperfence=high, **style)


def category_axis(labels: Sequence[str], title: str = "") -> dict[str, Any]:
    """An axis whose positions 0, 1, 2 and so on have labels."""
    ticks = {"tickvals": np.arange(len(labels)), "ticktext": [plain(label) for label in labels]}
    return {"title": {"text": title}, "range": (-0.6, len(labels) - 0.4), "showgrid": False, **ticks}


def log_axis(title: str, span: tuple[float, float]) -> dict[str, Any]:
    """A logarithmic axis from one value to another, with round numbers as ticks: the fewer the more decades."""
    low, high = np.log10(span)
    digits = (1,) if high - low > 2 else (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 7)
    all_ticks = [digit * 10.0**power for power in range(int(np.floor(low)), int(high) + 1) for digit in digits]
    ticks = [tick for tick in all_ticks if span[0] <= tick <= span[1]]
    texts = [f"{tick:,.10g}" for tick in ticks]
    return {"title": {"text": title}, "type": "log", "range": (low, high), "tickvals": ticks, "ticktext": texts}


def log_span(*values: ArrayLike) -> tuple[float, float]:
    """A range for a log axis: all positive finite values with some air, and a factor of 4 at least."""
    joined = np.concatenate([np.asarray(part, dtype=float).ravel() for part in values])
    shown = joined[np.isfinite(joined) & (joined > 0)]
    low, high = shown.min() / 1.25, shown.max() * 1.25
    widen = max(np.sqrt(4 * low / high), 1.0)
    return float(low / widen), float(high * widen)


def share_axis(title: str, span: tuple[float, float] | None = None) -> dict[str, Any]:
    """An axis of shares, written in per cent."""
    return {"title": {"text": title}, "tickformat": ".2~%", "range": span}


def small(values: ArrayLike) -> NDArray[np.float32]:
    """Half the bytes, and more digits than a screen has pixels."""
    return np.asarray(values, dtype=np.float32)


def plain(text: str) -> str:
    """Escape a text: plotly reads tags in every text."""
    return html.escape(text).replace("\n", "<br>")
