"""Train anew if enough has changed since the version in Production was trained."""

from typing import Annotated, Literal

import typer

from calmlflow.cli.options import Config, Data, Destination, Output, Risk, Seed, TestSize, Writeback
from calmlflow.console import script


def main(
    data: Data,
    predictions: Annotated[
        str,
        typer.Option(
            help="Recorded predictions: a .jsonl file, s3://bucket/prefix or a store; none: those of the store in data."
        ),
    ] = "none",
    min_new: Annotated[
        int, typer.Option(help="Enough new jobs: not seen by the version in Production, or seen older. 0: off.")
    ] = 1000,
    min_share: Annotated[float, typer.Option(help="Enough new jobs over jobs that it saw. 0: off.")] = 0.1,
    drift: Annotated[
        float,
        typer.Option(
            help="Enough change of a feature or target, as population stability index, with 200 new jobs or more and "
            "beyond chance. 0: off."
        ),
    ] = 0.25,
    accuracy_drop: Annotated[
        float,
        typer.Option(
            help="Enough loss of accuracy of its recorded predictions against its held-out jobs, with 40 of them or "
            "more and beyond chance. 0: off."
        ),
    ] = 0.02,
    cost_rise: Annotated[float, typer.Option(help="The same of a rise of the excess cost. 0: off.")] = 0.02,
    coverage_drop: Annotated[
        float, typer.Option(help="The same of the share of jobs that end before their kill time. 0: off.")
    ] = 0.01,
    stage: Annotated[
        str, typer.Option(help="Stage for the new version, through the gate: None, Staging or Production.")
    ] = "Staging",
    dry_run: Annotated[Literal["true", "false"], typer.Option(help="Only say what would be done.")] = "false",
    output: Output = "data",
    seed: Seed = 0,
    test_size: TestSize = 0.2,
    config: Config = "default",
    risk: Risk = 0.0,
    writeback: Writeback = "false",
    destination: Destination = "none",
) -> None:
    """Train anew if enough has changed since the version in Production was trained, and ask the gate; any one criterion
    that is met is enough.
    """
    # Not before the options are understood: TensorFlow takes seconds to import.
    from calmlflow.runs.retrain import Limits
    from calmlflow.runs.retraining_run import RetrainRequest, retrain_in_run
    from calmlflow.runs.summary import print_training
    from calmlflow.runs.train import TrainingRequest

    training = TrainingRequest(
        data, output, seed, test_size, True, stage, config, risk, writeback == "true", destination
    )
    limits = Limits(min_new, min_share, drift, accuracy_drop, cost_rise, coverage_drop)
    decision, outcome = retrain_in_run(RetrainRequest(training, limits, predictions, dry_run == "true"))
    if outcome:
        print_training(outcome)
        print(f"{decision.verdict}: version {decision.version}")


if __name__ == "__main__":
    script(main)
