"""Versions of the registry, read by plain HTTP or by MLflow, and found by whatever a user calls them."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.registry import versions
from calmlflow.registry.versions import explained, find_version, read_state
from tests.registry.conftest import SOURCE, add


def test_a_state_is_read_whole(client, model, monkeypatch):
    monkeypatch.setattr(versions, "PAGE", 2)
    add(client, model, 4, tags={"a": "b c"})
    add(client, model, description="my words", run_id=None)
    client.transition_model_version_stage(model, 3, "Production")
    client.set_registered_model_alias(model, "best", 2)
    state = read_state(model)
    assert state.stages == {1: "None", 2: "None", 3: "Production", 4: "None", 5: "None"}
    assert (state.aliases, state.held_by("Production"), state.held_by("Staging")) == ({"best": 2}, 3, None)
    found = client.get_model_version(model, "1")
    assert vars(state.versions[1]) == {
        "model": model, "number": 1, "stage": "None", "status": "READY", "source": SOURCE, "run_id": "",
        "description": "", "created_ms": found.creation_timestamp, "tags": {"a": "b c"},
    }  # fmt: skip
    assert state.versions[5].description == "my words"
    with pytest.raises(InputError, match="registered model no-such-model does not exist in the registry"):
        read_state("no-such-model")


def test_a_registry_without_a_server_is_read(tmp_path: Path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/registry.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
    client = MlflowClient(uri, uri)
    client.create_registered_model("m")
    client.create_model_version("m", SOURCE, await_creation_for=0, tags={"a": "b"})
    assert find_version("1", "m").tags == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1", 1), ("2", 2), ("Production", 3), ("production", 3), ("STAGING", 2), ("@best", 1), ("archived", 5),
        ("best", 1), ("Latest", 5), ("models:/MODEL/latest", 5),
        ("models:/MODEL/4", 4), ("models:/MODEL/Production", 3), ("models:/MODEL@best", 1),
        ("models:/MODEL/staging", 2),
    ],
)  # fmt: skip
def test_versions_are_named_by_number_stage_alias_or_uri(client, model, text, version):
    add(client, model, 5)
    client.transition_model_version_stage(model, 3, "Production")
    client.transition_model_version_stage(model, 2, "Staging")
    client.set_registered_model_alias(model, "best", 1)
    # Nothing is in Archived, but for the alias that stands for it where a registry has no stages.
    client.set_registered_model_alias(model, "archived", 5)
    found = find_version(text.replace("MODEL", model), "no-such-model" if "MODEL" in text else model)
    assert (found.model, found.number, str(found)) == (model, version, f"version {version} of {model}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("9", r"version 9 of MODEL does not exist in the registry; expected"),
        ("Production", r"no version of MODEL is in Production; expected one"),
        ("@none", r"version @none of MODEL does not exist in the registry; expected a stage"),
        ("None", r"version @None of MODEL does not exist in the registry; expected a stage"),
        ("@", r"'@' names no version; expected"),
        ("9" * 5000, r"'9+' names no version; expected"),
        ("", r"'' names no version; expected"),
        ("models:/nothing-of-that-name/1", r"registered model nothing-of-that-name does not exist in the registry"),
    ],
)
def test_a_version_that_does_not_exist_is_named(client, model, text, problem):
    add(client, model)
    with pytest.raises(InputError, match=problem.replace("MODEL", model)) as caught:
        find_version(text, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MlflowException("no", PERMISSION_DENIED), "lets me not move a version; expected the permission MANAGE"),
        (MlflowException("broken: x://user:word@host/\nmore", INTERNAL_ERROR), r"cannot move a version: broken: x://"),
    ],
)
def test_what_mlflow_refuses_is_one_sentence_without_a_password(error, words, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    found = explained(error, "a version", "move", "MANAGE")
    assert isinstance(found, CalmlflowError)
    with pytest.raises(CalmlflowError, match=words):
        raise found
    assert "word@" not in str(found)
    assert "\n" not in str(found)
