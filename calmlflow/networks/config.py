"""Hyper-parameters given by a user."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from calmlflow.hst.errors import InputError
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
    except ValueError as error:
        raise InputError(f"config {source} is not JSON ({error}); expected an object of networks") from None
    if not isinstance(given, dict) or not set(given) <= set(DEFAULTS):
        raise InputError(f"config {source} must be an object with keys among {', '.join(DEFAULTS)}")
    return {network: _override(source, network, DEFAULTS[network], given.get(network, {})) for network in DEFAULTS}


def _override(source: str, network: str, default: TrainingConfig, given: Any) -> TrainingConfig:
    known = {field.name: field.type for field in fields(TrainingConfig)}
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise InputError(f"config {source}: {network} must be an object with keys among {', '.join(known)}")
    for name, value in given.items():
        whole = isinstance(asdict(default)[name], int)
        if (
            isinstance(value, bool)
            or not isinstance(value, int if whole else int | float)
            or value < 0
            or (whole and value < 1)
        ):
            expected = "a whole number, 1 or more" if whole else "a number, 0 or more"
            raise InputError(f"config {source}: {network}.{name} is {value!r}; expected {expected}")
    return replace(default, **given)
