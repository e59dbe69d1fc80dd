from calmlflow.cli.training import mem_bin
from calmlflow.console import script

if __name__ == "__main__":
    script(mem_bin)
