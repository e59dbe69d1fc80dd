"""Report what finished and killed jobs cost, month by month."""

from datetime import UTC, datetime

from calmlflow.jobs.killed import read_killed
from calmlflow.jobs.predictions import Recorded, read_recorded
from calmlflow.jobs.records import sort_records
from calmlflow.jobs.stores.open import is_database, read_table
from calmlflow.results.report.realised import RealisedContent, realised_runs
from calmlflow.settings import hide_password


def read_realised(data: str, predictions: str = "none") -> RealisedContent:
    """Read the jobs of a store that have ended, and hold them against recorded predictions.

    ``predictions`` is a URI as for `read_recorded`, or ``none``: those in the store, if it is a database.
    """
    jobs, killed = sort_records(read_table(data), hide_password(data)).valid, read_killed(data)
    place = data if predictions == "none" and is_database(data) else predictions
    names = {*jobs["ipst"], *killed["ipst"]}
    recorded = Recorded() if place == "none" else read_recorded(place, names)
    runs, left_out = realised_runs(jobs, killed, recorded.predictions)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return RealisedContent(hide_password(data), created, runs, len(jobs) + len(killed), left_out, recorded.unreadable)
