from calmlflow.cli.training import retrain
from calmlflow.console import script

if __name__ == "__main__":
    script(retrain)
