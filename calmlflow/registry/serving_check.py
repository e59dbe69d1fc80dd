"""Load a model folder as MLflow serves it, and answer its own input example. Run as a script, in a process of its own.

So the version's own code is what runs, not that of the process which judges it, and whatever it does to a process it
does not do to ours. Prints one line of JSON: the answers.
"""

import json
import sys

import mlflow
import numpy as np


def main(folder: str) -> None:
    """Print what the model in this folder says of its input example."""
    model = mlflow.pyfunc.load_model(folder)
    example = model.input_example
    if example is None:
        sys.exit("it has no input example")
    answers = model.predict(example).to_dict("list")
    print(json.dumps(answers, default=lambda value: np.asarray(value).tolist()))


if __name__ == "__main__":
    main(sys.argv[1])
