"""Train the networks, evaluate, register, and promote the new version if a stage is given."""

from calmlflow.cli.options import (
    Config,
    Data,
    Destination,
    Only,
    Output,
    Register,
    Risk,
    Seed,
    Stage,
    TestSize,
    Writeback,
)
from calmlflow.console import script
from calmlflow.settings import parse_networks


def main(
    data: Data = "sample",
    output: Output = "data",
    seed: Seed = 0,
    test_size: TestSize = 0.2,
    register: Register = "true",
    stage: Stage = "None",
    config: Config = "default",
    risk: Risk = 0.0,
    only: Only = "all",
    writeback: Writeback = "false",
    destination: Destination = "none",
) -> None:
    """Train the networks, evaluate, register, and promote the new version if a stage is given."""
    networks = parse_networks(only)
    # Not before the options are understood: TensorFlow takes seconds to import.
    from calmlflow.runs.summary import print_training
    from calmlflow.runs.train import TrainingRequest, train

    request = TrainingRequest(
        data, output, seed, test_size, register == "true", stage, config, risk, writeback == "true", destination
    )
    print_training(train(request, networks))


if __name__ == "__main__":
    script(main)
