from calmlflow.cli.jobs import ingest_run
from calmlflow.console import script

if __name__ == "__main__":
    script(ingest_run)
