"""Commands that ingest, copy, check and ship job records and trainings."""

import json
import re
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from calmlflow import settings
from calmlflow.cli.options import Datasets
from calmlflow.console import fail, new_app, say

if TYPE_CHECKING:
    from calmlflow.jobs.health import Health

app = new_app(help="Keep the job records of the next training.", no_args_is_help=True)

StoreOption = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="sqlite:///jobs.db, postgresql://... or dynamodb://...; default CALMLFLOW_JOBS, or jobs.db in .calmlflow.",
    ),
]
PredictionsOption = Annotated[
    str, typer.Option(metavar="URI", help="A store or s3://bucket/prefix; none: those in the database of the jobs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]

_BUCKET = "S3 bucket with control/ and outputs/ of finished jobs."
_RETRY = "Also read quarantined jobs whose files are the same."
_SOURCE = "To read: a database, a file, a folder, an archive, or sample:N."
_TARGET = "To write: a database, or a CSV or Parquet file, here or in S3."
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_age(text: str) -> float | None:
    """Seconds of ``36h``, ``2d``, ``90m``, ``3600``; None for ``never``."""
    if text.strip().lower() == "never":
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)", text.strip().lower())
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
    form: Annotated[
        Literal["text", "json", "prometheus", "emf"],
        typer.Option("--format", help="prometheus: for a textfile collector; emf: a line for CloudWatch."),
    ] = "text",
    predictions: PredictionsOption = "none",
) -> None:
    """Show the records of a store, the age of the newest one, killed jobs, and the quarantine.

    Exit status 1 when the newest record is older than --max-age, or the quarantine grows.
    """
    max_age_s = parse_age(max_age)
    # Heavy, and not needed for --help.
    from calmlflow.jobs.health import check_health
    from calmlflow.jobs.stores.open import open_source

    uri = store or settings.jobs_uri()
    with closing(open_source(uri)) as opened:
        health = check_health(opened, max_age_s)
    if form in ("prometheus", "emf"):
        from calmlflow.runs.watch import emf_line, prometheus_text, realised_lately

        # Reads the store again.
        has_any = health.predictions or predictions != "none"
        realised = realised_lately(uri, predictions, health.moment) if has_any else {}
        if form == "emf":
            print(emf_line(health, realised), flush=True)
        else:
            print(prometheus_text(health, realised), end="", flush=True)
    elif as_json or form == "json":
        print(json.dumps(health.as_json()), flush=True)
    else:
        _show(health)
    if not no_log:
        from calmlflow.runs.health import log_health

        log_health(health)
    for problem in health.problems[:-1]:
        say(f"error: {problem}")
    if health.problems:
        fail(health.problems[-1])


def _show(health: "Health") -> None:
    from calmlflow.hst.dataset import INSTRUMENTS
    from calmlflow.hst.ladder import BIN_NAMES
    from calmlflow.jobs.health import WINDOW_DAYS, duration

    def line(name: str, *cells: object) -> None:
        # Texts of a store may hold control codes of the terminal.
        text = f"{name:15}" + "".join(f"{cell:>11,}" if isinstance(cell, int) else f"{cell:>11}" for cell in cells)
        print("".join(letter if letter.isprintable() else " " for letter in text).rstrip())

    line(f"{health.store}, {datetime.fromtimestamp(health.moment, UTC):%Y-%m-%d %H:%M} UTC\n")
    line("records", *BIN_NAMES, "all")
    for name, row in zip(INSTRUMENTS.values(), health.table.tolist(), strict=True):
        line(name, *row, sum(row))
    line("all", *health.by_bin().values(), health.records)
    age = "" if health.newest_age_s is None else f", finished {duration(health.newest_age_s)} ago"
    line("newest record", f"  {health.newest or 'none'}{age}")
    line("mosaics", health.mosaics)
    line("predictions", health.predictions)
    line("killed by", *health.killed, "all")
    line("  ever", *health.killed.values(), sum(health.killed.values()))
    line(f"  {WINDOW_DAYS} d", *health.killed_7d.values(), sum(health.killed_7d.values()))
    for day, count in health.stored_by_day.items():
        line(f"on {day}", count, " stored")
    line("quarantine", health.quarantine_open, " open")
    line(f"  added, {WINDOW_DAYS} d", health.quarantine_added_7d)
    line(f"  resolved, {WINDOW_DAYS} d", health.quarantine_resolved_7d)
    for kind, count in health.quarantine_kinds.items():
        if count:
            line("", count, f"  {kind}")
    print("not healthy" if health.problems else "healthy")


@app.command()
def ingest(
    bucket: Annotated[str, typer.Argument(help=_BUCKET)],
    datasets: Datasets = "new",
    store: StoreOption = "",
    retry_quarantine: Annotated[bool, typer.Option("--retry-quarantine", help=_RETRY)] = False,
    as_json: JsonOption = False,
) -> None:
    """Read finished jobs from S3 into a store; invalid ones go to the quarantine, with the reason.

    Safe to run again, and beside others. Exit status 1 when S3 did not let some datasets be read: these are pending,
    and the same command tries them again.
    """
    from calmlflow.runs.ingest import check_complete, ingest_jobs

    ingested = ingest_jobs(bucket, datasets, store or settings.jobs_uri(), retry_quarantine)
    kinds = {"reasons": ingested.reasons, "killed_by": ingested.killed, "pending_datasets": ingested.pending}
    print(json.dumps({**ingested.figures(), **kinds}) if as_json else ingested)
    check_complete(ingested)


@app.command()
def quarantine(
    store: StoreOption = "",
    kind: Annotated[str, typer.Option(help="Only entries of this kind.")] = "",
    dismiss: Annotated[
        bool, typer.Option("--dismiss", help="Close the listed entries: these jobs failed, and that is all right.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, with the record.")] = False,
) -> None:
    """List open quarantine entries with their reasons, the newest first.

    An entry is closed when its job is stored, or by --dismiss; a dismissed job is read again when its files change.
    """
    from calmlflow.jobs.quarantine import dismiss_open, list_open
    from calmlflow.jobs.stores.open import open_store

    with closing(open_store(store or settings.jobs_uri())) as opened:
        entries = (dismiss_open if dismiss else list_open)(opened, kind)
    for entry in entries:
        # A reason may begin with its dataset.
        reason = str(entry["reason"]).removeprefix(f"{entry['ipst']}: ")
        print(json.dumps(entry) if as_json else f"{entry['ipst']}  {entry['kind']}: {reason}")
    if not as_json:
        say(f"{len(entries):,} entries{' dismissed' if dismiss else ', open'}")


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    target: Annotated[str, typer.Argument(help=_TARGET)],
    as_json: JsonOption = False,
) -> None:
    """Copy records into a database, where the newer record of a dataset wins, or into a file, which is replaced."""
    from calmlflow.runs.ingest import copy_jobs

    copied = copy_jobs(source, target)
    print(json.dumps(copied.figures()) if as_json else copied)


@app.command()
def report(
    data: Annotated[str, typer.Option(metavar="URI", help="Finished and killed jobs; default as for --store.")] = "",
    predictions: PredictionsOption = "none",
    output: Annotated[
        str, typer.Option(metavar="FILE.html", help="Page to write; default realised.html, and none with --json.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Hold recorded predictions against finished and killed jobs: cost, losses and kill times, month by month."""
    from calmlflow.results.report.realised import realised_html, realised_verdict
    from calmlflow.runs.realised import read_ended, realised_content
    from calmlflow.storage.files import replacing

    content = realised_content(read_ended(data or settings.jobs_uri(), predictions))
    print(json.dumps(content.figures) if as_json else realised_verdict(content))
    if output or not as_json:
        with replacing(Path(output or "realised.html")) as file:
            file.write(realised_html(content))
        say(f"written: {output or 'realised.html'}")


# -- Entry points ---------------------------------------------------------------------------------------------------


def ingest_run(
    bucket: Annotated[str, typer.Option(help=_BUCKET)],
    datasets: Datasets = "new",
    store: StoreOption = "default",
    retry_quarantine: Annotated[bool, typer.Option(help=_RETRY)] = False,
) -> None:
    """Read finished jobs from S3 into a store; invalid ones go to its quarantine, with the reason."""
    from calmlflow.runs.ingest import ingest_in_run

    print(ingest_in_run(bucket, datasets, store, retry_quarantine))


def copy_run(
    source: Annotated[str, typer.Option(help=_SOURCE)],
    target: Annotated[str, typer.Option(help=_TARGET)],
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
