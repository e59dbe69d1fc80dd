"""Fetch an archive of a training from S3 and unpack it."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    source: Annotated[str, typer.Option(help="s3://bucket/key of an archive that ship sent.")],
    output: Annotated[str, typer.Option(help="Folder that gets the training's folder.")] = "data",
) -> None:
    """Fetch an archive of a training from S3, check it, and unpack it."""
    from calmlflow.runs.ship import fetch_training

    print(fetch_training(source, output))


if __name__ == "__main__":
    script(main)
