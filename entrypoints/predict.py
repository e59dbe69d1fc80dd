"""Predict many jobs."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    data: Annotated[
        str, typer.Option(help="CSV with ipst or ipppssoot, and features or control-file keys; or sample:N.")
    ] = "sample:100",
    output: Annotated[str, typer.Option(help="CSV file to write.")] = "out/predictions.csv",
    stage: Annotated[str, typer.Option(help="Stage that answers.")] = "Production",
) -> None:
    """Predict many jobs with the version that a stage holds."""
    from calmlflow.operations import predict_in_run

    print(predict_in_run(data, output, stage))


if __name__ == "__main__":
    script(main)
