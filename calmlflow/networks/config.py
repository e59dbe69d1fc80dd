"""Hyper-parameters of the three networks: defaults, ranges, and a user's JSON file."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from calmlflow.errors import InputError
from calmlflow.hst.ladder import DEFAULT
from calmlflow.networks.preprocess import Split

MAX_EPOCHS = 100_000


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TrainingConfig:
    """Hyper-parameters of one network, checked when it is made."""

    # At most; one epoch is one full-batch step over the distinct rows.
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 600
    # On all training jobs, from the weights that validated best: the rare bins have too few jobs to leave any out.
    refit_epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 600
    # Networks trained side by side, whose mean is the answer. Each validates on its own part of the training jobs.
    members: Annotated[int, Field(ge=2, le=16)] = 4
    # Peak of the schedule: a short warm-up, then a cosine down to zero.
    learning_rate: Annotated[float, Field(ge=1e-7, le=1)] = 3e-3
    # Decoupled, as in AdamW.
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    # Epochs without a better validation loss after which training ends.
    patience: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 250
    # Regressors: weight in the loss of the squared error in the target's unit; the rest is that of its logarithm.
    linear_share: Annotated[float, Field(ge=0, le=1)] = 0.1


# Found by `tune` on the training split of 44,883 real jobs, rounded: the best trial for mem_reg, one that is 0.2 %
# worse and twice as quick for mem_clf, the best with a third fewer epochs for wall_reg. See benchmarks/README.md.
DEFAULTS = {
    "mem_clf": TrainingConfig(epochs=200, refit_epochs=150, patience=100, learning_rate=0.011, weight_decay=3e-4),
    "mem_reg": TrainingConfig(
        epochs=520, refit_epochs=680, learning_rate=6.2e-3, weight_decay=1.1e-3, linear_share=0.31,
    ),
    "wall_reg": TrainingConfig(
        epochs=250, refit_epochs=450, patience=125, members=2,
        learning_rate=3.9e-3, weight_decay=2.6e-6, linear_share=0.15,
    ),
}  # fmt: skip


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Searched:
    """The jobs that a config was found on: the training split of these."""

    data: str
    split: Split
    seed: int
    test_size: float
    newest_job: int  # timestamp, epoch seconds
    ladder: str = DEFAULT.version


_FILE: TypeAdapter[Any] = TypeAdapter(dict[Literal["mem_clf", "mem_reg", "wall_reg", "found_on"], dict[str, Any]])
_FOUND_ON: TypeAdapter[dict[str, Searched]] = TypeAdapter(dict[str, Searched])


def read_config(source: str) -> dict[str, TrainingConfig]:
    """Hyper-parameters of the three networks: ``default``, or a JSON file such as ``{"wall_reg": {"epochs": 2000}}``.

    Omitted values keep their defaults. An InputError names a file, network, key or value that does not fit.
    """
    return dict(DEFAULTS) if source == "default" else _read(source)[0]


def read_found_on(source: str) -> dict[str, Searched]:
    """The jobs that the hyper-parameters of each network were found on, as far as the file of `read_config` says so."""
    return {} if source == "default" else _read(source)[1]


def _read(source: str) -> tuple[dict[str, TrainingConfig], dict[str, Searched]]:
    part = None
    try:
        given: dict[str, Any] = _FILE.validate_json(Path(source).read_bytes())
        configs = {}
        for part, default in DEFAULTS.items():
            configs[part] = TrainingConfig(**asdict(default) | given.get(part, {}))
        part = "found_on"
        return configs, _FOUND_ON.validate_python(given.get(part, {}))
    except OSError as error:
        raise InputError(f"config {source} cannot be read ({error.strerror}); expected a JSON file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (part, *first["loc"]) if part else first["loc"]))
        expected = first["msg"].removeprefix("Input should be ")
        raise InputError(
            f"config {source}: {place or 'the file'} is {first['input']!r:.80}; expected {expected}"
        ) from error
