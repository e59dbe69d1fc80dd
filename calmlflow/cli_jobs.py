"""`calmlflow jobs`: ingest, copy and look after job records, without MLflow's help."""

import json
import re
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calmlflow import settings
from calmlflow.console import fail, new_app, say
from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.health import GAP_WINDOW_DAYS, RATE_DAYS, WINDOW_DAYS, Health, check_health, duration

app = new_app(help="Job records: where the next training comes from.", no_args_is_help=True)

StoreOption = Annotated[
    str,
    typer.Option(
        metavar="URI",
        help="sqlite:///jobs.db, postgresql://..., dynamodb://..., or a file; default CALMLFLOW_JOBS.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SHOWN_GAPS = 5


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
    max_age: Annotated[str, typer.Option(help="Age of the newest record at most: 36h, 2d, never.")] = "2d",
    as_json: JsonOption = False,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Add a point to the experiment calcloud-health.")] = True,
) -> None:
    """Tell what a store holds, how old it is, where it has gaps and what is in its quarantine.

    Exit status 1 when the newest record is older than --max-age, or the quarantine grows faster than it is emptied.
    """
    from calmlflow.jobs.sources import open_store

    max_age_s = parse_age(max_age)
    with closing(open_store(store or settings.jobs_uri())) as opened:
        health = check_health(opened, max_age_s)
    if as_json:
        print(json.dumps(health.as_json()))
    else:
        _print(health)
    if log:
        from calmlflow.health import log_health

        log_health(health)
    if health.in_future:
        say(f"warning: {health.in_future:,} records finished later than now; expected clocks that agree")
    for problem in health.problems[:-1]:
        say(f"error: {problem}")
    if health.problems:
        fail(health.problems[-1])


@app.command()
def ingest(
    bucket: Annotated[str, typer.Argument(help="S3 bucket with control/ and outputs/ of finished jobs.")],
    datasets: Annotated[
        str,
        typer.Option(
            help="new: all under outputs/ that are not stored; all; names with commas between; or a file that holds "
            "names, one a line, or a notification of S3."
        ),
    ] = "new",
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
    from calmlflow.ingestion import check_complete, ingest_jobs

    ingested = ingest_jobs(bucket, datasets, store or settings.jobs_uri(), retry_quarantine)
    kinds = {"reasons": ingested.reasons, "pending_datasets": ingested.pending}
    print(json.dumps({**ingested.figures(), **kinds}) if as_json else ingested)
    check_complete(ingested)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="Store to read: a URI, a file, a folder, an archive, or sample:N.")],
    target: Annotated[str, typer.Argument(help="Store to write: a URI, or a CSV or Parquet file, here or in S3.")],
    as_json: JsonOption = False,
) -> None:
    """Copy records from one store into another, counted on both sides; the newer record of a dataset wins."""
    from calmlflow.ingestion import copy_jobs

    copied = copy_jobs(source, target)
    print(json.dumps(copied.figures()) if as_json else copied)


# -- What a person reads --------------------------------------------------------------------------------------------


def _print(health: Health) -> None:
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 100)
    table = Table("", *BIN_NAMES, "all", title=f"Records of {health.store}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in zip(INSTRUMENTS.values(), health.table, strict=True):
        table.add_row(name, *(f"{count:,}" for count in row), f"{row.sum():,}")
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in health.by_bin().values()), f"{health.records:,}")
    console.print(table)
    lines = {
        "newest record": f"{health.newest}, {_ago(health.newest_age_s)}" if health.newest else "none",
        "last ingest": _ago(health.stored_age_s),
        f"stored per day, {RATE_DAYS} days": " ".join(f"{count:,}" for count in health.stored_per_day.values()),
        "stored per day, mean": f"{health.rate_week:,.1f} over 7 days, {health.rate_month:,.1f} over 30",
        "with answers of a training": f"{health.answered:,}",
        "mosaics": f"{health.mosaics:,}",
        "recorded predictions": f"{health.predictions:,}, the newest {_ago(health.prediction_age_s)}",
        f"quarantine, {WINDOW_DAYS} days": f"{health.added:,} added, {health.resolved:,} emptied",
        "quarantine, open": f"{sum(health.quarantine.values()):,}, the oldest {_ago(health.quarantine_age_s)}",
    }
    for name, text in lines.items():
        console.print(f"{name:28} {text}")
    for kind, count in health.quarantine.items():
        console.print(f"  {count:,} x {kind}, for example: {health.examples.get(kind, '')}", markup=False)
    shown = health.gaps[:_SHOWN_GAPS]
    more = f", the {len(shown)} longest" if len(health.gaps) > len(shown) else ""
    console.print(f"{f'gaps, {GAP_WINDOW_DAYS} days':28} {len(health.gaps):,}{more}")
    for gap in shown:
        until = "now" if gap.is_open else _moment(gap.end)
        console.print(f"  {duration(gap.end - gap.start)} without a finished job, {_moment(gap.start)} to {until}")
    console.print("healthy" if not health.problems else "not healthy")


def _ago(age_s: float | None) -> str:
    return "never" if age_s is None else f"{duration(age_s)} ago"


def _moment(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
