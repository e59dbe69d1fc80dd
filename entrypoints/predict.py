"""Predict many jobs."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    data: Annotated[
        str,
        typer.Option(
            help="CSV or Parquet file (here or s3://), folder of Parquet files or of a training, s3://bucket/prefix of "
            "control files, or sample:N; rows name ipst or ipppssoot and hold features or control-file keys."
        ),
    ] = "sample:100",
    output: Annotated[
        str, typer.Option(help="CSV or Parquet file to write, here or s3://; rows without answer go to *.errors.csv.")
    ] = "out/predictions.csv",
    stage: Annotated[str, typer.Option(help="Stage that answers.")] = "Production",
) -> None:
    """Predict many jobs with the version that a stage holds."""
    from calmlflow.runs.compare import predict_in_run

    print(predict_in_run(data, output, stage))


if __name__ == "__main__":
    script(main)
