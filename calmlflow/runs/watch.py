"""Write what `calmlflow jobs status` finds for Prometheus or CloudWatch."""

import json

from calmlflow.console import say
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.health import DAY_S, Health
from calmlflow.predictor.metrics import Measured, Sample, as_text, emf
from calmlflow.results.realised import ended_runs, join_predictions, share
from calmlflow.runs.realised import read_ended

REALISED_DAYS = 30
"""Days over which realised figures are taken, so that they move."""


def realised_lately(data: str, predictions: str, now: float) -> dict[str, float]:
    """Jobs, coverage, excess dollars and excess cost of the last 30 days, as far as they are defined.

    ``data`` and ``predictions`` are as for `read_ended`; where they cannot be read, that is a warning.
    """
    try:
        ended = read_ended(data, predictions)
    except CalmlflowError as error:
        # The figures of the store are worth more than these.
        say(f"warning: no realised figures: {error}")
        return {}
    runs = join_predictions(ended_runs(ended.jobs.valid, ended.killed), ended.recorded.predictions).judged
    runs = runs[runs["finished_at"] > now - REALISED_DAYS * DAY_S]
    found = {"jobs": float(len(runs))}
    if runs["judged"].any():
        found["coverage"] = share(runs, "covered", "judged")[0]
    paid, perfect = (float(runs[name].sum()) for name in ("paid", "perfect"))
    if len(runs):
        found["excess_dollars"] = paid - perfect
    if perfect > 0:
        found["excess_cost"] = paid / perfect - 1
    return found


def prometheus_text(health: Health, realised: dict[str, float]) -> str:
    """All figures of a store; one that is undefined is absent."""
    store = {"store": health.store}
    samples: list[Sample] = [
        ("calmlflow_status_timestamp_seconds", store, health.moment),
        ("calmlflow_store_healthy", store, not health.problems),
        ("calmlflow_records", store, health.records),
        *(("calmlflow_quarantine_open", {**store, "kind": kind}, n) for kind, n in health.quarantine_kinds.items()),
        *(("calmlflow_killed_jobs", {**store, "kind": kind}, n) for kind, n in health.killed_7d.items()),
        *((f"calmlflow_realised_{name}", store, value) for name, value in realised.items()),
    ]
    if health.newest_age_s is not None:
        samples.append(("calmlflow_newest_job_age_seconds", store, health.newest_age_s))
    return as_text((name, labels, float(value)) for name, labels, value in samples)


def emf_line(health: Health, realised: dict[str, float]) -> str:
    """The figures that alarms need, without dimensions, as one line for the log of a Lambda function or an agent."""
    measured = {"Quarantine": Measured(health.quarantine_open)}
    if health.newest_age_s is not None:
        measured["AgeDays"] = Measured(health.newest_age_s / DAY_S, "None")
    for key, name in (("coverage", "Coverage"), ("excess_dollars", "ExcessDollars")):
        if key in realised:
            measured[name] = Measured(realised[key], "None")
    return json.dumps(emf(measured, {}, [[]], health.moment))
