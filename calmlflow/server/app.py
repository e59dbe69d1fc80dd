"""The application that the process of the MLflow server runs."""

import os
from typing import Any

import sqlalchemy as sa


class _Number(sa.Integer):
    """A whole number also where it is compared with a text.

    To move a stage, MLflow compares the number of a version with its text. psycopg2 leaves it to PostgreSQL to read
    that; for psycopg 3, SQLAlchemy says that it is a text, and PostgreSQL refuses.
    """

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        del op, value
        return self


def create_app() -> Any:
    """MLflow's application, with users where the environment names their configuration."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

    SqlModelVersion.__table__.c.version.type = _Number()
    if "MLFLOW_AUTH_CONFIG_PATH" in os.environ:
        from mlflow.server import auth

        return auth.create_app()
    from mlflow.server import fastapi_app

    return fastapi_app.app
