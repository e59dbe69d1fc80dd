"""Report what finished and killed jobs cost, month by month."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.predictions import Recorded, read_recorded
from calmlflow.jobs.records import Checked, sort_records
from calmlflow.jobs.stores.open import is_database, read_table
from calmlflow.results.report.realised import RealisedContent, realised_runs
from calmlflow.settings import hide_password


@dataclass(frozen=True)
class Ended:
    """Jobs of a store that have ended, and the predictions recorded for them."""

    data: str  # where they came from, without a password
    jobs: Checked
    killed: pd.DataFrame  # see `read_killed`
    recorded: Recorded


def read_ended(data: str, predictions: str = "none", seed: int = 0) -> Ended:
    """Read finished and killed jobs with their recorded predictions.

    ``data`` and ``seed`` are as for `read_table`. ``predictions`` is a URI as for `read_recorded`, or ``none``: those
    in the store, if it is a database.
    """
    shown = hide_password(data)
    jobs, killed = sort_records(read_table(data, seed), shown), read_killed(data)
    place = data if predictions == "none" and is_database(data) else predictions
    names = {*jobs.valid["ipst"], *killed["ipst"]}
    return Ended(shown, jobs, killed, Recorded() if place == "none" else read_recorded(place, names))


def realised_content(ended: Ended) -> RealisedContent:
    """Hold jobs that have ended against their predictions."""
    jobs, killed = ended.jobs.valid, ended.killed
    runs, left_out = realised_runs(jobs, killed, ended.recorded.predictions)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return RealisedContent(ended.data, created, runs, len(jobs) + len(killed), left_out, ended.recorded.unreadable)
