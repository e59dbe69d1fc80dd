from calmlflow.cli.jobs import fetch
from calmlflow.console import script

if __name__ == "__main__":
    script(fetch)
