"""Search for better hyper-parameters."""

from typing import Annotated

import typer

from calmlflow.cli.options import Config, Data, Seed
from calmlflow.console import script


def main(
    data: Data = "sample",
    network: Annotated[
        str, typer.Option(help="all, or some of mem_clf,mem_reg,wall_reg (or of their targets).")
    ] = "all",
    trials: Annotated[int, typer.Option(help="Trials of each network, with those of an interrupted search.")] = 30,
    seed: Seed = 0,
    output: Annotated[str, typer.Option(help="Folder that keeps the search, and gets config.json.")] = "out/tune",
    config: Config = "default",
) -> None:
    """Search around a config for better hyper-parameters; after an interruption, the same command goes on."""
    from calmlflow.runs.study_summary import print_search
    from calmlflow.runs.tune import TuneRequest, tune

    print_search(tune(TuneRequest(data, network, trials, seed, output, config)))


if __name__ == "__main__":
    script(main)
