"""Which version a stage holds, whatever the registry answers; and its files on disk."""

import json

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.predictor.registry_client import AccessDeniedError, RegistryUnavailableError
from calmlflow.predictor.stage import NoSuchVersionError, StagedVersion, resolve_stage
from tests.samples.predictor_samples import (
    ALIASES,
    NO_ALIAS,
    NO_PAGE,
    NOTHING,
    STAGES,
    aliased,
    empty_database,
    http_registry,
    source,
    staged,
    write_bundle,
)

JOB = [[17, 10, 1, 0, 0, 0, 0, 1, 0]]


@pytest.fixture(scope="module")
def server():
    with http_registry() as found:
        yield found


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "5")


def resolve(server, stages, alias=NO_ALIAS, stage="Production"):
    server.answers = {STAGES: stages, ALIASES: alias}
    server.queries.clear()
    return resolve_stage(stage, server.uri)


def test_the_stage_says_which_version(server):
    assert resolve(server, staged("7"), aliased("8")) == StagedVersion("7", source("7"))
    assert server.queries == [(STAGES, {"name": ["calcloud-predictor"], "stages": ["Production"]})]


@pytest.mark.parametrize(
    "stages",
    [NOTHING, (200, b'{"model_versions": []}'), NO_PAGE, (405, b""), (501, b"")],
)
def test_the_alias_says_where_the_stage_does_not(server, stages):
    assert resolve(server, stages, aliased("8"), "Staging") == StagedVersion("8", source("8"))
    assert server.queries[-1] == (ALIASES, {"name": ["calcloud-predictor"], "alias": ["staging"]})


UNKNOWN = (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')


@pytest.mark.parametrize(
    ("stages", "alias"),
    [
        *((stages, alias) for stages in (NOTHING, UNKNOWN) for alias in (NO_ALIAS, UNKNOWN, NO_PAGE)),
        (NO_PAGE, NO_ALIAS),
    ],
)
def test_neither_says(server, stages, alias):
    with pytest.raises(NoSuchVersionError, match=r"no version of calcloud-predictor is in stage Production") as caught:
        resolve(server, stages, alias)
    assert server.uri in str(caught.value)
    assert "calmlflow promote --stage Production" in str(caught.value)


@pytest.mark.parametrize("stages", [NO_PAGE, (404, b'{"message": "no route"}'), (200, b'{"status": "maintenance"}')])
def test_what_is_no_registry_is_no_empty_stage(server, stages):
    with pytest.raises(RegistryUnavailableError):
        resolve(server, stages, NO_PAGE)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_ends_the_search(server, status):
    with pytest.raises(AccessDeniedError):
        resolve(server, (status, b""), aliased("8"))
    with pytest.raises(AccessDeniedError):
        resolve(server, NOTHING, (status, b""))


@pytest.mark.parametrize("answer", [(500, b"oops"), (200, b"<html>"), (503, b"{}")])
def test_an_answer_that_cannot_be_used_is_no_empty_stage(server, answer):
    with pytest.raises(RegistryUnavailableError):
        resolve(server, answer, aliased("8"))
    with pytest.raises(RegistryUnavailableError):
        resolve(server, NOTHING, answer)


def test_no_answer_in_time(server, monkeypatch):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    with pytest.raises(RegistryUnavailableError, match="no answer in time"):
        resolve(server, None)


def test_nobody_listens(ports):
    with pytest.raises(RegistryUnavailableError, match="ConnectionRefusedError"):
        resolve_stage("Production", f"http://127.0.0.1:{ports[0]}")


@pytest.mark.parametrize(
    "answer",
    [
        staged("latest"), staged(""), staged("../1"), staged("1.5"), staged("-1"), staged("9" * 300), staged("\u0661"),
        *((200, json.dumps({"model_versions": found}).encode()) for found in (
            "1", {"version": "1"}, ["1"], [None], [{"version": "1"}], [{"source": "s"}],
            [{"version": None, "source": 1}],
        )),
    ],
)  # fmt: skip
def test_a_version_that_is_no_number_is_refused(server, answer):
    with pytest.raises(RegistryUnavailableError, match=r"named the version .*; expected a number"):
        resolve(server, answer)


@pytest.mark.parametrize("answer", [NOTHING, (500, b"oops"), (401, b""), staged("latest"), None])
def test_no_error_tells_the_password(server, monkeypatch, answer):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    server.answers = {STAGES: answer, ALIASES: NO_ALIAS}
    server.authorizations.clear()
    with pytest.raises(CalmlflowError) as caught:
        resolve_stage("Production", server.uri.replace("//", "//us%40er:p%2Fw0rd@"))
    assert server.passwords() == {"us@er:p/w0rd"}
    assert "w0rd" not in str(caught.value)
    assert "us" + "%40er" not in str(caught.value)


# -- A registry that is no HTTP server ---------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Its address; `publish` puts bundles into it."""
    import mlflow

    (tmp_path / "registry.db").write_bytes(empty_database())
    uri = f"sqlite:///{tmp_path}/registry.db"
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    yield uri
    mlflow.set_tracking_uri(None)


def publish(uri, folder, seed=0) -> StagedVersion:
    """A bundle becomes the newest version."""
    from mlflow import MlflowClient

    write_bundle(folder / "artifacts" / "bundle", seed)
    found = MlflowClient(uri, uri).create_model_version(settings.BUNDLE_MODEL, f"file://{folder}")
    return StagedVersion(str(found.version), found.source)


def wallclock(bundle) -> float:
    return bundle.predict(JOB)["wall_pred"][0]


def test_a_registry_in_a_database_is_asked_too(registry, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(registry, registry)
    first, second = (publish(registry, tmp_path / name) for name in ("one", "two"))
    with pytest.raises(NoSuchVersionError):
        resolve_stage("Production", registry)
    client.set_registered_model_alias(settings.BUNDLE_MODEL, "production", first.version)
    assert resolve_stage("Production", registry) == first
    client.transition_model_version_stage(settings.BUNDLE_MODEL, second.version, "Production")
    assert resolve_stage("Production", registry) == second


def test_a_database_that_is_none_cannot_be_asked(tmp_path, monkeypatch):
    (tmp_path / "registry.db").write_text("a shopping list")
    uri = f"sqlite:///{tmp_path}/registry.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryUnavailableError, match=r"registry.db cannot be asked \(DatabaseError\)"):
        resolve_stage("Production", uri)


def test_a_database_that_is_gone_is_not_made_anew(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/gone.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryUnavailableError, match=r"gone\.db does not exist"):
        resolve_stage("Production", uri)
    assert list(tmp_path.iterdir()) == []
