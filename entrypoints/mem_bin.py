"""Train the memory-bin classifier alone."""

from calmlflow.console import script
from calmlflow.options import training_command

main = training_command("mem_clf", "Train the memory-bin classifier alone.")

if __name__ == "__main__":
    script(main)
