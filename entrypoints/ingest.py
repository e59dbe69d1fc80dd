"""Read finished jobs from S3 into a store of job records."""

from typing import Annotated, Literal

import typer

from calmlflow.cli.options import Datasets
from calmlflow.console import script


def main(
    bucket: Annotated[str, typer.Option(help="S3 bucket with control/ and outputs/ of finished jobs.")],
    datasets: Datasets = "new",
    store: Annotated[
        str, typer.Option(help="Store: sqlite:///jobs.db, postgresql://..., dynamodb://..., a file; default: yours.")
    ] = "default",
    retry_quarantine: Annotated[
        Literal["true", "false"], typer.Option(help="Also read those in the quarantine whose files are the same.")
    ] = "false",
) -> None:
    """Read finished jobs from S3 into a store; what cannot be stored goes to its quarantine, with the reason."""
    from calmlflow.runs.ingest import ingest_in_run

    print(ingest_in_run(bucket, datasets, store, retry_quarantine == "true"))


if __name__ == "__main__":
    script(main)
