"""Options that several commands share, with their help texts."""

from typing import Annotated

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
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample, the splits and the training.")]
TestSize = Annotated[float, typer.Option(help="Share held out for scoring: of the programmes, or else of the jobs.")]
Split = Annotated[
    str,
    typer.Option(
        help="What is held out together: programme (whole programmes, as a new programme meets the networks), time "
        "(the newest jobs, as next month does), or job (single jobs, whose programmes are mostly known)."
    ),
]
Register = Annotated[bool, typer.Option(help="Register the models as new versions.")]
Stage = Annotated[str, typer.Option(help="Stage the new version is promoted to: None, Staging or Production.")]
Config = Annotated[str, typer.Option(help="Hyper-parameters: 'default', or a JSON file of overrides per network.")]
Risk = Annotated[
    float,
    typer.Option(
        min=0.0, help="Dollars that avoiding one dollar of killed runs is worth, beyond its own; 0: cheapest bin."
    ),
]
Writeback = Annotated[
    bool, typer.Option(help="Write predictions and wallclock statistics into the store that the jobs came from.")
]
Destination = Annotated[
    str, typer.Option(help="s3://bucket/prefix that gets models, results and archives under {date}-{epoch}/, or none.")
]
Networks = Annotated[
    str, typer.Option(help="Networks: all, or some of mem_clf,mem_reg,wall_reg (or of their targets).")
]
Workers = Annotated[int, typer.Option(help="Processes of this machine; 0: one per core. Changes no number.")]
Scheduler = Annotated[
    str, typer.Option(help="Where tasks run: local (this machine), or a Dask scheduler, tcp://host:8786.")
]
Datasets = Annotated[
    str,
    typer.Option(
        help="new: all under outputs/ that are not stored; all; names with commas between; or a file that holds names, "
        "one a line, or a notification of S3."
    ),
]
Model = Annotated[str, typer.Option(help="Registered model.")]
