from calmlflow.cli.training import main
from calmlflow.console import script

if __name__ == "__main__":
    script(main)
