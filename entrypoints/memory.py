"""Train the memory regressor alone."""

from calmlflow.console import script
from calmlflow.options import training_command

main = training_command("mem_reg", "Train the memory regressor alone.")

if __name__ == "__main__":
    script(main)
