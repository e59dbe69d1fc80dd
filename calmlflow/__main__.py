"""Run the operator's command."""

import sys

from calmlflow.console import run_guarded


def main() -> None:
    """Entry of the console script."""
    run_guarded(_run)


def _run() -> object:
    # Imported here: reading the ladder in force may fail. Typer, for the other commands, takes longer than the answer.
    if sys.argv[1:2] == ["predict"]:
        from calmlflow.cli.predict import predict

        predict(sys.argv[2:])
        return None
    from calmlflow.cli.app import app

    return app(standalone_mode=False)


if __name__ == "__main__":
    main()
