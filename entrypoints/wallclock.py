"""Train the wallclock regressor alone."""

from calmlflow.console import script
from calmlflow.options import training_command

main = training_command("wall_reg", "Train the wallclock regressor alone.")

if __name__ == "__main__":
    script(main)
