"""Write what `calmlflow jobs status` finds for Prometheus or CloudWatch."""

import json
from dataclasses import replace

from calmlflow.console import say
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.health import DAY_S, Health
from calmlflow.predictor.metrics import Sample, as_text, emf
from calmlflow.runs.realised import read_ended, realised_content

REALISED_DAYS = 30
"""Days over which realised figures are taken, so that they move."""

Figures = dict[str, float | None]


def realised_lately(data: str, predictions: str, now: float) -> Figures:
    """Jobs, coverage, excess dollars and excess cost of the last 30 days; None where undefined.

    ``data`` and ``predictions`` are as for `read_ended`; where they cannot be read, that is a warning.
    """
    try:
        content = realised_content(read_ended(data, predictions))
    except CalmlflowError as error:
        # The figures of the store are worth more than these.
        say(f"warning: no realised figures: {error}")
        return {}
    runs = content.runs[content.runs["finished_at"] > now - REALISED_DAYS * DAY_S]
    found = replace(content, runs=runs).figures["all"]
    dollars = found["paid"] - found["perfect"] if len(runs) else None
    shares = {name: found[name] for name in ("coverage", "excess_cost")}
    return {"jobs": len(runs), "excess_dollars": dollars, **shares}


def prometheus_text(health: Health, realised: Figures) -> str:
    """All figures of a store; one that is undefined is absent."""
    store = {"store": health.store}
    found: Figures = {
        "status_timestamp_seconds": health.moment,
        "store_healthy": int(not health.problems),
        "records": health.records,
        "newest_job_age_seconds": health.newest_age_s,
        **{f"realised_{name}": value for name, value in realised.items()},
    }
    samples: list[Sample] = [(f"calmlflow_{name}", store, n) for name, n in found.items() if n is not None]
    for name, counts in (("quarantine_open", health.quarantine_kinds), ("killed_jobs", health.killed_7d)):
        samples += [(f"calmlflow_{name}", {**store, "kind": kind}, n) for kind, n in counts.items()]
    return as_text(samples)


def emf_line(health: Health, realised: Figures) -> str:
    """The figures that alarms need, without dimensions, as one line for the log of a Lambda function or an agent."""
    found = {
        "AgeDays": None if health.newest_age_s is None else health.newest_age_s / DAY_S,
        "Quarantine": health.quarantine_open,
        "Coverage": realised.get("coverage"),
        "ExcessDollars": realised.get("excess_dollars"),
    }
    known = {name: (value, "None") for name, value in found.items() if value is not None}
    return json.dumps(emf(known, {}, [[]], health.moment))
