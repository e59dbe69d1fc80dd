from calmlflow.cli.jobs import ship
from calmlflow.console import script

if __name__ == "__main__":
    script(ship)
