"""Read the limits of the gate from a YAML file that users edit."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from calmlflow.errors import InputError
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.results.scores import SCORES, headlines

DEFAULT = Path(__file__).with_name("gate.yaml")

_BESIDE = {"mem_bin": "log_loss", "memory": "log_mae", "wallclock": "log_mae"}

COMPARED = {target: (*headlines(target), _BESIDE[target]) for target in SCORES}
"""Target -> scores that may have a margin. The last one is compared only where it has; the others always."""

SECTIONS = "scores, margins, slices, reference or data"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Bounds(_Section):
    """Smallest and largest value that a score may have; None: any."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Bounds":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def __str__(self) -> str:
        """Say it in words."""
        bounds = (self.min is not None and f"at least {self.min:g}", self.max is not None and f"at most {self.max:g}")
        return ", ".join(text for text in bounds if text) or "any value"

    def hold(self, value: float) -> bool:
        """Whether a value lies within."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class JobLimits(_Section):
    """Fewest training jobs, and the largest age of the newest one in days; None: any."""

    min_jobs: int | None = None
    max_age_days: float | None = None


def _known(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for target, scores in sections.items():
        if target not in SCORES:
            raise ValueError(f"{target} is not a target: {', '.join(SCORES)}")
        if unknown := sorted(set(scores) - set(SCORES[target])):
            raise ValueError(f"{target}.{unknown[0]} is not a score: {', '.join(SCORES[target])}")
    return sections


def _compared(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if "recall" in sections.get("mem_bin", {}):
        bins = {**sections["mem_bin"]}
        margin = bins.pop("recall")
        sections = {**sections, "mem_bin": {**{f"recall_{name}": margin for name in BIN_NAMES}, **bins}}
    for target, scores in _known(sections).items():
        if unknown := sorted(set(scores) - set(COMPARED[target])):
            raise ValueError(f"{target}.{unknown[0]} is not compared: {', '.join(COMPARED[target])}")
    return sections


# In YAML a section without lines is None.
_filled = BeforeValidator(lambda section: {} if section is None else section)
_Scores = dict[str, Annotated[dict[str, Bounds], _filled]]
_Margins = dict[str, Annotated[dict[str, NonNegativeFloat], _filled]]


class Limits(_Section):
    """What a version must reach."""

    # Target -> score -> bounds.
    scores: Annotated[_Scores, AfterValidator(_known), _filled] = {}
    # Target -> score -> how much worse than the champion's it may be, also beyond chance.
    margins: Annotated[_Margins, AfterValidator(_compared), _filled] = {}
    # The same, of the jobs of each instrument and detector, and of associations and others.
    slices: Annotated[_Margins, AfterValidator(_compared), _filled] = {}
    # Beside the champion: the best version of the last year, one that is named, or none.
    reference: Literal["best", "none"] | PositiveInt = "best"
    data: Annotated[JobLimits, _filled] = JobLimits()


def read_limits(source: str) -> Limits:
    """Read limits from a file, or the ``default`` ones; an InputError names the key or value that does not fit."""
    path = DEFAULT if source == "default" else Path(source)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"gate {path} cannot be read ({error.strerror}); expected a YAML file, or 'default'"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"gate {path} is not YAML ({reason}); expected {SECTIONS}") from error
    try:
        limits = Limits.model_validate(found or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        given = "" if first["type"] == "value_error" else f" is {first['input']!r:.60}"
        raise InputError(f"gate {path}: {where}{given}: {first['msg']}") from error
    bounded = any(bounds != Bounds() for scores in limits.scores.values() for bounds in scores.values())
    compared = any(margins for section in (limits.margins, limits.slices) for margins in section.values())
    if not (bounded or compared or limits.data != JobLimits() or isinstance(limits.reference, int)):
        raise InputError(f"gate {path} is empty; expected {SECTIONS}")
    return limits
