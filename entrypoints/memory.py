"""Train the memory regressor alone."""

from calmlflow.console import script
from calmlflow.options import Config, Data, Output, Register, Seed, Stage, TestSize


def main(
    data: Data = "sample",
    output: Output = "data",
    seed: Seed = 0,
    test_size: TestSize = 0.2,
    register: Register = "true",
    stage: Stage = "None",
    config: Config = "default",
) -> None:
    """Train the memory regressor alone."""
    from calmlflow.runs import TrainingRequest, train
    from calmlflow.summary import print_training

    request = TrainingRequest(data, output, seed, test_size, register == "true", stage, config)
    print_training(train(request, ["mem_reg"]))


if __name__ == "__main__":
    script(main)
