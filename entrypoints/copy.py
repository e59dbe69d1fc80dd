from calmlflow.cli.jobs import copy_run
from calmlflow.console import script

if __name__ == "__main__":
    script(copy_run)
