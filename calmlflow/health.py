"""The health of job records as a trend: one MLflow run a store, to which every look adds a point."""

import re
import time
from typing import TYPE_CHECKING

from calmlflow import settings
from calmlflow.console import say
from calmlflow.jobs.health import Health

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "calmlflow.store"


def figures(health: Health) -> dict[str, float]:
    """What is logged: name of a metric -> value; what is not known is left out."""
    found = {
        "records": health.records,
        **{f"records_{name.lower()}": count for name, count in health.by_instrument().items()},
        **{f"records_bin_{name}": count for name, count in health.by_bin().items()},
        "mosaics": health.mosaics,
        "predictions": health.predictions,
        "newest_age_hours": None if health.newest_age_s is None else health.newest_age_s / 3600,
        "stored_age_hours": None if health.stored_age_s is None else health.stored_age_s / 3600,
        "stored_per_day_7d": health.rate_week,
        "stored_per_day_30d": health.rate_month,
        "gaps": len(health.gaps),
        "longest_gap_hours": health.gaps[0].hours if health.gaps else 0.0,
        "quarantine_open": sum(health.quarantine.values()),
        **{f"quarantine_{re.sub('[^a-z]+', '_', kind)}": count for kind, count in health.quarantine.items()},
        "quarantine_added_7d": health.added,
        "quarantine_resolved_7d": health.resolved,
        "healthy": float(not health.problems),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def log_health(health: Health) -> None:
    """Add a point to the store's run in `settings.HEALTH_EXPERIMENT`; that MLflow is away costs a warning only."""
    try:
        run_id = _log(health)
    except Exception as error:
        # MLflow, and what it stands on, raise kinds of their own; the figures are what was asked for.
        reason = getattr(error, "error_code", None) or type(error).__name__
        say(f"warning: this look was not logged ({reason}); expected an MLflow server at MLFLOW_TRACKING_URI")
    else:
        say(f"logged to run {run_id} of experiment {settings.HEALTH_EXPERIMENT}")


def _log(health: Health) -> str:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from calmlflow.tracking import connect

    connect()
    client = MlflowClient()
    run_id = _run_of(client, health.store)
    now = int(time.time() * 1000)
    # Steps count looks, so that the plot has a point for each whether it is drawn over steps or over time.
    step = len(client.get_metric_history(run_id, "records"))
    metrics = [Metric(name, value, now, step) for name, value in figures(health).items()]
    client.log_batch(run_id, metrics=metrics)
    client.set_tag(run_id, "mlflow.note.content", "\n\n".join(health.problems) or "Healthy.")
    return run_id


def _run_of(client: "MlflowClient", store: str) -> str:
    """The run of a store: the oldest one with its name, so that two schedulers at once agree on it."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(settings.HEALTH_EXPERIMENT)
    try:
        number = experiment.experiment_id if experiment else client.create_experiment(settings.HEALTH_EXPERIMENT)
    except MlflowException:
        # Another one was first.
        experiment = client.get_experiment_by_name(settings.HEALTH_EXPERIMENT)
        if experiment is None:
            raise
        number = experiment.experiment_id
    quoted = store.replace("'", "")
    for _ in range(2):
        wanted, order = f"tags.`{_TAG}` = '{quoted}'", ["attributes.start_time ASC"]
        found = client.search_runs([number], wanted, max_results=1, order_by=order)
        if found:
            break
        run = client.create_run(number, tags={_TAG: quoted}, run_name=store)
        client.set_terminated(run.info.run_id)
    return str(found[0].info.run_id)
