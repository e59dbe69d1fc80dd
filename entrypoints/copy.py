"""Copy job records from one store into another."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    source: Annotated[str, typer.Option(help="Store to read: a URI, a file, a folder, an archive, or sample:N.")],
    target: Annotated[str, typer.Option(help="Store to write: a URI, or a CSV or Parquet file, here or in S3.")],
) -> None:
    """Copy job records from one store into another, counted on both sides; the newer record of a dataset wins."""
    from calmlflow.runs.ingest import copy_in_run

    print(copy_in_run(source, target))


if __name__ == "__main__":
    script(main)
