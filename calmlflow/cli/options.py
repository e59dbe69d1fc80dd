"""Options that several entry points share, with their help texts."""

from collections.abc import Callable
from typing import Annotated, Literal

import typer

Data = Annotated[
    str,
    typer.Option(
        help="Jobs: sample, sample:N, a CSV or Parquet file, a folder of them or of an earlier training, its archive, "
        "s3://bucket/key of any of these, sqlite:///FILE, postgresql://USER@HOST/DATABASE, or "
        "dynamodb://TABLE?region=REGION."
    ),
]
Output = Annotated[str, typer.Option(help="Folder that gets the new folder {date}-{epoch} with models and results.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the sample, the splits and the training.")]
TestSize = Annotated[float, typer.Option(help="Share of the jobs held out for scoring, stratified by memory bin.")]
Register = Annotated[Literal["true", "false"], typer.Option(help="Whether the models become registered versions.")]
Stage = Annotated[str, typer.Option(help="Stage the new version is promoted to: None, Staging or Production.")]
Config = Annotated[str, typer.Option(help="Hyper-parameters: 'default', or a JSON file of overrides per network.")]
Risk = Annotated[
    float,
    typer.Option(
        min=0.0, help="Dollars that avoiding one dollar of killed runs is worth, beyond its own; 0: cheapest bin."
    ),
]

Datasets = Annotated[
    str,
    typer.Option(
        help="new: all under outputs/ that are not stored; all; names with commas between; or a file that holds names, "
        "one a line, or a notification of S3."
    ),
]
Writeback = Annotated[
    Literal["true", "false"],
    typer.Option(help="Whether predictions and wallclock statistics go into the store that the jobs came from."),
]
Destination = Annotated[
    str, typer.Option(help="s3://bucket/prefix that gets models, results and archives under {date}-{epoch}/, or none.")
]

Only = Annotated[
    str,
    typer.Option(
        help="Networks to train: all, or some of mem_clf,mem_reg,wall_reg (or of their targets); the others come from "
        "the version in Production."
    ),
]


def training_command(network: str, summary: str) -> Callable[..., None]:
    """The command line of an entry point that trains one network alone."""

    def main(
        data: Data = "sample",
        output: Output = "data",
        seed: Seed = 0,
        test_size: TestSize = 0.2,
        register: Register = "true",
        stage: Stage = "None",
        config: Config = "default",
        risk: Risk = 0.0,
        writeback: Writeback = "false",
        destination: Destination = "none",
    ) -> None:
        # Not before the options are understood: TensorFlow takes seconds to import.
        from calmlflow.runs.summary import print_training
        from calmlflow.runs.train import TrainingRequest, train

        request = TrainingRequest(
            data, output, seed, test_size, register == "true", stage, config, risk, writeback == "true", destination
        )
        print_training(train(request, [network], bundle=False))

    main.__doc__ = summary
    return main
