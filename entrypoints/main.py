"""Train the three networks, evaluate, register, and promote the new version if a stage is given."""

from calmlflow.console import script
from calmlflow.options import training_command
from calmlflow.settings import NETWORKS

main = training_command(
    NETWORKS, "Train the three networks, evaluate, register, and promote the new version if a stage is given."
)

if __name__ == "__main__":
    script(main)
