"""Commands of the entry points that train, compare and apply networks."""

from collections.abc import Callable
from typing import Annotated

import typer

from calmlflow.cli import options
from calmlflow.settings import parse_networks

# Imports of `calmlflow.runs` stay inside the commands: TensorFlow and MLflow take seconds, --help must not.


def main(
    data: options.Data = "sample",
    output: options.Output = "data",
    seed: options.Seed = 0,
    test_size: options.TestSize = 0.2,
    split: options.Split = "programme",
    register: options.Register = True,
    stage: options.Stage = "None",
    config: options.Config = "default",
    risk: options.Risk = 0.0,
    only: Annotated[
        str, typer.Option(help="mem_clf, mem_reg, wall_reg, with commas between; all; or evidence, without networks.")
    ] = "all",
    writeback: options.Writeback = False,
    destination: options.Destination = "none",
) -> None:
    """Train the networks, fit the evidence, score and register, and promote the new version if a stage is given.

    Networks that --only leaves out come from the version in Production; with --only evidence all three do, and the
    finished jobs that correct them are read anew, in seconds.
    """
    networks = () if only == "evidence" else parse_networks(only)
    from calmlflow.runs.summary import print_training
    from calmlflow.runs.train import TrainingRequest, train

    request = TrainingRequest(
        data, output, seed, test_size, split, register, stage, config, risk, writeback, destination
    )
    print_training(train(request, networks))


def _train_alone(network: str, summary: str) -> Callable[..., None]:
    def command(
        data: options.Data = "sample",
        output: options.Output = "data",
        seed: options.Seed = 0,
        test_size: options.TestSize = 0.2,
        split: options.Split = "programme",
        register: options.Register = True,
        stage: options.Stage = "None",
        config: options.Config = "default",
        risk: options.Risk = 0.0,
        writeback: options.Writeback = False,
        destination: options.Destination = "none",
    ) -> None:
        from calmlflow.runs.summary import print_training
        from calmlflow.runs.train import TrainingRequest, train

        request = TrainingRequest(
            data, output, seed, test_size, split, register, stage, config, risk, writeback, destination
        )
        print_training(train(request, [network], bundle=False))

    command.__doc__ = summary
    return command


mem_bin = _train_alone("mem_clf", "Train the memory-bin classifier alone.")
memory = _train_alone("mem_reg", "Train the memory regressor alone.")
wallclock = _train_alone("wall_reg", "Train the wallclock regressor alone.")


def crossval(
    data: options.Data = "sample",
    output: options.Output = "data",
    seed: options.Seed = 0,
    folds: Annotated[int, typer.Option(help="Parts of which each is held out once; 2 or more.")] = 10,
    networks: options.Networks = "all",
    config: options.Config = "default",
    workers: options.Workers = 0,
    split: options.Split = "programme",
    scheduler: options.Scheduler = "local",
) -> None:
    """Cross-validate the networks, folds in parallel, with mean, spread and interval of every score."""
    from calmlflow.runs.crossval import CrossvalRequest, cross_validate
    from calmlflow.runs.summary import print_crossval

    request = CrossvalRequest(data, output, seed, folds, networks, config, workers, split, scheduler)
    print_crossval(cross_validate(request))


def tune(
    data: options.Data = "sample",
    network: options.Networks = "all",
    trials: Annotated[int, typer.Option(help="Trials of each network, with those of an interrupted search.")] = 30,
    seed: options.Seed = 0,
    output: Annotated[str, typer.Option(help="Folder that keeps the search, and gets config.json.")] = "out/tune",
    config: options.Config = "default",
    split: options.Split = "programme",
    workers: options.Workers = 0,
    scheduler: options.Scheduler = "local",
) -> None:
    """Search around a config for better hyper-parameters; after an interruption, the same command goes on."""
    from calmlflow.runs.summary import print_search
    from calmlflow.runs.tune import TuneRequest
    from calmlflow.runs.tune import tune as search

    print_search(search(TuneRequest(data, network, trials, seed, output, config, split, workers, scheduler)))


def adopt(
    source: Annotated[str, typer.Option(help="Folder or .zip with three .keras files and tx_data.json; or spacekit.")],
    data: options.Data = "sample",
    seed: options.Seed = 0,
    output: options.Output = "data",
    stage: options.Stage = "None",
) -> None:
    """Register networks that were trained elsewhere, scored on jobs, so that a challenger has a champion to beat."""
    from calmlflow.runs.adopt import AdoptionRequest
    from calmlflow.runs.adopt import adopt as register
    from calmlflow.runs.summary import print_training

    print_training(register(AdoptionRequest(source, data, seed, output, stage)))


def retrain(
    data: options.Data,
    predictions: Annotated[
        str, typer.Option(help="Recorded predictions: s3://bucket/prefix or a store; none: those of the store in data.")
    ] = "none",
    min_new: Annotated[
        int, typer.Option(help="Enough new jobs: not seen by the version in Production, or seen older. 0: off.")
    ] = 1000,
    min_share: Annotated[float, typer.Option(help="Enough new jobs over jobs that it saw. 0: off.")] = 0.1,
    drift: Annotated[
        float, typer.Option(help="Enough drift of a feature or target: population stability index. 0: off.")
    ] = 0.25,
    accuracy_drop: Annotated[
        float, typer.Option(help="Enough loss of accuracy of recorded predictions against held-out jobs. 0: off.")
    ] = 0.02,
    cost_rise: Annotated[float, typer.Option(help="Enough rise of their excess cost. 0: off.")] = 0.02,
    coverage_drop: Annotated[
        float, typer.Option(help="Enough fewer jobs that end before their kill time. 0: off.")
    ] = 0.01,
    stage: Annotated[
        str, typer.Option(help="Stage for the new version, through the gate: None, Staging or Production.")
    ] = "Staging",
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    output: options.Output = "data",
    seed: options.Seed = 0,
    test_size: options.TestSize = 0.2,
    split: options.Split = "programme",
    config: options.Config = "default",
    risk: options.Risk = 0.0,
    writeback: options.Writeback = False,
    destination: options.Destination = "none",
) -> None:
    """Train anew if enough has changed since the version in Production was trained, and ask the gate.

    One criterion that is met is enough. Drift counts from 200 new jobs on, recorded predictions from 40 on, and both
    only beyond chance.
    """
    from calmlflow.runs.retrain import Limits, RetrainRequest, retrain_in_run
    from calmlflow.runs.summary import print_training
    from calmlflow.runs.train import TrainingRequest

    training = TrainingRequest(data, output, seed, test_size, split, True, stage, config, risk, writeback, destination)
    limits = Limits(min_new, min_share, drift, accuracy_drop, cost_rise, coverage_drop)
    decision, outcome = retrain_in_run(RetrainRequest(training, limits, predictions, dry_run))
    if outcome:
        print_training(outcome)
        print(f"{decision.verdict}: version {decision.version}")


def compare(
    this: Annotated[
        str, typer.Option(help="A training: its folder, runs:/ID, models:/NAME/VERSION or models:/NAME/STAGE.")
    ],
    other: Annotated[
        str, typer.Option(help="The training it is held against.")
    ] = "models:/calcloud-predictor/Production",
) -> None:
    """Compare two trainings on the test jobs that both saw, with paired differences and 95 % intervals."""
    from calmlflow.runs.compare import compare_in_run

    print(compare_in_run(this, other))


def predict(
    data: Annotated[
        str,
        typer.Option(
            help="CSV or Parquet file (here or s3://), folder of Parquet files or of a training, s3://bucket/prefix of "
            "control files, or sample:N; rows name ipst or ipppssoot and hold features or control-file keys."
        ),
    ] = "sample:100",
    output: Annotated[
        str,
        typer.Option(
            help="CSV or Parquet file to write, here or s3://; or a folder, for the parts of a Parquet table that are "
            "answered side by side. Rows without answer go to *.errors.csv.",
        ),
    ] = "out/predictions.csv",
    stage: Annotated[str, typer.Option(help="Stage that answers.")] = "Production",
    workers: options.Workers = 0,
    scheduler: options.Scheduler = "local",
) -> None:
    """Predict many jobs with the version that a stage holds."""
    from calmlflow.runs.predict import predict_in_run

    print(predict_in_run(data, output, stage, workers, scheduler))
