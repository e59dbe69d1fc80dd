from calmlflow.cli.training import wallclock
from calmlflow.console import script

if __name__ == "__main__":
    script(wallclock)
