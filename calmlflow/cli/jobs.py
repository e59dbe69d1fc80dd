"""Commands that ingest, copy, check and ship job records and trainings."""

import json
import re
from contextlib import closing
from typing import Annotated

import typer

from calmlflow import settings
from calmlflow.cli.options import Datasets
from calmlflow.console import fail, new_app, say

app = new_app(help="Keep the job records of the next training.", no_args_is_help=True)

StoreOption = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="sqlite:///jobs.db, postgresql://..., dynamodb://..., or a file; default CALMLFLOW_JOBS, or jobs.db in "
        ".calmlflow.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float | None:
    """Seconds of ``36h``, ``2d``, ``90m``, ``3600``; None for ``never``."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)", text.strip().lower())
    if text.strip().lower() == "never":
        return None
    if not found:
        raise typer.BadParameter(f"{text!r} is no age; expected for example 36h, 2d, 90m, 3600 (seconds) or never")
    return float(found[1]) * _UNITS[found[2]]


@app.command()
def status(
    store: StoreOption = "",
    max_age: Annotated[
        str, typer.Option(help="Age of the newest record at most: 90m, 36h, 2d, seconds, or never.")
    ] = "2d",
    as_json: JsonOption = False,
    no_log: Annotated[
        bool, typer.Option("--no-log", help=f"Add no point to MLflow's experiment {settings.HEALTH_EXPERIMENT}.")
    ] = False,
) -> None:
    """Tell what a store holds, how old it is, where it has gaps and what is in its quarantine.

    Exit status 1 when the newest record is older than --max-age, or the quarantine grows faster than it is emptied.
    """
    max_age_s = parse_age(max_age)
    # Heavy, and not needed for --help.
    from rich.console import Console

    from calmlflow.cli.health_table import show_health
    from calmlflow.jobs.health import check_health
    from calmlflow.jobs.stores.open import open_store

    with closing(open_store(store or settings.jobs_uri())) as opened:
        health = check_health(opened, max_age_s)
    if as_json:
        print(json.dumps(health.as_json()), flush=True)
    else:
        show_health(health, Console(highlight=False))
    for warning in health.warnings():
        say(f"warning: {warning}")
    if not no_log:
        from calmlflow.runs.health import log_health

        log_health(health)
    for problem in health.problems[:-1]:
        say(f"error: {problem}")
    if health.problems:
        fail(health.problems[-1])


@app.command()
def ingest(
    bucket: Annotated[str, typer.Argument(help="S3 bucket with control/ and outputs/ of finished jobs.")],
    datasets: Datasets = "new",
    store: StoreOption = "",
    retry_quarantine: Annotated[
        bool, typer.Option("--retry-quarantine", help="Also read those in the quarantine whose files are the same.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read finished jobs from S3; what cannot be stored goes to the quarantine, with the reason.

    Safe to run again, and beside others. Exit status 1 when S3 did not let some datasets be read: these are pending,
    and the same command tries them again.
    """
    from calmlflow.runs.ingest import check_complete, ingest_jobs

    ingested = ingest_jobs(bucket, datasets, store or settings.jobs_uri(), retry_quarantine)
    kinds = {"reasons": ingested.reasons, "pending_datasets": ingested.pending}
    print(json.dumps({**ingested.figures(), **kinds}) if as_json else ingested)
    check_complete(ingested)


@app.command()
def quarantine(
    store: StoreOption = "",
    kind: Annotated[str, typer.Option(help="Only entries of this kind.")] = "",
    dismiss: Annotated[
        bool, typer.Option("--dismiss", help="Settle those that are listed: they failed, and that is all right.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with what was there.")] = False,
) -> None:
    """List what could not be stored and is not settled yet, the newest first, with the reasons.

    An entry is settled when its job is stored, or by --dismiss; a dismissed job is read again when its files change.
    """
    from calmlflow.jobs.quarantine import dismiss_open, list_open
    from calmlflow.jobs.stores.open import open_store

    with closing(open_store(store or settings.jobs_uri())) as opened:
        entries = (dismiss_open if dismiss else list_open)(opened, kind)
    for entry in entries:
        # A reason names its dataset, too.
        reason = str(entry["reason"]).removeprefix(f"{entry['ipst']}: ")
        print(json.dumps(entry) if as_json else f"{entry['ipst']}  {entry['kind']}: {reason}")
    if not as_json:
        say(f"{len(entries):,} entries{' dismissed' if dismiss else ', open'}")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Store to read: a URI, a file, a folder, an archive, or sample:N.")],
    target: Annotated[str, typer.Argument(help="Store to write: a URI, or a CSV or Parquet file, here or in S3.")],
    as_json: JsonOption = False,
) -> None:
    """Copy records from one store into another, counted on both sides; the newer record of a dataset wins."""
    from calmlflow.runs.ingest import copy_jobs

    copied = copy_jobs(source, target)
    print(json.dumps(copied.figures()) if as_json else copied)


# -- Entry points: the same, written down as MLflow runs ----------------------------------------------------------


def ingest_run(
    bucket: Annotated[str, typer.Option(help="S3 bucket with control/ and outputs/ of finished jobs.")],
    datasets: Datasets = "new",
    store: Annotated[
        str, typer.Option(help="Store: sqlite:///jobs.db, postgresql://..., dynamodb://...; default: CALMLFLOW_JOBS.")
    ] = "default",
    retry_quarantine: Annotated[
        bool, typer.Option(help="Also read those in the quarantine whose files are the same.")
    ] = False,
) -> None:
    """Read finished jobs from S3 into a store; what cannot be stored goes to its quarantine, with the reason."""
    from calmlflow.runs.ingest import ingest_in_run

    print(ingest_in_run(bucket, datasets, store, retry_quarantine))


def copy_run(
    source: Annotated[str, typer.Option(help="Store to read: a URI, a file, a folder, an archive, or sample:N.")],
    target: Annotated[str, typer.Option(help="Store to write: a URI, or a CSV or Parquet file, here or in S3.")],
) -> None:
    """Copy job records from one store into another, counted on both sides; the newer record of a dataset wins."""
    from calmlflow.runs.ingest import copy_in_run

    print(copy_in_run(source, target))


def ship(
    tree: Annotated[str, typer.Option(help="Folder of a training, such as data/2021-11-04-1636048291.")],
    output: Annotated[
        str, typer.Option(help="Folder that gets {date}-{epoch}/{date}-{epoch}.tar.gz and models.zip.")
    ] = "out",
    destination: Annotated[str, typer.Option(help="s3://bucket/prefix to send them to, or none.")] = "none",
) -> None:
    """Pack a training (the same bytes for the same content) and send it to S3 with checksums."""
    from calmlflow.runs.ship import ship_training

    for line in ship_training(tree, output, destination):
        print(line)


def fetch(
    source: Annotated[str, typer.Option(help="s3://bucket/key of an archive that ship sent.")],
    output: Annotated[str, typer.Option(help="Folder that gets the training's folder.")] = "data",
) -> None:
    """Fetch an archive of a training from S3, check it, and unpack it."""
    from calmlflow.runs.ship import fetch_training

    print(fetch_training(source, output))
