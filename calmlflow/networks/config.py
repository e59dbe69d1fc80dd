"""Hyper-parameters given by a user."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calmlflow.errors import InputError
from calmlflow.networks.training import DEFAULTS, TrainingConfig


def read_config(source: str) -> dict[str, TrainingConfig]:
    """Hyper-parameters of the three networks.

    Parameters
    ----------
    source : str
        ``default``, or the path of a JSON file such as ``{"wall_reg": {"epochs": 2000}}``; what it leaves out keeps
        its default.

    Raises
    ------
    InputError
        Names the file and the key or value that does not fit.
    """
    if source == "default":
        return dict(DEFAULTS)
    try:
        given = json.loads(Path(source).read_text())
    except OSError as error:
        raise InputError(
            f"config {source} cannot be read ({error.strerror}); expected a JSON file, or 'default'"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"config {source} is not JSON ({error}); expected an object of networks") from None
    if not isinstance(given, dict) or not set(given) <= set(DEFAULTS):
        raise InputError(f"config {source} must be an object with keys among {', '.join(DEFAULTS)}")
    return {network: _override(source, network, DEFAULTS[network], given.get(network, {})) for network in DEFAULTS}


RANGES = {
    "epochs": (1, 100_000),
    "refit_epochs": (0, 100_000),
    "members": (2, 16),
    "learning_rate": (1e-7, 1.0),
    "weight_decay": (0.0, 1.0),
    "patience": (1, 100_000),
    "linear_share": (0.0, 1.0),
}


def _override(source: str, network: str, default: TrainingConfig, given: Any) -> TrainingConfig:
    if not isinstance(given, Mapping) or not set(given) <= set(RANGES):
        raise InputError(f"config {source}: {network} must be an object with keys among {', '.join(RANGES)}")
    for name, value in given.items():
        low, high = RANGES[name]
        kind = "a whole number" if isinstance(low, int) else "a number"
        fits = isinstance(value, int if isinstance(low, int) else int | float) and not isinstance(value, bool)
        if not fits or not low <= value <= high:
            raise InputError(
                f"config {source}: {network}.{name} is {value!r}; expected {kind} from {low:g} to {high:g}"
            )
    return replace(default, **given)
