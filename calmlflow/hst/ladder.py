"""Read the ladder in force, find the rung that a job needs, and the cost of a choice of rungs."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calmlflow.errors import InputError

FORMAT = 1
"""Of the file of a ladder."""
MAX_RUNGS = 16
LADDER_FILE = "ladder.json"
"""Of a bundle: the ladder that it was trained for."""
MAX_FILE_BYTES = 65_536

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Rung:
    """One rung (memory bin) of the ladder.

    ``limit_gb`` is 7/8 of the nominal size: 128 MB of every 1024 are reserved by the instance.
    """

    name: str
    limit_gb: float
    instance: str
    usd_per_hour: float
    jobs_at_once: int

    @property
    def usd_per_job_second(self) -> float:
        return self.usd_per_hour / self.jobs_at_once / 3600


@dataclass(frozen=True)
class Ladder:
    """Rungs with rising limits, and the version by which reports, runs and bundles name them."""

    version: str
    rungs: tuple[Rung, ...]

    def __len__(self) -> int:
        return len(self.rungs)

    def __getitem__(self, number: int) -> Rung:
        return self.rungs[number]

    def has_bins_of(self, other: "Ladder") -> bool:
        """Whether memory bins mean the same on both: prices and instances may differ."""
        return [(rung.name, rung.limit_gb) for rung in self.rungs] == [(one.name, one.limit_gb) for one in other.rungs]

    def __str__(self) -> str:
        return f"ladder {self.version} ({', '.join(f'{rung.name} {rung.limit_gb:g} GB' for rung in self.rungs)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(rung.name for rung in self.rungs)

    @cached_property
    def limits_gb(self) -> NDArray[np.float64]:
        return np.array([rung.limit_gb for rung in self.rungs])

    @cached_property
    def climb(self) -> NDArray[np.float64]:
        """[chosen, needed]: price of one job-second on every rung from the chosen one up to the needed one."""
        return self._prices(1)

    @cached_property
    def killed(self) -> NDArray[np.float64]:
        """[chosen, needed]: the part of `climb` for runs that are killed."""
        return self._prices(0)

    def _prices(self, last: int) -> NDArray[np.float64]:
        prices = np.array([rung.usd_per_job_second for rung in self.rungs])
        bins = range(len(self))
        return np.array([[prices[chosen : max(chosen, needed) + last].sum() for needed in bins] for chosen in bins])

    def to_json(self) -> str:
        data = {"format": FORMAT, "version": self.version, "rungs": [asdict(rung) for rung in self.rungs]}
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, content: bytes) -> "Ladder":
        """Read ``ladder.json`` of a bundle; fields of a later program version are ignored."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError("the ladder is no JSON; expected one that a training wrote") from error
        return parse_ladder(data, strict=False)


def parse_ladder(data: object, strict: bool = True) -> Ladder:
    """Check the content of a ladder's file; an InputError names what does not fit, and if ``strict`` a new field."""
    if not isinstance(data, dict) or not isinstance(data.get("rungs"), list):
        raise InputError("the ladder has no list of rungs; expected format, version and rungs")
    if strict and (unknown := sorted(map(str, data.keys() - {"format", "version", "rungs"}))):
        raise InputError(f"the ladder has a field {unknown[0][:40]!r}; expected format, version and rungs")
    if data.get("format") != FORMAT:
        raise InputError(f"the ladder has format {str(data.get('format'))[:40]!r}; expected {FORMAT}")
    version = data.get("version")
    if not isinstance(version, str | int) or isinstance(version, bool) or not _NAME.fullmatch(str(version)):
        raise InputError("the ladder has no version; expected letters, digits, dots and dashes")
    if not 2 <= len(data["rungs"]) <= MAX_RUNGS:
        raise InputError(f"the ladder has {len(data['rungs'])} rungs; expected 2 to {MAX_RUNGS}")
    rungs = tuple(_parse_rung(number, rung, strict) for number, rung in enumerate(data["rungs"]))
    for lower, upper in pairwise(rungs):
        if lower.limit_gb >= upper.limit_gb:
            raise InputError(
                f"the ladder's rung {upper.name} has a limit of {upper.limit_gb:g} GB and the one below "
                f"{lower.limit_gb:g} GB; expected limits that rise"
            )
    if len({rung.name for rung in rungs}) < len(rungs):
        raise InputError("the ladder has two rungs of one name; expected each name once")
    return Ladder(str(version), rungs)


def _parse_rung(number: int, data: object, strict: bool) -> Rung:
    names = [field.name for field in fields(Rung)]
    given = set(data) if isinstance(data, Mapping) else set()
    wrong = sorted(map(str, set(names) ^ given if strict else set(names) - given))
    if not isinstance(data, Mapping) or wrong:
        raise InputError(f"rung {number} of the ladder lacks or adds {wrong[0][:40]!r}; expected {', '.join(names)}")
    for name in ("name", "instance"):
        if not isinstance(data[name], str) or not _NAME.fullmatch(data[name]):
            raise InputError(f"rung {number} of the ladder has a wrong {name}; expected letters, digits, dots, dashes")
    for name in ("limit_gb", "usd_per_hour", "jobs_at_once"):
        value = data[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1e6 or (name == "jobs_at_once" and value != int(value)):
            raise InputError(f"rung {number} of the ladder has {name} {str(value)[:40]}; expected a number above 0")
    return Rung(
        data["name"], float(data["limit_gb"]), data["instance"], float(data["usd_per_hour"]), int(data["jobs_at_once"])
    )


DEFAULT = Ladder(
    "1",
    (
        Rung("2g", 1.792, "c5a.2xlarge", 0.308, 8),
        Rung("8g", 7.168, "m5a.2xlarge", 0.344, 4),
        Rung("16g", 14.336, "r5a.xlarge", 0.226, 2),
        Rung("64g", 57.344, "r5a.2xlarge", 0.452, 1),
    ),
)


def read_ladder(path: str) -> Ladder:
    """Read the file of a ladder: YAML, or JSON where its name ends with .json; an InputError names the file."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InputError("the ladder is no small file")
        return parse_ladder(json.loads(content) if path.endswith(".json") else _read_yaml(content))
    except InputError as error:
        raise InputError(f"CALMLFLOW_LADDER: {path}: {error}") from error
    except OSError as error:
        raise InputError(f"CALMLFLOW_LADDER: {path} cannot be read ({error.strerror}); expected a ladder") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"CALMLFLOW_LADDER: {path} does not parse; expected YAML, or JSON in a .json file") from error


def _read_yaml(content: bytes) -> Any:
    # Imported where an operator has a ladder of their own.
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise InputError("the Lambda image reads no YAML; expected a .json file there") from error
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


LADDER = read_ladder(os.environ["CALMLFLOW_LADDER"]) if os.environ.get("CALMLFLOW_LADDER") else DEFAULT
"""The ladder in force, of this process: the file that ``CALMLFLOW_LADDER`` names, or else `DEFAULT`."""
BIN_NAMES = LADDER.names


def needed_bin(memory_gb: ArrayLike, ladder: Ladder = LADDER) -> NDArray[np.int64]:
    """Lowest rung (0, 1, ...) whose limit lies above the memory that a job used, GB, elementwise.

    A job that used exactly a limit needs the next rung; one beyond the last limit counts for the last rung.
    """
    memory_gb = np.asarray(memory_gb, dtype=float)
    if not np.all(np.isfinite(memory_gb) & (memory_gb >= 0)):
        raise InputError("memory must be a finite number of GB, 0 or more")
    return np.minimum(np.searchsorted(ladder.limits_gb, memory_gb, side="right"), len(ladder) - 1)


def allocation_cost(chosen: ArrayLike, needed: ArrayLike, wallclock_s: ArrayLike) -> NDArray[np.float64]:
    """Dollars spent on each job: it runs its full wallclock on every rung from the chosen up to the needed one.

    Parameters
    ----------
    chosen, needed : array_like of int
        Memory bins of the ladder in force.
    wallclock_s : array_like of float
        Seconds.

    Raises
    ------
    InputError
        A memory bin is not on the ladder.
    """
    return LADDER.climb[_bins(chosen), _bins(needed)] * np.asarray(wallclock_s, dtype=float)


def expected_costs(
    probabilities: ArrayLike, wallclock_ratio: ArrayLike, risk: float = 0.0, ladder: Ladder = LADDER
) -> NDArray[np.float64]:
    """Expected price of each choice of rung, per second of the job's expected wallclock.

    Parameters
    ----------
    probabilities : array_like of float, shape (n, rungs)
        Of needing each rung.
    wallclock_ratio : array_like of float, shape (4,) or (n, 4)
        Expected wallclock of a job that needs each rung, over the expected wallclock whatever it needs.
    risk : float
        Dollars added for each dollar spent on a run that is killed. A larger value moves the choice up the ladder.

    Returns
    -------
    ndarray of float64, shape (n, rungs)
        Dollars per second, one column per choice.
    """
    weights = np.asarray(probabilities, dtype=float) * np.asarray(wallclock_ratio, dtype=float)
    return weights @ (ladder.climb + risk * ladder.killed).T


def excess_cost(chosen: ArrayLike, needed: ArrayLike, wallclock_s: ArrayLike) -> float:
    """Cost of a policy / cost of always choosing the needed rung - 1 (0.03: 3 % too much)."""
    best = allocation_cost(needed, needed, wallclock_s).sum()
    if best == 0:
        return float("nan")
    return float(allocation_cost(chosen, needed, wallclock_s).sum() / best - 1)


def _bins(values: ArrayLike) -> NDArray[np.int64]:
    bins = np.asarray(values)
    off = bins[~np.isin(bins, range(len(LADDER)))]
    if off.size:
        raise InputError(f"memory bin is {off.flat[0]}; expected a whole number, 0 to {len(LADDER) - 1}")
    return bins.astype(int)
