"""A chart, described once: `draw_plotly` makes it interactive, `draw_png` makes it a picture.

Positions on an axis with labels are 0, 1, 2 and so on. Texts are plain: the drawers escape them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64] | NDArray[np.int64] | Sequence[float]

# The palette of Okabe and Ito, which people with any form of colour blindness can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, GREY, INK = "#D55E00", "#56B4E9", "#767676", "#222222"
FOUR = (BLUE, ORANGE, GREEN, VERMILION)
"""For the four bins, and for the four instruments."""

LOWEST, HIGHEST = "#F2F7FB", "#08519C"
"""Ends of the scale of a `Matrix`; the scale of a `Density` is viridis."""


@dataclass(frozen=True)
class Axis:
    """An axis; ``labels`` name the positions 0, 1, 2 and so on, ``span`` is its range in the unit of the data.

    A log axis must have a span.
    """

    title: str
    log: bool = False
    percent: bool = False
    span: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Line:
    """A line through points; a line with a name stands in the legend."""

    x: Numbers
    y: Numbers
    name: str = ""
    color: str = INK
    dashed: bool = False
    markers: bool = False


@dataclass(frozen=True, eq=False)
class Guide:
    """A thin line across the panel at one value, with a word on it. Its panel's axes must have a span."""

    at: float
    label: str
    vertical: bool = False


@dataclass(frozen=True, eq=False)
class Points:
    """Markers. ``symbol`` is one of o, s, D, ^, x or "ring"; ``error`` (2, n): how far the bars reach down and up."""

    x: Numbers
    y: Numbers
    name: str = ""
    color: str = INK
    symbol: str = "o"
    size: float | NDArray[np.float64] = 7
    texts: Sequence[str] = ()
    error: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars around positions ``at``, with a text at the end of each; ``error`` (n,) reaches as far up as down."""

    at: Numbers
    values: Numbers
    texts: Sequence[str]
    name: str = ""
    color: str = BLUE
    width: float = 0.8
    horizontal: bool = False
    error: Numbers | None = None


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes drawn from ``quantiles`` (k, 5): whisker, lower quartile, median, upper quartile, whisker."""

    quantiles: NDArray[np.float64]
    color: str = BLUE


@dataclass(frozen=True, eq=False)
class Density:
    """How many jobs fall into each cell, coloured on a log scale; an empty cell is blank. ``counts`` (rows of y, x)."""

    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Coloured cells with a text in each; ``shades`` (rows, columns) from 0 to 1, the first row on top."""

    shades: NDArray[np.float64]
    texts: Sequence[Sequence[str]]


Mark = Line | Guide | Points | Bars | Boxes | Density | Matrix


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn on it, the first mark lowest."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """One chart: a title that says what is seen, and a sentence on what to look for.

    Several panels are laid out in ``columns``, share their y axis, and the first one gives the legend.
    """

    title: str
    reading: str
    panels: tuple[Panel, ...]
    columns: int = 1

    @property
    def rows(self) -> int:
        return -(-len(self.panels) // self.columns)


def has_legend(chart: Chart) -> bool:
    """Whether a mark of the first panel bears a name."""
    return any(getattr(mark, "name", "") for mark in chart.panels[0].marks)


def single(title: str, reading: str, x: Axis, y: Axis, *marks: Mark) -> Chart:
    """A chart of one panel."""
    return Chart(title, reading, (Panel(x, y, marks),))


def log_span(*values: Numbers) -> tuple[float, float]:
    """A range for a log axis: all positive finite values with some air, and a factor of 4 at least."""
    joined = np.concatenate([np.asarray(part, dtype=float).ravel() for part in values])
    shown = joined[np.isfinite(joined) & (joined > 0)]
    low, high = shown.min() / 1.25, shown.max() * 1.25
    widen = max(np.sqrt(4 * low / high), 1.0)
    return float(low / widen), float(high * widen)


def log_ticks(span: tuple[float, float]) -> dict[float, str]:
    """Ticks of a log axis and their texts: round numbers, the fewer the more decades there are."""
    low, high = np.log10(span)
    digits = (1,) if high - low > 2 else (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [digit * 10.0**power for power in range(int(np.floor(low)), int(high) + 1) for digit in digits]
    return {tick: f"{tick:,.10g}" for tick in ticks if span[0] <= tick <= span[1]}
