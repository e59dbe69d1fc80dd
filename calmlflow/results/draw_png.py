"""Draw a chart as a PNG picture, which the MLflow UI shows inline. Needs no browser and no display."""

import io
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from calmlflow.results.charts import (
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
    Panel,
    Points,
    has_legend,
)

SHADES = LinearSegmentedColormap.from_list("shades", [LOWEST, HIGHEST])
INCHES_WIDE, DOTS_PER_INCH = 9, 120
TITLE_COLUMNS = 84


def png(chart: Chart) -> bytes:
    """A chart as a PNG file, about 1080 pixels wide; the same bytes for the same chart."""
    drawn = Figure(figsize=(INCHES_WIDE, 6 if chart.rows == 1 else 2.9 * chart.rows), layout="constrained")
    grid = drawn.subplots(chart.rows, chart.columns, sharey=len(chart.panels) > 1, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(chart.panels):
            axes.remove()
            continue
        panel = chart.panels[number]
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        axes.grid(True, color="#E4E4E4", linewidth=0.8)
        axes.set_axisbelow(True)
        _set_axis(axes, "x", panel.x)
        _set_axis(axes, "y", panel.y, titled=number % chart.columns == 0)
        for layer, mark in enumerate(panel.marks):
            _draw(axes, mark, panel, layer + 2)
    drawn.suptitle(
        textwrap.fill(chart.title, TITLE_COLUMNS), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK
    )
    if has_legend(chart):
        handles, names = grid.flat[0].get_legend_handles_labels()
        columns = 2 if max(map(len, names)) > 30 else 4
        drawn.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, fontsize=10)
    buffer = io.BytesIO()
    # Without the version of the library, so that equal charts are equal files.
    drawn.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, mark: Mark, panel: Panel, layer: int) -> None:
    match mark:
        case Line():
            axes.plot(
                np.asarray(mark.x), np.asarray(mark.y), color=mark.color, linestyle="--" if mark.dashed else "-",
                linewidth=1.2 if mark.dashed else 2, marker="o" if mark.markers else None, label=_name(mark.name),
                zorder=layer,
            )  # fmt: skip
        case Guide():
            draw_line = axes.axvline if mark.vertical else axes.axhline
            draw_line(mark.at, color=GREY, linestyle=":", linewidth=1, zorder=layer)
            place = (mark.at, 0.99) if mark.vertical else (0.995, mark.at)
            across = axes.get_xaxis_transform() if mark.vertical else axes.get_yaxis_transform()
            axes.annotate(
                mark.label, place, xycoords=across,
                xytext=(3, -2) if mark.vertical else (0, 2), textcoords="offset points", color=GREY, fontsize=9,
                ha="left" if mark.vertical else "right", va="top" if mark.vertical else "bottom",
            )  # fmt: skip
        case Points():
            if mark.error is not None:
                axes.errorbar(mark.x, mark.y, mark.error, fmt="none", color=mark.color, capsize=3, zorder=layer)
            face = "none" if mark.symbol == "ring" else mark.color
            outline: dict[str, Any] = {} if mark.symbol == "x" else {"edgecolors": mark.color, "facecolors": face}
            axes.scatter(
                np.asarray(mark.x), np.asarray(mark.y), s=(0.75 * mark.size) ** 2,
                color=mark.color if mark.symbol == "x" else None, marker="o" if mark.symbol == "ring" else mark.symbol,
                linewidths=1.2 if mark.symbol in ("x", "ring") else 0, label=_name(mark.name), zorder=layer, **outline,
            )  # fmt: skip
        case Bars():
            draw_bars: Any = axes.barh if mark.horizontal else axes.bar
            error = {} if mark.error is None else {"xerr" if mark.horizontal else "yerr": mark.error, "capsize": 3}
            bars = draw_bars(
                np.asarray(mark.at), np.asarray(mark.values), mark.width, color=mark.color, label=_name(mark.name),
                zorder=layer, **error,
            )  # fmt: skip
            if mark.error is None:
                axes.bar_label(bars, labels=list(mark.texts), padding=3, fontsize=10)
        case Boxes():
            keys = ("whislo", "q1", "med", "q3", "whishi")
            axes.bxp(
                [dict(zip(keys, row, strict=True)) for row in mark.quantiles.tolist()],
                positions=list(range(len(mark.quantiles))), widths=0.55, showfliers=False, manage_ticks=False,
                patch_artist=True, boxprops={"facecolor": mark.color + "40", "edgecolor": mark.color, "linewidth": 1.5},
                medianprops={"color": INK, "linewidth": 2}, whiskerprops={"color": mark.color, "linewidth": 1.5},
                capprops={"color": mark.color, "linewidth": 1.5}, zorder=layer,
            )  # fmt: skip
        case Density():
            counts = np.ma.masked_equal(mark.counts, 0)
            cells = axes.pcolormesh(
                mark.x_edges, mark.y_edges, counts, norm=LogNorm(1, max(int(mark.counts.max()), 10)), cmap="viridis",
                zorder=layer,
            )  # fmt: skip
            bar = axes.get_figure().colorbar(cells, ax=axes, label="jobs per cell", fraction=0.04, pad=0.02)  # type: ignore[union-attr]
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        case Matrix():
            axes.imshow(mark.shades, vmin=0, vmax=1, cmap=SHADES, aspect="auto", zorder=layer)
            axes.grid(False)
            for (row, column), shade in np.ndenumerate(mark.shades):
                axes.text(
                    column, row, mark.texts[row][column], ha="center", va="center", fontsize=14, zorder=layer + 1,
                    color="white" if shade > 0.5 else INK,
                )  # fmt: skip


def _set_axis(axes: Axes, which: str, settings: Axis, titled: bool = True) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if titled:
        axis.set_label_text(settings.title, fontsize=11, color=INK)
    axis.set_tick_params(labelsize=10, colors=INK)
    if settings.log:
        axes.set(**{f"{which}scale": "log"})
        decades = np.diff(np.log10(settings.span))[0] if settings.span else 9
        axis.set_major_locator(LogLocator(10, subs=(1,) if decades > 2 else (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
    elif settings.percent:
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    if settings.labels:
        axis.set_ticks(range(len(settings.labels)), settings.labels)
        axis.grid(False)
    if settings.span:
        axes.set(**{f"{which}lim": settings.span})


def _name(name: str) -> str | None:
    """Matplotlib keeps a label that starts with an underscore out of the legend, and an empty one too."""
    return name or None
