from calmlflow.cli.training import crossval
from calmlflow.console import script

if __name__ == "__main__":
    script(crossval)
