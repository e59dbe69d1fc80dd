"""The operator's command."""

import shlex
from typing import Annotated

import typer

from calmlflow import __version__, settings
from calmlflow.cli import jobs as cli_jobs
from calmlflow.cli import predict as cli_predict
from calmlflow.cli import registry as cli_registry
from calmlflow.cli.predict import SUMMARY
from calmlflow.console import new_app, say
from calmlflow.errors import CalmlflowError

app = new_app(no_args_is_help=True, invoke_without_command=True)
server_app = new_app(help="The embedded server: S3 store and MLflow tracking server, on this machine only.")
app.add_typer(server_app, name="server", invoke_without_command=True)
app.add_typer(cli_jobs.app, name="jobs")


@server_app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start in the background and return once it answers.")
    ] = False,
    port: Annotated[int | None, typer.Option(help="Port of MLflow; default 5000.", min=1, max=65535)] = None,
    s3_port: Annotated[int | None, typer.Option(help="Port of S3; default 8333.", min=1, max=65535)] = None,
) -> None:
    """Run a real S3 store and an MLflow tracking server until Ctrl-C; data stays in CALMLFLOW_HOME (.calmlflow)."""
    if context.invoked_subcommand:
        return
    from calmlflow.server import supervisor as embedded

    known = embedded.running()
    if known and port is None and s3_port is None:
        port, s3_port = known.port, known.s3_port
    port, s3_port = port or settings.MLFLOW_PORT, s3_port or settings.S3_PORT
    if detach:
        started = embedded.start(port, s3_port)
        say(f"{'already running' if known else 'started'}: MLflow {started.tracking_uri}, S3 {started.s3_endpoint}")
        say(f"credentials: {started.home / 'credentials'}; environment of clients: calmlflow server env")
    else:
        embedded.serve(port, s3_port)


@server_app.command("stop")
def server_stop() -> None:
    """Stop the server that runs in the background, or in another terminal."""
    from calmlflow.server import supervisor as embedded

    say("stopped" if embedded.stop() else "no embedded server was running")


@server_app.command("env")
def server_env() -> None:
    """Print the environment of the running server for a shell: eval "$(calmlflow server env)"."""
    from calmlflow.server import supervisor as embedded

    running = embedded.running()
    if running is None:
        raise CalmlflowError("no embedded server is running; expected one: start it with `calmlflow server --detach`")
    for name, value in {**running.environment(), "MLFLOW_EXPERIMENT_NAME": settings.EXPERIMENT}.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command(
    help=SUMMARY,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def predict(context: typer.Context) -> None:
    """Listed here with the other commands; what it takes is told by `calmlflow.cli.predict`."""
    cli_predict.predict(context.args)


app.command()(cli_registry.promote)
app.command()(cli_registry.rollback)
app.command()(cli_registry.stages)
app.command()(cli_registry.diff)


@app.callback()
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Size Hubble calibration jobs: run the embedded server, keep job records, predict, promote."""
    if show:
        print(__version__)
        raise typer.Exit
