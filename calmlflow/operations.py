"""Promotion and batch prediction as MLflow runs, so that they are written down."""

from pathlib import Path

import mlflow

from calmlflow.batch import predict_table
from calmlflow.hst.errors import InputError
from calmlflow.registry.promote import promote
from calmlflow.tracking import log_new_params, tracked_run


def promote_in_run(stage: str, version: str, model: str) -> str:
    """Promote as an MLflow run, so that the promotion is written down; ``version`` is a number or ``auto``."""
    with tracked_run("promote"):
        log_new_params({"stage": stage, "version": version, "model": model})
        if version != "auto" and not version.isdecimal():
            raise InputError(f"version is {version!r}; expected a number, or auto")
        promoted = promote(stage, None if version == "auto" else int(version), model)
        mlflow.set_tags({"promoted_model": model, "promoted_version": promoted.version})
        return f"{model} version {promoted.version} is in {promoted.current_stage}"


def predict_in_run(data: str, output: str, stage: str) -> str:
    """Predict a table as an MLflow run, so that it is written down which version answered."""
    with tracked_run("predict"):
        log_new_params({"data": data, "output": output, "stage": stage})
        outcome = predict_table(data, Path(output), stage)
        mlflow.set_tag("predicted_by_version", outcome.version)
        mlflow.log_metrics({"jobs_answered": outcome.answered, "jobs_failed": outcome.failed})
        return str(outcome)
