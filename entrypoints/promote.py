from calmlflow.cli.registry import promote
from calmlflow.console import script

if __name__ == "__main__":
    script(promote)
