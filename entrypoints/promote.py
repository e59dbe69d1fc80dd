"""Move a registered version to a stage."""

from typing import Annotated

import typer

from calmlflow.console import script
from calmlflow.settings import BUNDLE_MODEL


def main(
    stage: Annotated[str, typer.Option(help="Staging, Production or Archived.")] = "Staging",
    version: Annotated[
        str, typer.Option(help="A number; auto: the newest for Staging, Staging's for Production.")
    ] = "auto",
    model: Annotated[str, typer.Option(help="Registered model.")] = BUNDLE_MODEL,
) -> None:
    """Move a registered version to a stage; the one before it is archived, and aliases follow."""
    from calmlflow.operations import promote_in_run

    print(promote_in_run(stage, version, model))


if __name__ == "__main__":
    script(main)
