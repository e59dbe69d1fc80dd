"""Log the health of job records as a trend: one MLflow run per store, one point per check."""

import hashlib
import re
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.health import Health
from calmlflow.registry.tracking import connect, open_experiment

_STORE = "calmlflow.store"
_STORE_ID = "calmlflow.store_id"


def figures(health: Health) -> dict[str, float]:
    """Metrics of a check; unknown figures are left out."""
    found = {
        "records": health.records,
        **{f"records_{name.lower()}": count for name, count in health.by_instrument().items()},
        **{f"records_bin_{name}": count for name, count in health.by_bin().items()},
        "mosaics": health.mosaics,
        "predictions": health.predictions,
        **{f"killed_{kind}": count for kind, count in health.killed.items()},
        **{f"killed_{kind}_7d": count for kind, count in health.killed_7d.items()},
        "stored_7d": sum(health.stored_by_day.values()),
        "quarantine_open": health.quarantine_open,
        # Kinds without open entries are 0, so that their lines come down.
        **{f"quarantine_open_{_metric_name(kind)}": count for kind, count in health.quarantine_kinds.items()},
        "quarantine_added_7d": health.quarantine_added_7d,
        "quarantine_resolved_7d": health.quarantine_resolved_7d,
        "healthy": not health.problems,
        **({} if health.newest_age_s is None else {"newest_age_hours": health.newest_age_s / 3600}),
    }
    return {name: float(value) for name, value in found.items()}


def _metric_name(kind: str) -> str:
    return re.sub("[^a-z0-9]+", "_", kind.lower()).strip("_")[:100] or "unknown"


def log_health(health: Health) -> bool:
    """Add a point to the store's run in `settings.HEALTH_EXPERIMENT`; return whether it was logged, or warn."""
    # Seconds as steps: plots over steps and over time have the same shape, and the latest value is the latest check's.
    metrics = [Metric(name, value, health.moment * 1000, health.moment) for name, value in figures(health).items()]
    note = RunTag("mlflow.note.content", "\n\n".join(health.problems) or "Healthy.")
    try:
        connect()
        client = MlflowClient()
        run_id = _run_of(client, health.store)
        client.log_batch(run_id, metrics=metrics, tags=[note])
        client.set_terminated(run_id)
    except Exception as error:
        # Whatever it is, a scheduler must get the exit status that belongs to the figures. The texts of MLflow's errors
        # may quote an address with its password.
        reason = error if isinstance(error, CalmlflowError) else getattr(error, "error_code", type(error).__name__)
        say(f"warning: not logged to MLflow: {reason}")
        return False
    return True


def _run_of(client: MlflowClient, store: str) -> str:
    """The run of a store, made if need be; of several that were made at once, the oldest."""
    experiment_id = open_experiment(client, settings.HEALTH_EXPERIMENT)
    # A name may hold quotes, which a filter cannot.
    store_id = hashlib.sha256(store.encode()).hexdigest()[:16]

    def runs() -> list[str]:
        found = client.search_runs([experiment_id], f"tags.`{_STORE_ID}` = '{store_id}'")
        return [str(run.info.run_id) for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))]

    if not runs():
        client.create_run(experiment_id, tags={_STORE: store[:5000], _STORE_ID: store_id}, run_name=store[:200])
    oldest, *others = runs()
    for other in others:
        # Another process may be deleting it.
        with suppress(MlflowException):
            client.delete_run(other)
    return oldest
