"""Register networks that were trained elsewhere."""

from typing import Annotated

import typer

from calmlflow.cli.options import Data, Output, Stage
from calmlflow.console import script


def main(
    source: Annotated[
        str, typer.Option(help="Folder, .zip or .tar.gz with three .keras files and tx_data.json; or spacekit.")
    ],
    data: Data = "sample",
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    output: Output = "data",
    stage: Stage = "None",
) -> None:
    """Register networks that were trained elsewhere, scored on jobs, so that a challenger has a champion to beat."""
    from calmlflow.runs.adopt import AdoptionRequest, adopt, print_adoption

    print_adoption(adopt(AdoptionRequest(source, data, seed, output, stage)))


if __name__ == "__main__":
    script(main)
