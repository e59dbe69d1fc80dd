from calmlflow.cli.training import memory
from calmlflow.console import script

if __name__ == "__main__":
    script(memory)
