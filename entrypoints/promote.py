"""Move a registered version to a stage."""

from typing import Annotated, Literal

import typer

from calmlflow.console import script
from calmlflow.settings import BUNDLE_MODEL


def main(
    stage: Annotated[str, typer.Option(help="Staging, Production or Archived.")] = "Staging",
    version: Annotated[
        str, typer.Option(help="A number; auto: the newest for Staging, Staging's for Production.")
    ] = "auto",
    model: Annotated[str, typer.Option(help="Registered model.")] = BUNDLE_MODEL,
    data: Annotated[
        str, typer.Option(help="Jobs to judge by, newer than those of both trainings; held-out: the challenger's.")
    ] = "held-out",
    gate: Annotated[str, typer.Option(help="Limits: 'default', or a YAML file.")] = "default",
    force: Annotated[Literal["true", "false"], typer.Option(help="Go through although a check fails.")] = "false",
    reason: Annotated[str, typer.Option(help="Why; written down, and needed with force.")] = "",
) -> None:
    """Judge a registered version and move it to a stage; the one before it is archived, and aliases follow."""
    from calmlflow.runs.promote import PromotionRequest, parse_version, promote_in_run

    number = parse_version(version)
    jobs = None if data == "held-out" else data
    print(promote_in_run(PromotionRequest(stage, number, model, jobs, gate, force == "true", reason)))


if __name__ == "__main__":
    script(main)
