"""Plots of the jobs that the networks learn from."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.results.plots import theme
from calmlflow.results.plots.common import counted, instruments, ladder_guides, n_jobs, quantiles, rounded
from calmlflow.results.scores import UNITS

PER_BIN = 400
"""Jobs of each memory bin in a scatter plot: enough to see a shape, and the rare bins whole."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up")
"""For the four instruments."""

_SWITCH = ("omit", "perform")
CATEGORIES = {
    "drizcorr": _SWITCH,
    "pctecorr": _SWITCH,
    "crsplit": ("absent", "1", "other"),
    "subarray": ("full", "subarray"),
    "detector": ("other", "WFC, UVIS"),
    "dtype": ("single", "association"),
    "instr": tuple(INSTRUMENTS.values()),
}
"""Feature -> meaning of its values 0, 1, 2 and 3."""


def data_plots(jobs: pd.DataFrame) -> dict[str, go.Figure]:
    """Draw memory and wallclock of a table of jobs, by instrument and against the nine features."""
    sample = jobs.sample(frac=1, random_state=0).groupby("mem_bin").head(PER_BIN)
    return {
        **{f"{target}_by_instrument": _by_instrument(jobs, target) for target in UNITS},
        **{f"features_against_{target}": _features_against(sample, target, len(jobs)) for target in UNITS},
    }


def _by_instrument(jobs: pd.DataFrame, target: str) -> go.Figure:
    values, groups = jobs[target].to_numpy(dtype=float), instruments(pd.Index(jobs["ipst"]))
    table = quantiles(values, groups, [0.01, 0.25, 0.5, 0.75, 0.99])
    rows = jobs.iloc[pd.Series(values).groupby(groups).idxmax().to_numpy()]
    unit = UNITS[target]
    medians = table[0.5]
    ends = (f"{rounded(medians[label])} {unit} ({label})" for label in map(str, (medians.idxmin(), medians.idxmax())))
    said = ", median " + " to ".join(ends) if len(table) > 1 else ""
    span, width = theme.log_span(table.to_numpy(), rows[target]), (-0.6, len(table) - 0.4)
    greatest = theme.points(
        np.arange(len(table)), rows[target],
        (f"{name}: {rounded(value)} {unit}" for name, value in rows[["ipst", target]].to_numpy()),
        theme.VERMILION, "greatest job", symbol="x-thin", size=11, line={"width": 1.5, "color": theme.VERMILION},
    )  # fmt: skip
    return theme.figure(
        f"{target.capitalize()} of {n_jobs(len(jobs))} by instrument{said}",
        "Boxes hold half of the jobs, whiskers 98%, the cross is the greatest: rare jobs far above the whisker are the"
        " ones that cost.",
        [*(ladder_guides(span, width) if target == "memory" else []), theme.boxes(table.to_numpy()), greatest],
        xaxis=theme.category_axis(counted(table.index, groups)),
        yaxis=theme.log_axis(f"{target}, {unit}", span),
    )


def _features_against(sample: pd.DataFrame, target: str, total: int) -> go.Figure:
    """Nine panels, three in a row, that share their y axis; the first one gives the legend."""
    groups, y = instruments(pd.Index(sample["ipst"])), sample[target].to_numpy(dtype=float)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(sample))
    looks = {name: (theme.SERIES[n], SYMBOLS[n]) for n, name in enumerate(INSTRUMENTS.values())}
    grid = make_subplots(rows=3, cols=3, shared_yaxes="all", horizontal_spacing=0.025, vertical_spacing=0.12)
    axes = grid.layout.to_plotly_json()
    del axes["template"]
    traces: list[go.Scatter] = []
    for number, name in enumerate(FEATURES):
        suffix = str(number + 1) if number else ""
        axes[f"xaxis{suffix}"] |= _feature_axis(name, sample)
        title = f"{target}, {UNITS[target]}" if number % 3 == 0 else ""
        axes[f"yaxis{suffix}"] |= theme.log_axis(title, theme.log_span(y))
        values = sample[name].to_numpy(dtype=float)
        x = values + jitter if name in CATEGORIES else np.maximum(values, 1)
        # The most frequent instrument lowest, so that it does not hide the others.
        for group in pd.Series(groups).value_counts().index:
            color, symbol = looks.get(group, (theme.GREY, "x"))
            traces.append(
                go.Scatter(
                    x=theme.small(x[groups == group]), y=theme.small(y[groups == group]), name=group, mode="markers",
                    marker={"color": color, "opacity": 1, "symbol": symbol, "size": 4}, hoverinfo="x+y+name",
                    xaxis=f"x{suffix}", yaxis=f"y{suffix}", showlegend=number == 0,
                )
            )  # fmt: skip
    some = f"{len(sample):,} of {n_jobs(total)}, {PER_BIN} of a memory bin at most"
    return theme.figure(
        f"The nine features against {target}: {n_jobs(total) if len(sample) == total else some}",
        "A feature is worth having where its columns or slopes differ; where colours overlap, only other features can"
        " tell the jobs apart.",
        traces,
        height=3 * 290,
        **axes,
    )


def _feature_axis(name: str, sample: pd.DataFrame) -> dict[str, Any]:
    if name in CATEGORIES:
        return theme.category_axis(CATEGORIES[name], name) | {"range": (-0.5, len(CATEGORIES[name]) - 0.5)}
    title = "total_mb, MB (0 drawn as 1)" if name == "total_mb" else name
    return theme.log_axis(title, theme.log_span(np.maximum(sample[name].to_numpy(dtype=float), 1)))
