"""Train the wallclock regressor alone."""

from calmlflow.cli.options import training_command
from calmlflow.console import script

main = training_command("wall_reg", "Train the wallclock regressor alone.")

if __name__ == "__main__":
    script(main)
