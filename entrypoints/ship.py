"""Pack a training into archives and send them to S3."""

from typing import Annotated

import typer

from calmlflow.console import script


def main(
    tree: Annotated[str, typer.Option(help="Folder of a training, such as data/2021-11-04-1636048291.")],
    output: Annotated[
        str, typer.Option(help="Folder that gets {date}-{epoch}/{date}-{epoch}.tar.gz and models.zip.")
    ] = "out",
    destination: Annotated[str, typer.Option(help="s3://bucket/prefix to send them to, or none.")] = "none",
) -> None:
    """Pack a training (the same bytes for the same content) and send it, checksummed and resumable, to S3."""
    from calmlflow.runs.ship import ship_training

    for line in ship_training(tree, output, destination):
        print(line)


if __name__ == "__main__":
    script(main)
