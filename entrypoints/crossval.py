"""Cross-validate the networks."""

from typing import Annotated

import typer

from calmlflow.cli.options import Config, Data, Output, Seed
from calmlflow.console import script


def main(
    data: Data = "sample",
    output: Output = "data",
    seed: Seed = 0,
    folds: Annotated[int, typer.Option(help="Parts of which each is held out once; 2 or more.")] = 10,
    networks: Annotated[
        str, typer.Option(help="all, or some of mem_clf,mem_reg,wall_reg (or of their targets).")
    ] = "all",
    config: Config = "default",
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core. Changes no number.")] = 0,
) -> None:
    """Cross-validate the networks, folds in parallel, with mean, spread and interval of every score."""
    from calmlflow.runs.crossval import CrossvalRequest, cross_validate
    from calmlflow.runs.study_summary import print_crossval

    print_crossval(cross_validate(CrossvalRequest(data, output, seed, folds, networks, config, workers)))


if __name__ == "__main__":
    script(main)
