"""The operator's command `calmlflow`."""

import json
import os
import shlex
import sys
from pathlib import Path
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


_Backend = Annotated[
    str,
    typer.Option(
        help="Database: postgresql+psycopg://USER@HOST/DATABASE, password in PGPASSWORD or ~/.pgpass; default "
        "SQLite in CALMLFLOW_HOME."
    ),
]
_Artifacts = Annotated[
    str, typer.Option(help="s3://bucket/prefix of any S3, reached by AWS_*; default the embedded S3.")
]


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
        int | None, typer.Option(help="Port of the embedded S3; default: the last one, or 8333.", min=1, max=65535)
    ] = None,
    backend_store_uri: _Backend = "",
    artifacts_destination: _Artifacts = "",
    auth: Annotated[bool, typer.Option("--auth", help="Let users log in, see `calmlflow server user`.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs --auth.")] = settings.HOST,
    allowed_hosts: Annotated[
        str, typer.Option(help="Names by which clients call the server, with commas between: mlflow.example.org")
    ] = "",
) -> None:
    """Run the MLflow server, with an embedded S3 store and database unless it is given others.

    It listens on this machine only and runs until Ctrl-C. Its data stays in CALMLFLOW_HOME (.calmlflow).
    """
    if context.invoked_subcommand:
        return
    from calmlflow.server import database
    from calmlflow.server import supervisor as embedded

    backend = database.read_backend(backend_store_uri) if backend_store_uri else ""
    deployment = embedded.Deployment(backend, artifacts_destination, host, allowed_hosts, auth)
    known = embedded.running()
    if detach:
        if auth and not known:
            # Here, where a person may look; the daemon writes a log.
            embedded.prepare_auth(settings.home().resolve(), deployment)
        started = embedded.start(port, s3_port, deployment=deployment)
        say(f"{'already running' if known else 'started'}: MLflow {started.tracking_uri}, {started.artifacts}")
        if not artifacts_destination:
            say(f"credentials: {started.home / 'credentials'}; environment of clients: calmlflow server env")
    else:
        embedded.serve(port, s3_port, deployment=deployment)


@server_app.command("stop")
def server_stop() -> None:
    """Stop the server, also one in another terminal; requests have 30 seconds to finish."""
    from calmlflow.server import supervisor as embedded

    say("stopped" if embedded.stop() else "no embedded server was running")


@server_app.command("status")
def server_status(as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False) -> None:
    """Tell whether the server, its database and its artifact store answer; exit status 1 where one does not."""
    from calmlflow.server import supervisor as embedded

    running = embedded.running()
    found = running.check() if running else {"database": False, "artifacts": False}
    uri = running.tracking_uri if running else None
    silent = " and ".join(name for name, answers in found.items() if not answers)
    if as_json:
        print(json.dumps({"ready": not silent, "tracking_uri": uri, **found}))
    else:
        print(f"{uri or 'no server runs'}: {f'no answer from {silent}' if silent else 'ready'}")
    if silent:
        sys.exit(1)


@server_app.command("upgrade")
def server_upgrade(backend_store_uri: _Backend = "") -> None:
    """Bring the database of a stopped server to the schema of the installed MLflow.

    It is backed up into CALMLFLOW_HOME/backups first, and compared afterwards. The default is the database that the
    server was last started with.
    """
    from calmlflow.server import database
    from calmlflow.server import supervisor as embedded

    backup = embedded.upgrade(database.read_backend(backend_store_uri) if backend_store_uri else "")
    say(f"upgraded; the database as it was: {backup}" if backup else "nothing to do: the schema is that of MLflow")


@server_app.command("backup")
def server_backup(
    destination: Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Copy database and artifacts of the server of CALMLFLOW_HOME into a folder; the server may run meanwhile.

    A second backup into the same folder copies only what is new.
    """
    from calmlflow.server import backup

    done = backup.back_up(destination.absolute(), settings.home().resolve())
    if as_json:
        print(json.dumps(done))
    else:
        copied = f"{done['copied']:,} new artifacts ({done['copied_bytes']:,} bytes)"
        say(f"{done['backup']}: {done['files']:,} artifacts ({done['bytes']:,} bytes), of these {copied} copied")


@server_app.command("restore")
def server_restore(source: Path, backend_store_uri: _Backend = "", artifacts_destination: _Artifacts = "") -> None:
    """Fill the empty, stopped server of CALMLFLOW_HOME with the newest backup of a folder, or with one of its lists.

    Every checksum is compared before anything is changed. Start the server with the same two options afterwards.
    """
    from calmlflow.server import backup, database
    from calmlflow.server.processes import Deployment

    backend = database.read_backend(backend_store_uri) if backend_store_uri else ""
    done = backup.restore(source.absolute(), settings.home().resolve(), Deployment(backend, artifacts_destination))
    say(f"restored {done['backup']}: {done['files']:,} artifacts ({done['bytes']:,} bytes) and the database")


@server_app.command("gc")
def server_gc(
    keep: Annotated[int, typer.Option(help="Newest versions of each model, and steps back, that stay.", min=1)] = 10,
    older_than: Annotated[float, typer.Option(help="Days that versions, and deleted runs, stay.", min=0)] = 30.0,
    delete: Annotated[bool, typer.Option("--delete", help="Remove; without it nothing is.")] = False,
) -> None:
    """Print which deleted runs, and which files of old versions, may go: name, files and bytes, a line each.

    Nothing goes that a stage, an alias, the way back, a bundle or another model refers to.
    """
    from calmlflow.registry import garbage
    from calmlflow.server import supervisor as embedded

    home = settings.home().resolve()
    with embedded.held_store(home) as (server, client, root):
        if server.deployment.auth:
            os.environ |= {"MLFLOW_ENABLE_WORKSPACES": "true", "MLFLOW_WORKSPACE": settings.workspace() or "default"}
        found = garbage.collect(client, root, server.deployment.database_uri(home), keep, older_than, delete)
    for name, files, size in found:
        print(f"{name}\t{files}\t{size}")
    verb = "removed" if delete else "nothing removed; --delete would remove"
    say(f"{verb}: {sum(files for _, files, _ in found):,} files, {sum(size for _, _, size in found):,} bytes")


user_app = new_app(no_args_is_help=True)
server_app.add_typer(user_app, name="user")


@user_app.callback()
def user() -> None:
    """Let users into a server with --auth, as its admin.

    On the server's machine the admin's password is read from CALMLFLOW_HOME; elsewhere set MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD. Roles hold in the workspace MLFLOW_WORKSPACE, or in the default one.
    """
    from calmlflow.server import access
    from calmlflow.server import supervisor as embedded

    for name, value in settings.MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    running = embedded.running()
    if running and running.tracking_uri == settings.tracking_uri():
        access.log_in(running.home)


@user_app.command("add")
def user_add(
    name: str,
    role: Annotated[
        str, typer.Option(help="reader (predict, stages, diff), trainer (and train, register) or promoter (all).")
    ],
) -> None:
    """Make a user, or give an old one another role.

    The password is that of CALMLFLOW_USER_PASSWORD, or a generated one in CALMLFLOW_HOME/users.
    """
    from calmlflow.server import access

    made = access.add_user(name, role, settings.user_password())
    say(f"{name} is a {role}{f'; the password is in {made}' if made else ''}")


@user_app.command("list")
def user_list() -> None:
    """Print users and their roles, one a line."""
    from calmlflow.server import access

    for name, role in access.list_users().items():
        print(f"{name}\t{role}")


@user_app.command("remove")
def user_remove(name: str) -> None:
    """Remove a user and all rights."""
    from calmlflow.server import access

    access.remove_user(name)
    say(f"removed {name}")


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
