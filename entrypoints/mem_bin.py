"""Train the memory-bin classifier alone."""

from calmlflow.cli.options import training_command
from calmlflow.console import script

main = training_command("mem_clf", "Train the memory-bin classifier alone.")

if __name__ == "__main__":
    script(main)
