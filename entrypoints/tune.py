from calmlflow.cli.training import tune
from calmlflow.console import script

if __name__ == "__main__":
    script(tune)
