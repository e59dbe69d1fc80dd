"""The operator's command `calmlflow`."""

import os
import shlex
from typing import Annotated

import typer

from calmlflow import __version__, settings
from calmlflow.cli import jobs as cli_jobs
from calmlflow.cli import predict as cli_predict
from calmlflow.cli import registry as cli_registry
from calmlflow.console import new_app, say
from calmlflow.errors import CalmlflowError

app = new_app(no_args_is_help=True, invoke_without_command=True)
server_app = new_app()
app.add_typer(server_app, name="server", invoke_without_command=True)
app.add_typer(cli_jobs.app, name="jobs")


@app.callback()
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Size Hubble calibration jobs on AWS Batch.

    \b
    Start a server, and turn the shell to it:
      calmlflow server --detach && eval "$(calmlflow server env)"
    Train, promote, predict:
      mlflow run . -e main --env-manager local
      calmlflow promote --stage Staging && calmlflow promote --stage Production
      calmlflow predict j8c601020 --control FILE
    Store finished jobs for the next training:
      calmlflow jobs ingest BUCKET
    """  # noqa: D301 - the character keeps the lines of the help apart
    if show:
        print(__version__)
        raise typer.Exit


@app.command(
    help=cli_predict.SUMMARY,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def predict(context: typer.Context) -> None:
    """Pass all words on: `calmlflow.cli.predict` parses them without Typer, which takes longer than the answer."""
    cli_predict.predict(context.args)


for command in (cli_registry.promote, cli_registry.rollback, cli_registry.stages, cli_registry.diff):
    app.command()(command)


@server_app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start in the background and return once it answers.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(help="Port of MLflow; default: the last one of this folder, or 5000.", min=1, max=65535),
    ] = None,
    s3_port: Annotated[
        int | None, typer.Option(help="Port of S3; default: the last one, or 8333.", min=1, max=65535)
    ] = None,
) -> None:
    """Run the embedded S3 and MLflow servers.

    They listen on this machine only and run until Ctrl-C. Their data stays in CALMLFLOW_HOME (.calmlflow).
    """
    if context.invoked_subcommand:
        return
    from calmlflow.server import supervisor as embedded

    if detach:
        known = embedded.running()
        started = embedded.start(port, s3_port)
        say(f"{'already running' if known else 'started'}: MLflow {started.tracking_uri}, S3 {started.s3_endpoint}")
        say(f"credentials: {started.home / 'credentials'}; environment of clients: calmlflow server env")
    else:
        embedded.serve(port, s3_port)


@server_app.command("stop")
def server_stop() -> None:
    """Stop the server, also one in another terminal."""
    from calmlflow.server import supervisor as embedded

    say("stopped" if embedded.stop() else "no embedded server was running")


@server_app.command("env")
def server_env() -> None:
    """Print the environment of clients for a shell.

    Use it as: eval "$(calmlflow server env)"
    """
    from calmlflow.server import supervisor as embedded

    running = embedded.running()
    if running is None:
        raise CalmlflowError("no embedded server is running; expected one: start it with `calmlflow server --detach`")
    found = {**running.environment(), "MLFLOW_EXPERIMENT_NAME": settings.EXPERIMENT}
    # `mlflow run` waits too.
    found |= {name: value for name, value in settings.MLFLOW_PATIENCE.items() if name not in os.environ}
    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")
