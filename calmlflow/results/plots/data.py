"""Charts of the jobs themselves: what the networks learn from."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.results.plots.charts import (
    BLUE,
    FOUR,
    GREY,
    VERMILION,
    Axis,
    Boxes,
    Chart,
    Panel,
    Points,
    log_span,
    single,
)
from calmlflow.results.plots.common import UNITS, counted, instruments, ladder_guides, n_jobs, quantiles, rounded

PER_BIN = 400
"""Jobs of each memory bin in a scatter plot: enough to see a shape, and the rare bins whole."""

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
"""Feature -> what its values 0, 1, 2 and 3 mean."""


def data_charts(jobs: pd.DataFrame) -> dict[str, Chart]:
    """Describe the charts of a table of jobs.

    Parameters
    ----------
    jobs : DataFrame of n jobs
        Job records, at least one.

    Returns
    -------
    dict of str to Chart
        memory_by_instrument, wallclock_by_instrument, features_against_memory, features_against_wallclock.
    """
    charts = {f"{target}_by_instrument": _by_instrument(jobs, target) for target in UNITS}
    sample = jobs.sample(frac=1, random_state=0).groupby("mem_bin").head(PER_BIN)
    return charts | {f"features_against_{target}": _features_against(sample, target, len(jobs)) for target in UNITS}


def _by_instrument(jobs: pd.DataFrame, target: str) -> Chart:
    values, groups = jobs[target].to_numpy(dtype=float), instruments(pd.Index(jobs["ipst"]))
    table = quantiles(values, groups, [0.01, 0.25, 0.5, 0.75, 0.99])
    greatest = pd.Series(values).groupby(groups).idxmax()
    rows = jobs.iloc[greatest.to_numpy()]
    unit = UNITS[target]
    texts = [f"{name}: {rounded(value)} {unit}" for name, value in zip(rows["ipst"], rows[target], strict=True)]
    span = log_span(table.to_numpy(), rows[target].to_numpy(dtype=float))
    medians = table[0.5]
    ends = (f"{rounded(medians[label])} {unit} ({label})" for label in map(str, (medians.idxmin(), medians.idxmax())))
    said = ", median " + " to ".join(ends) if len(table) > 1 else ""
    return single(
        f"{target.capitalize()} of {n_jobs(len(jobs))} by instrument{said}",
        "Boxes hold half of the jobs, whiskers 98%, the cross is the greatest: rare jobs far above the whisker are the"
        " ones that cost.",
        Axis("", labels=counted(table.index, groups), span=(-0.6, len(table) - 0.4)),
        Axis(f"{target}, {unit}", log=True, span=span),
        *(ladder_guides(span) if target == "memory" else ()),
        Boxes(table.to_numpy(), BLUE),
        Points(np.arange(len(table)), rows[target].to_numpy(), "greatest job", VERMILION, "x", 11, texts),
    )


def _features_against(sample: pd.DataFrame, target: str, total: int) -> Chart:
    unit = UNITS[target]
    y = Axis(f"{target}, {unit}", log=True, span=log_span(sample[target].to_numpy()))
    groups = instruments(pd.Index(sample["ipst"]))
    generator = np.random.default_rng(0)
    jitter = generator.uniform(-0.3, 0.3, len(sample))
    some = f"{len(sample):,} of {n_jobs(total)}, {PER_BIN} of a memory bin at most"
    shown = n_jobs(total) if len(sample) == total else some
    panels = tuple(
        Panel(_feature_axis(name, sample), y, _clouds(name, sample, target, groups, jitter)) for name in FEATURES
    )
    return Chart(
        f"The nine features against {target}: {shown}",
        "A feature is worth having where its columns or slopes differ; where colours overlap, only other features can"
        " tell the jobs apart.",
        panels,
        columns=3,
    )


def _feature_axis(name: str, sample: pd.DataFrame) -> Axis:
    if name in CATEGORIES:
        return Axis(name, labels=CATEGORIES[name], span=(-0.5, len(CATEGORIES[name]) - 0.5))
    title = "total_mb, MB (0 drawn as 1)" if name == "total_mb" else name
    return Axis(title, log=True, span=log_span(np.maximum(sample[name].to_numpy(dtype=float), 1)))


def _clouds(
    name: str, sample: pd.DataFrame, target: str, groups: NDArray[np.str_], jitter: NDArray[np.float64]
) -> tuple[Points, ...]:
    values = sample[name].to_numpy(dtype=float)
    x = values + jitter if name in CATEGORIES else np.maximum(values, 1)
    y = sample[target].to_numpy(dtype=float)
    looks = dict(zip(INSTRUMENTS.values(), zip(FOUR, "osD^", strict=True), strict=True))
    # The most frequent instrument lowest, so that it does not hide the others.
    return tuple(
        Points(x[groups == group], y[groups == group], group, *looks.get(group, (GREY, "x")), size=4)
        for group in pd.Series(groups).value_counts().index
    )
