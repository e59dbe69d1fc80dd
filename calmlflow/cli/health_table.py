"""The health of job records for a person, in 80 columns."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calmlflow.hst.dataset import INSTRUMENTS
from calmlflow.hst.ladder import BIN_NAMES
from calmlflow.jobs.health import Health
from calmlflow.jobs.health_parts import WINDOW_DAYS
from calmlflow.jobs.silence import GAP_DAYS, duration

SHOWN_GAPS = 5
_BAR = 40


def show_health(health: Health, console: Console) -> None:
    """Print what `calmlflow.jobs.health.check_health` found."""
    console.print(_text(f"{health.store}, {_moment(health.moment)}"), style="bold")
    console.print(_records(health))
    figures = Table.grid(padding=(0, 2))
    figures.add_column(no_wrap=True)
    figures.add_column(overflow="fold")
    for name, text in _figures(health):
        figures.add_row(name, _text(text))
    console.print(figures)
    if health.quarantine.open:
        console.print(_quarantine(health))
    if any(health.rate.by_day.values()):
        console.print(_days(health))
    verdict = f"not healthy: {len(health.problems)} problems" if len(health.problems) > 1 else "not healthy"
    console.print(verdict if health.problems else "healthy", style="bold red" if health.problems else "bold green")


def _records(health: Health) -> Table:
    table = Table("records", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (*BIN_NAMES, "all"):
        table.add_column(heading, justify="right")
    for name, row in zip(INSTRUMENTS.values(), health.table.tolist(), strict=True):
        table.add_row(name, *(f"{count:,}" for count in row), f"{sum(row):,}")
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in health.by_bin().values()), f"{health.records:,}")
    return table


def _figures(health: Health) -> Iterator[tuple[str, str]]:
    rate, silence, quarantine = health.rate, health.silence, health.quarantine
    yield "newest record", f"{health.newest}, finished {_ago(health.newest_age_s)}" if health.newest else "none"
    yield "last stored", _ago(rate.newest_age_s)
    yield (
        "stored a day",
        f"{rate.last_day:,} in the last day, {rate.per_day_7:,.1f} over 7 days, {rate.per_day_30:,.1f} over 30",
    )
    yield "answered", f"{health.answered:,} records with the answers of a training"
    yield "mosaics", f"{health.mosaics:,}"
    predicted = f", the newest {_ago(health.prediction_age_s)}" if health.predictions else ""
    yield "predictions", f"{health.predictions:,}{predicted}"
    oldest = f", the oldest from {_ago(quarantine.oldest_age_s)}" if quarantine.open else ""
    yield (
        "quarantine",
        f"{quarantine.open:,} open{oldest}; "
        f"{quarantine.added:,} in and {quarantine.resolved:,} out in {WINDOW_DAYS} days",
    )
    rest = f", {silence.runs:,} times, {silence.longest_run:,} in a row at most" if silence.days else ""
    yield "days without job", f"{silence.days:,} of the last {GAP_DAYS}{rest}"
    more = f", the longest {SHOWN_GAPS} are" if len(silence.gaps) > SHOWN_GAPS else ""
    yield "gaps", f"{len(silence.gaps):,} of more than {duration(silence.limit_s)}{more}"
    for gap in silence.gaps[:SHOWN_GAPS]:
        yield "", f"{duration(gap.length_s)}, {_moment(gap.start)} to {'now' if gap.is_open else _moment(gap.end)}"


def _quarantine(health: Health) -> Table:
    table = Table("quarantine", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("open", justify="right")
    table.add_column("most frequent reason, an example", overflow="fold")
    for name, kind in health.quarantine.kinds.items():
        if kind.open:
            table.add_row(_text(name), f"{kind.open:,}", _text(f"{kind.alike:,} like {kind.dataset}: {kind.reason}"))
    return table


def _days(health: Health) -> Table:
    table = Table("stored on", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("records", justify="right")
    table.add_column("", no_wrap=True)
    most = max(health.rate.by_day.values())
    for day, count in health.rate.by_day.items():
        table.add_row(day, f"{count:,}", "#" * -(-count * _BAR // most))
    return table


def _ago(age_s: int | None) -> str:
    return "never" if age_s is None else f"{duration(age_s)} ago"


def _moment(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _text(text: str) -> Text:
    """Text from a store is shown, not obeyed: neither as markup nor by the terminal."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
