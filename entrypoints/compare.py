from calmlflow.cli.training import compare
from calmlflow.console import script

if __name__ == "__main__":
    script(compare)
