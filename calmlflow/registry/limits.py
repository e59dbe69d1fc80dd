"""The limits of the gate, read from a small YAML file that users edit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES, LADDER
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.settings import TARGETS

COMPARED = {
    "mem_bin": ("accuracy", *(f"recall_{name}" for name in BIN_NAMES), "excess_cost"),
    "memory": ("rmse", "mae"),
    "wallclock": ("rmse", "mae", "kill_time_coverage", "kill_time_reserved"),
}
"""Target -> scores that must not be worse than the champion's."""

DEFAULT = Path(__file__).with_name("gate.yaml")


@dataclass(frozen=True)
class Limits:
    """What a version must reach.

    Attributes
    ----------
    scores : dict of dict of (float or None, float or None)
        Target -> score -> smallest and largest value allowed.
    margins : dict of dict of float
        Target -> score -> how much worse than the champion's it may be, also beyond chance; 0 where there is none.
    min_jobs : int or None
        Training jobs at least.
    max_age_days : float or None
        Age of the newest training job at most.
    """

    scores: dict[str, dict[str, tuple[float | None, float | None]]]
    margins: dict[str, dict[str, float]]
    min_jobs: int | None
    max_age_days: float | None


def read_limits(source: str) -> Limits:
    """Read the limits of a file; ``default`` is the one that comes with the package.

    Raises
    ------
    InputError
        Names the file and the key or value that does not fit.
    """
    path = DEFAULT if source == "default" else Path(source)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"gate {path} cannot be read ({error.strerror}); expected a YAML file, or 'default'") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"gate {path} is not YAML ({reason}); expected scores, margins and data") from None
    content = _mapping(path, "the file", content, ("scores", "margins", "data"))
    scores = _mapping(path, "scores", content.get("scores"), tuple(TARGETS.values()))
    margins = _mapping(path, "margins", content.get("margins"), tuple(TARGETS.values()))
    data = _mapping(path, "data", content.get("data"), ("min_jobs", "max_age_days"))
    min_jobs = _number(path, "data.min_jobs", data.get("min_jobs"))
    return Limits(
        {target: _bounds(path, target, found) for target, found in scores.items()},
        {target: _margins(path, target, found) for target, found in margins.items()},
        None if min_jobs is None else int(min_jobs),
        _number(path, "data.max_age_days", data.get("max_age_days")),
    )


def _bounds(path: Path, target: str, scores: Any) -> dict[str, tuple[float | None, float | None]]:
    found = {}
    names = _score_names(target)
    for score, limits in _mapping(path, f"scores.{target}", scores, None).items():
        name = f"scores.{target}.{score}"
        if score not in names:
            raise InputError(f"gate {path}: {name} is no score; expected one of {', '.join(names)}")
        limits = _mapping(path, name, limits, ("min", "max"))
        low, high = (_number(path, f"{name}.{bound}", limits.get(bound)) for bound in ("min", "max"))
        if low is not None and high is not None and low > high:
            raise InputError(f"gate {path}: {name} has min {low:g} above max {high:g}; expected a range")
        found[str(score)] = low, high
    return found


def _margins(path: Path, target: str, margins: Any) -> dict[str, float]:
    found = {}
    for score, value in _mapping(path, f"margins.{target}", margins, COMPARED[target]).items():
        margin = _number(path, f"margins.{target}.{score}", value) or 0.0
        if margin < 0:
            raise InputError(f"gate {path}: margins.{target}.{score} is {margin:g}; expected 0 or more")
        found[score] = margin
    return found


def _score_names(target: str) -> list[str]:
    """Every score that predictions of a target can get: those of jobs that leave none undefined."""
    bins = np.arange(2 * len(LADDER)) % len(LADDER)
    values = 1.0 + np.arange(len(bins))
    jobs = pd.DataFrame({"mem_bin": bins, "memory": values, "wallclock": values})
    predictions = {PREDICTED[target]: jobs[target].to_numpy(), "kill_time": values}
    return list(score_predictions(target, jobs, predictions | {"probabilities": np.eye(len(LADDER))[bins]}))


def _mapping(path: Path, name: str, value: Any, keys: tuple[str, ...] | None) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"gate {path}: {name} is {value!r}; expected keys and values")
    unknown = sorted(str(key) for key in value if keys is not None and key not in keys)
    if unknown and keys is not None:
        raise InputError(f"gate {path}: {name} has the key {unknown[0]!r}; expected {', '.join(keys)}")
    return value


def _number(path: Path, name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise InputError(f"gate {path}: {name} is {value!r}; expected a number")
    return float(value)
