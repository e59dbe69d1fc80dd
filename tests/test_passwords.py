"""Passwords in addresses are hidden in texts, refused as parameters, and nowhere written."""

import json
import sys

import pytest
from mlflow import MlflowClient

from calmlflow.errors import InputError
from calmlflow.settings import hide_password, refuse_password
from tests.samples.commands import run

SECRET = "hunter2"
URI = f"postgresql://somebody:{SECRET}@127.0.0.1:1/jobs"
ENTRIES = {
    "main": ["--data", URI],
    "crossval": ["--data", URI],
    "tune": ["--data", URI],
    "retrain": ["--data", "sample:50", "--predictions", URI],
    "predict": ["--data", URI],
    "ingest": ["--bucket", "bucket", "--store", URI],
    "copy": ["--source", "sample:3", "--target", URI],
}
RUN_ALL = """
import json, runpy, sys
for entry, words in json.loads(sys.argv.pop()).items():
    sys.argv[1:] = words
    try:
        runpy.run_module(f"entrypoints.{entry}", run_name="__main__")
    except SystemExit as end:
        print(entry, end.code)
"""


def test_no_entry_point_writes_a_password_down(server, tracking, tmp_path):
    name = f"passwords-{tmp_path.name}"
    words = [sys.executable, "-c", RUN_ALL, json.dumps(ENTRIES)]
    done = run(server, *words, MLFLOW_EXPERIMENT_NAME=name, PGCONNECT_TIMEOUT="2")
    assert done.stdout.split("\n")[:-1] == [f"{entry} 1" for entry in ENTRIES]
    assert SECRET not in done.stdout + done.stderr
    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    for found in client.search_runs([experiment.experiment_id]) if experiment else []:
        assert SECRET not in str(found.to_dictionary())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URI, "postgresql://somebody:***@127.0.0.1:1/jobs"),
        (f" {URI}", " postgresql://somebody:***@127.0.0.1:1/jobs"),
        (f"postgresql://u@h/d?password={SECRET}&x=1", "postgresql://u@h/d?password=***&x=1"),
        (f"postgresql://u@h/d?password=with space {SECRET}", "postgresql://u@h/d?password=***"),
        (f"postgresql://u@h/d?x=%20&p%61ssword={SECRET}", "postgresql://u@h/d?x=%20&p%61ssword=***"),
        (f"postgresql://u:two\nlines{SECRET}@h/d", "postgresql://u:***@h/d"),
        (f"postgresql+psycopg://u:a@b:{SECRET}@h/d", "postgresql+psycopg://u:***@h/d"),
        (f"mysql+pymysql://u:p/{SECRET}@h/db", "mysql+pymysql://u:***@h/db"),
        (f"http://user:p@{SECRET}@host:5000/path", "http://***@host:5000/path"),
        (f"https://{SECRET}@host", "https://***@host"),
        (f"dynamodb://T?endpoint=http://u:{SECRET}@h", "dynamodb://T?endpoint=http://***@h"),
        (f"https://b.s3/key?X-Amz-Signature={SECRET}", "https://b.s3/key?X-Amz-Signature=***"),
        (f"s3://key:p%40{SECRET}@store and {URI}", f"s3://key:***@store and {hide_password(URI)}"),
        (f"asked http://a:{SECRET}@h, then {URI}.", f"asked http://***@h, then {hide_password(URI)}."),
    ],
)
def test_a_password_is_hidden_in_every_spelling(text, shown):
    assert hide_password(text) == shown
    assert hide_password(shown) == shown
    with pytest.raises(InputError, match="holds a password"):
        refuse_password(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {SECRET}.x-y_z= was refused", "Authorization: *** was refused"),
        (f"{{'authorization': 'Basic {SECRET}'}}", "{'authorization': '***'}"),
        (f"sent bearer {SECRET}, then", "sent bearer ***, then"),
        ("no key AKIAIOSFODNN7EXAMPLE or ASIAIOSFODNN7EXAMPLE here", "no key *** or *** here"),
        (f"aws_secret_access_key = {SECRET}/x+y\nregion = a", "aws_secret_access_key = ***\nregion = a"),
        (f'{{"SecretAccessKey": "{SECRET} x", "a": 1}}', '{"SecretAccessKey": ***, "a": 1}'),
        (f"password={SECRET}, token: '{SECRET}' and DB_SECRET={SECRET}", "password=***, token: *** and DB_SECRET=***"),
    ],
)
def test_a_secret_in_a_text_is_hidden(text, shown):
    assert hide_password(text) == shown
    assert hide_password(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("postgresql://u@h/d", "sqlite:///a:b@c.db", "jobs.csv", "s3://bucket/a@b.csv", "sample"),
        *("http://host:5000/path?x=a@b", "http://host/calcloud@production", "dynamodb://jobs?region=eu-west-1"),
        *("the bearer of a token reads secrets", "set MLFLOW_TRACKING_TOKEN or PGPASSWORD, a password"),
        *("http://host:5000/a and mail@somebody", "postgresql://u@h/d?password=*** cannot be opened (no answer); see"),
    ],
)
def test_what_holds_no_password_stays(text):
    assert hide_password(text) == text
    refuse_password(text)


def test_a_reason_may_speak_of_a_token():
    refuse_password("rotated token: now fixed")
    with pytest.raises(InputError, match="holds a password"):
        refuse_password(f"from {URI}")
