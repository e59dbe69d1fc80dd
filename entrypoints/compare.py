"""Compare two trainings on the test jobs that both saw."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    this: Annotated[
        str, typer.Option(help="A training: its folder, runs:/ID, models:/NAME/VERSION or models:/NAME/STAGE.")
    ],
    other: Annotated[
        str, typer.Option(help="The training it is held against.")
    ] = "models:/calcloud-predictor/Production",
) -> None:
    """Compare two trainings on the test jobs that both saw, with paired differences and 95 % bootstrap intervals."""
    from calmlflow.runs.compare import compare_in_run

    print(compare_in_run(this, other))


if __name__ == "__main__":
    script(main)
