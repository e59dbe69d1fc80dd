"""Show measured figures beside their limits, as a table and as JSON."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from calmlflow.console import say
from calmlflow.storage.files import replacing


@dataclass(frozen=True)
class Figure:
    """A measured figure and its limit: at most (<=) or at least (>=)."""

    name: str
    value: float
    sign: str
    limit: float

    @property
    def reached(self) -> bool:
        return self.value <= self.limit if self.sign == "<=" else self.value >= self.limit


def show(figures: Sequence[Figure], load: Sequence[float], output: str, more: Mapping[str, Any]) -> None:
    """Print the figures, with the load of the machine before and after, and write them to a file."""
    table = Table(title="Reach", title_justify="left")
    for heading, justify in (("figure", "left"), ("value", "right"), ("to reach", "right"), ("", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)
    for figure in figures:
        verdict = "pass" if figure.reached else "miss"
        table.add_row(figure.name, f"{figure.value:.4g}", f"{figure.sign} {figure.limit:.4g}", verdict)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print(f"{os.cpu_count()} CPUs, load {load[0]:.1f} to {load[1]:.1f}, Python {platform.python_version()}")
    console.print(table)
    written = {"load": list(load), "figures": [asdict(one) for one in figures], **more}
    with replacing(Path(output)) as file:
        file.write(json.dumps(written, indent=2) + "\n")
    say(f"written: {output}")
