from calmlflow.cli.training import adopt
from calmlflow.console import script

if __name__ == "__main__":
    script(adopt)
