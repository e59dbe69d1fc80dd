"""What charts of several kinds share: instruments, epochs, quantiles, permutation importance."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.results.importance import permutation_importance
from calmlflow.results.plots.charts import BLUE, ORANGE, Axis, Bars, Chart, Guide, Line, log_span, single

Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Raw features, shape (n, 9) -> what a network says: probabilities (n, 4), GB (n,) or seconds (n,)."""

UNITS = {"memory": "GB", "wallclock": "s"}
MAX_POINTS = 500
"""Points of a curve: more would cost space in the report and show nothing more."""


def instruments(names: pd.Index) -> NDArray[np.str_]:
    """Instrument of each dataset by its first letter; ``other`` for a letter the networks do not know."""
    return names.str[:1].str.lower().map(INSTRUMENTS).fillna("other").to_numpy(dtype=str)


def thinned(n: int) -> NDArray[np.int64]:
    """At most `MAX_POINTS` of n positions, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_POINTS)).round().astype(np.int64))


def epoch_charts(history: Mapping[str, NDArray[np.float64]] | None, units: Mapping[str, str]) -> dict[str, Chart]:
    """``{key}_per_epoch`` for each key of ``units``, with the validation values beside; empty without a history."""
    charts = {}
    for key, unit in units.items():
        values = [history[name] for name in (key, f"val_{key}")] if history else []
        if not values or not any(np.isfinite(part).any() for part in values):
            continue
        train, validation = values
        at = thinned(len(train))
        shown = "RMSE" if key == "rmse" else key
        epochs = f"{len(train):,} epoch{'' if len(train) == 1 else 's'}"
        charts[f"{key}_per_epoch"] = single(
            f"{shown[0].upper()}{shown[1:]} over {epochs}{_at_best(key, unit, validation)}",
            "Both curves should level out; a validation curve that turns back while training goes on is overfitting.",
            Axis("epoch"),
            _metric_axis(shown, unit, train, validation),
            Line(at, train[at], "training jobs", BLUE, markers=len(at) == 1),
            Line(at, validation[at], "validation jobs", ORANGE, markers=len(at) == 1),
        )
    return charts


def _at_best(key: str, unit: str, values: NDArray[np.float64]) -> str:
    """``: 95.5% on the validation jobs at best``; nothing without a finite value."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    best = f"{finite.max():.1%}" if key == "accuracy" else f"{rounded(finite.min())} {unit}"
    return f": {best} on the validation jobs at best"


def _metric_axis(shown: str, unit: str, *values: NDArray[np.float64]) -> Axis:
    """Errors fall over decades; a share, or an error that reaches 0, stands on a plain axis."""
    if shown == "accuracy":
        return Axis(shown, percent=True)
    joined = np.concatenate(values)
    log = bool((joined[np.isfinite(joined)] > 0).all())
    return Axis(f"{shown}, {unit}", log=log, span=log_span(joined) if log else None)


def rounded(value: float, sign: str = "") -> str:
    """A number for people: four digits, or all those before the point."""
    return f"{value:{sign},.4g}" if abs(value) < 1000 else f"{value:{sign},.0f}"


def quantiles(values: NDArray[np.float64], groups: NDArray[np.str_], shares: ArrayLike) -> pd.DataFrame:
    """Quantiles of each group, one row per group in the order of the alphabet; groups without a job are no rows."""
    grouped = pd.Series(values).groupby(groups, sort=True)
    return grouped.quantile(np.asarray(shares)).unstack()


def counted(labels: pd.Index, groups: NDArray[np.str_]) -> tuple[str, ...]:
    """Labels of groups with the number of their jobs on a second line."""
    counts = pd.Series(groups).value_counts()
    return tuple(f"{label}\n{n_jobs(counts[label])}" for label in labels)


def n_jobs(count: int) -> str:
    """``1 job``, ``1,234 jobs``."""
    return f"{count:,} job" if count == 1 else f"{count:,} jobs"


def ladder_guides(span: tuple[float, float], vertical: bool = False) -> tuple[Guide, ...]:
    """The limits of the memory bins that lie within the range of an axis."""
    return tuple(
        Guide(rung.limit_gb, f"{rung.name} limit", vertical) for rung in LADDER if span[0] < rung.limit_gb < span[1]
    )


def importance_chart(predict: Predict, table: pd.DataFrame, target: str) -> Chart:
    """How much worse the predictions of ``target`` get when one feature is shuffled among the jobs of ``table``."""
    rises = permutation_importance(predict, table[list(FEATURES)].to_numpy(dtype=float), table[target].to_numpy())
    means = np.array([rises[name].mean() for name in FEATURES])
    order = np.argsort(means, kind="stable")
    names = [FEATURES[index] for index in order]
    error = "log loss, nats" if target == "mem_bin" else f"RMSE, {UNITS[target]}"
    title = f"What the predictions of {target} rest on: {names[-1]} first, then {names[-2]}"
    return single(
        title if means.max() > 0 else f"No single feature matters to the predictions of {target}",
        "Each bar is the rise of the error when this feature alone is shuffled among the test jobs, with the spread"
        " over repeats; near zero a feature is unused, or told by another.",
        Axis(f"rise of the {error}"),
        Axis("", labels=tuple(names), span=(-0.6, len(names) - 0.4)),
        Bars(
            np.arange(len(names)), means[order], [f"{name}: {rises[name].mean():.4g}" for name in names],
            horizontal=True, error=[rises[name].std() for name in names],
        ),
    )  # fmt: skip


def joined_jobs(jobs_table: pd.DataFrame | None, test_idx: pd.Series | None) -> pd.DataFrame | None:
    """The rows of a table of jobs that are in the test split, in its order; None without both or without a match."""
    if jobs_table is None or test_idx is None:
        return None
    known = jobs_table.drop_duplicates("ipst").set_index("ipst")
    found = known.reindex(test_idx.index[test_idx.index.isin(known.index)])
    return found if len(found) else None
