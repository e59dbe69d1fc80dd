"""No entry point writes a password down, whatever it does with the address that holds it."""

import pytest
from mlflow import MlflowClient

from calmlflow.jobs.stores.open import has_password, public_uri
from tests.samples.commands import run

SECRET = "hunter2"
URI = f"postgresql://somebody:{SECRET}@127.0.0.1:1/jobs"
ENTRIES = {
    "main": ["--data", URI],
    "crossval": ["--data", URI],
    "tune": ["--data", URI],
    "predict": ["--data", URI],
    "ingest": ["--bucket", "bucket", "--store", URI],
    "copy": ["--source", "sample:3", "--target", URI],
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_password_in_an_address_is_refused_and_nowhere_written(server, tracking, tmp_path, entry):
    name = f"passwords-{entry}-{tmp_path.name}"
    words = ["python", "-m", f"entrypoints.{entry}", *ENTRIES[entry]]
    done = run(server, *words, MLFLOW_EXPERIMENT_NAME=name, PGCONNECT_TIMEOUT="2")
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    for found in client.search_runs([experiment.experiment_id]) if experiment else []:
        assert SECRET not in str(found.to_dictionary())


@pytest.mark.parametrize(
    "uri",
    [
        URI,
        f" {URI}",
        f"postgresql://u@h/d?password={SECRET}",
        f"postgresql://u@h/d?p%61ssword={SECRET}",
        f"postgresql://u:two\nlines{SECRET}@h/d",
        f"postgresql+psycopg://u:a@b:{SECRET}@h/d",
    ],
)
def test_a_password_is_known_in_every_spelling(uri):
    assert has_password(uri)
    assert SECRET not in public_uri(uri)


@pytest.mark.parametrize(
    "uri", ["postgresql://u@h/d", "sqlite:///a:b@c.db", "jobs.csv", "s3://bucket/a@b.csv", "sample"]
)
def test_what_holds_no_password(uri):
    assert not has_password(uri)
    assert public_uri(uri) == uri
