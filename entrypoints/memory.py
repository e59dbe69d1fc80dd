"""Train the memory regressor alone."""

from calmlflow.cli.options import training_command
from calmlflow.console import script

main = training_command("mem_reg", "Train the memory regressor alone.")

if __name__ == "__main__":
    script(main)
