"""Run the operator's command."""

import sys

from calmlflow.console import run_guarded


def main() -> None:
    """Entry of the console script."""
    if sys.argv[1:2] == ["predict"]:
        # Importing Typer for the other commands takes longer than the answer.
        from calmlflow.cli.predict import predict

        run_guarded(lambda: predict(sys.argv[2:]))
    else:
        from calmlflow.cli.app import app

        run_guarded(lambda: app(standalone_mode=False))


if __name__ == "__main__":
    main()
