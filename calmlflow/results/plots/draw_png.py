"""Draw a chart as a PNG picture, which the MLflow UI shows inline. Needs no browser and no display."""

import io
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

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
    Panel,
    Points,
    log_ticks,
)

SHADES = LinearSegmentedColormap.from_list("shades", [LOWEST, HIGHEST])
INCHES_WIDE, DOTS_PER_INCH = 9, 120
TITLE_COLUMNS = 84


def png(chart: Chart) -> bytes:
    """A chart as a PNG file, about 1080 pixels wide; the same bytes for the same chart."""
    size = INCHES_WIDE, 6 if chart.rows == 1 else 2.9 * chart.rows
    drawn = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
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
    _head(drawn, chart, grid.flat[0])
    buffer = io.BytesIO()
    # Without the version of the library, so that equal charts are equal files.
    FigureCanvasAgg(drawn).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _head(drawn: Figure, chart: Chart, axes: Axes) -> None:
    """Title and legend on a strip of their own, above everything else."""
    height = drawn.get_figheight()
    title = textwrap.fill(chart.title, TITLE_COLUMNS)
    strip = 0.12 + 0.24 * (title.count("\n") + 1)
    drawn.text(0.01, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    handles, names = axes.get_legend_handles_labels()
    if names:
        columns = 4 if max(map(len, names)) < 20 else 2
        place = (0.005, 1 - strip / height)
        drawn.legend(handles, names, loc="upper left", bbox_to_anchor=place, ncols=columns, frameon=False, fontsize=10)
        strip += 0.1 + 0.22 * -(-len(names) // columns)
    drawn.get_layout_engine().set(rect=(0, 0, 1, 1 - strip / height))  # type: ignore[union-attr, call-arg]


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
            place = (mark.at, 0.01) if mark.vertical else (0.995, mark.at)
            across = axes.get_xaxis_transform() if mark.vertical else axes.get_yaxis_transform()
            axes.annotate(
                mark.label, place, xycoords=across, xytext=(-3, 0) if mark.vertical else (0, 2),
                textcoords="offset points", color=GREY, fontsize=9, ha="right", va="bottom", zorder=layer,
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
    if settings.log and settings.span:
        axes.set(**{f"{which}scale": "log"})
        ticks = log_ticks(settings.span)
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_minor_locator(NullLocator())
    elif settings.percent:
        axis.set_major_formatter(PercentFormatter(1))
    if settings.labels:
        axis.set_ticks(range(len(settings.labels)), settings.labels)
        axis.grid(False)
    if settings.span:
        axes.set(**{f"{which}lim": settings.span})


def _name(name: str) -> str | None:
    """Matplotlib keeps a label that starts with an underscore out of the legend, and an empty one too."""
    return name or None
