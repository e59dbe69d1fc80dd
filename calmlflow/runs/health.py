"""The health of job records as a trend: one MLflow run a store, to which every look adds a point."""

import hashlib
import re
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.console import say
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.health import Health
from calmlflow.registry.tracking import connect

_STORE = "calmlflow.store"
_STORE_ID = "calmlflow.store_id"


def figures(health: Health) -> dict[str, float]:
    """What is logged: name of a metric -> value; what is not known is left out."""
    quarantine, rate, gaps = health.quarantine, health.rate, health.silence.gaps
    ages_s = {
        "newest_age_hours": health.newest_age_s,
        "stored_age_hours": rate.newest_age_s,
        "prediction_age_hours": health.prediction_age_s,
        "quarantine_oldest_age_hours": quarantine.oldest_age_s,
    }
    counts = {
        "records": health.records,
        **{f"records_{name.lower()}": count for name, count in health.by_instrument().items()},
        **{f"records_bin_{name}": count for name, count in health.by_bin().items()},
        "records_answered": health.answered,
        "mosaics": health.mosaics,
        "predictions": health.predictions,
        "stored_last_day": rate.last_day,
        "stored_per_day_7d": rate.per_day_7,
        "stored_per_day_30d": rate.per_day_30,
        "gaps": len(gaps),
        "longest_gap_hours": gaps[0].length_s / 3600 if gaps else 0,
        "days_without_job": health.silence.days,
        "quarantine_open": quarantine.open,
        # What is in order by now is 0, so that its line comes down.
        **{f"quarantine_open_{_metric_name(name)}": kind.open for name, kind in quarantine.kinds.items()},
        "quarantine_added_7d": quarantine.added,
        "quarantine_resolved_7d": quarantine.resolved,
        "healthy": not health.problems,
    }
    found = {**counts, **{name: seconds / 3600 for name, seconds in ages_s.items() if seconds is not None}}
    return {name: float(value) for name, value in found.items()}


def _metric_name(kind: str) -> str:
    return re.sub("[^a-z0-9]+", "_", kind.lower()).strip("_")[:100] or "unknown"


def log_health(health: Health) -> bool:
    """Add a point to the store's run in `settings.HEALTH_EXPERIMENT`; that it cannot costs a warning only.

    Returns
    -------
    bool
        Whether it is there.
    """
    try:
        _log(health)
    except CalmlflowError as error:
        say(f"warning: not logged to MLflow: {error}")
    except Exception as error:
        # MLflow, and what it stands on, raise kinds of their own, whose texts may quote an address with its password.
        # Whatever it is, the figures stand, and a scheduler must get the status that belongs to them.
        reason = getattr(error, "error_code", None) or type(error).__name__
        say(f"warning: not logged to MLflow ({reason}); expected a server that keeps {settings.HEALTH_EXPERIMENT}")
    else:
        return True
    return False


def _log(health: Health) -> None:
    connect()
    client = MlflowClient()
    run_id = _run_of(client, health.store)
    # Seconds as steps: plots over steps and over time have the same shape, nobody has to count, and the metric's latest
    # value is the latest one, whoever else logs.
    metrics = [Metric(name, value, health.moment * 1000, health.moment) for name, value in figures(health).items()]
    note = "\n\n".join(health.problems) or "Healthy."
    client.log_batch(run_id, metrics=metrics, tags=[RunTag("mlflow.note.content", note)])
    client.set_terminated(run_id)


def _run_of(client: MlflowClient, store: str) -> str:
    """The run of a store, which is made if need be.

    MLflow cannot make a run only if there is none. So two that log for the first time at once may make two: of those
    the older one counts, and whoever sees the other deletes it. The last to make one sees them all.
    """
    experiment_id = _experiment(client)
    # Quotes in a name are no matter of a search then.
    store_id = hashlib.sha256(store.encode()).hexdigest()[:16]
    found = _runs_of(client, experiment_id, store_id)
    if not found:
        client.create_run(experiment_id, tags={_STORE: store[:5000], _STORE_ID: store_id}, run_name=store[:200])
        found = _runs_of(client, experiment_id, store_id)
    for younger in found[1:]:
        # Another one may be at it too.
        with suppress(MlflowException):
            client.delete_run(younger.info.run_id)
    return str(found[0].info.run_id)


def _runs_of(client: MlflowClient, experiment_id: str, store_id: str) -> list[Run]:
    runs = client.search_runs([experiment_id], f"tags.`{_STORE_ID}` = '{store_id}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(settings.HEALTH_EXPERIMENT)
    if found is None:
        try:
            return str(client.create_experiment(settings.HEALTH_EXPERIMENT))
        except MlflowException:
            # Another one was first.
            found = client.get_experiment_by_name(settings.HEALTH_EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise CalmlflowError(
            f"experiment {settings.HEALTH_EXPERIMENT} is deleted; expected it to be there: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)
