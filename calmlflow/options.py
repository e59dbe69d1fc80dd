"""Options that several entry points share, with their help texts."""

from typing import Annotated, Literal

import typer

Data = Annotated[str, typer.Option(help="Jobs: sample, sample:N, a CSV file, or the folder of an earlier training.")]
Output = Annotated[str, typer.Option(help="Folder that gets the new folder {date}-{epoch} with models and results.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sample, the splits and the training.")]
TestSize = Annotated[float, typer.Option(help="Share of the jobs held out for scoring, stratified by memory bin.")]
Register = Annotated[Literal["true", "false"], typer.Option(help="Whether the models become registered versions.")]
Stage = Annotated[str, typer.Option(help="Stage the new version is promoted to: None, Staging or Production.")]
Config = Annotated[str, typer.Option(help="Hyper-parameters: 'default', or a JSON file of overrides per network.")]
