"""Requests to the registry, everything that can be wrong with their answers, and the version in a stage."""

import json

import pytest

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.predictor.http_client import AccessDeniedError
from calmlflow.predictor.registry_client import (
    NoEndpointError,
    NoSuchVersionError,
    RegistryUnavailableError,
    StagedVersion,
    check_reachable,
    get_json,
    registry_name,
    resolve_stage,
)
from calmlflow.settings import BUNDLE_MODEL
from tests.samples.predictor_samples import (
    ALIASES,
    NO_ALIAS,
    NO_PAGE,
    NOTHING,
    STAGES,
    VERSION,
    aliased,
    empty_database,
    http_registry,
    source,
    staged,
)

MISSING = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'


@pytest.fixture(autouse=True)
def anonymous(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def stub():
    with http_registry() as found:
        yield found


def ask(stub, status: int, body: bytes):
    stub.answers["/path"] = status, body
    return get_json(stub.uri, "/path", "a")


def test_an_answer_is_read_whatever_else_a_later_version_says(stub):
    assert ask(stub, 200, b'{"a": [1]}') == {"a": [1]}
    assert ask(stub, 200, b'{"a": [1], "b": 2}') == {"a": [1], "b": 2}
    assert ask(stub, 200, b"{}") == {}


def test_a_server_without_workspaces_is_told(stub, monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "hst-cal")
    with pytest.raises(RegistryUnavailableError, match=r"has no workspaces; expected .*--enable-workspaces"):
        ask(stub, 400, b'{"error_code": "FEATURE_DISABLED"}')


@pytest.mark.parametrize(("status", "body"), [(404, MISSING), (400, b'{"error_code": "INVALID_PARAMETER_VALUE"}')])
def test_what_the_registry_does_not_have_is_none(stub, status, body):
    assert ask(stub, status, body) is None


@pytest.mark.parametrize(("status", "body"), [(404, b"<html>"), (405, b""), (501, b"no"), (404, b'{"message": "no"}')])
def test_what_has_no_such_endpoint_is_told_from_what_holds_nothing(stub, status, body):
    with pytest.raises(NoEndpointError, match=f"status {status}"):
        ask(stub, status, body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"), (200, b"[]"), (200, b'{"b": 1}'), (200, b"\xff"), (200, b"[" * 100_000),
        (500, b"{}"), (302, b"{}"), (429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED"}'),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_used_is_told_with_the_server(stub, status, body):
    with pytest.raises(RegistryUnavailableError, match=f"status {status}") as caught:
        ask(stub, status, body)
    assert stub.uri in str(caught.value)


def test_a_path_before_the_api_is_kept(stub):
    stub.answers["/behind/proxy/path"] = 200, b'{"a": 1}'
    assert get_json(f"{stub.uri}/behind/proxy/", "/path", "a") == {"a": 1}


SECRET = "http://us%40er:p%2Fss%3Aw0rd@"


@pytest.mark.parametrize("answer", [(500, b"oops"), (401, b""), None])
def test_no_error_tells_the_password(stub, monkeypatch, answer):
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    stub.answers["/path"] = answer
    stub.authorizations.clear()
    with pytest.raises(CalmlflowError) as caught:
        get_json(stub.uri.replace("http://", SECRET), "/path", "a")
    assert stub.passwords() == {"us@er:p/ss:w0rd"}
    assert stub.uri.removeprefix("http://") in str(caught.value)
    assert ("no answer in time" in str(caught.value)) == (answer is None)
    for part in ("us%40er", "us@er", "w0rd"):
        assert part not in str(caught.value)


def test_whether_a_server_answers(stub, ports):
    stub.answers["/health"] = 200, b"OK"
    check_reachable(stub.uri)
    check_reachable("sqlite:///nothing.db")
    with pytest.raises(RegistryUnavailableError, match=str(ports[0])):
        check_reachable(f"http://127.0.0.1:{ports[0]}")


# -- The version in a stage ----------------------------------------------------------------------------------------


def resolve(stub, stages, alias=NO_ALIAS, stage="Production"):
    stub.answers = {STAGES: stages, ALIASES: alias}
    stub.queries.clear()
    return resolve_stage(stage, stub.uri)


def test_the_stage_says_which_version(stub):
    assert resolve(stub, staged("7"), aliased("8")) == StagedVersion("7", source("7"))
    assert stub.queries == [(STAGES, {"name": ["calcloud-predictor"], "stages": ["Production"]})]


def test_the_registry_says_the_digest_of_the_bundle(stub):
    tags = [{"key": "jobs", "value": "1"}, {"key": "empty"}, {"key": "bundle_sha256", "value": "ab" * 32}]
    found = {"version": "7", "source": source("7"), "tags": tags}
    assert resolve(stub, (200, json.dumps({"model_versions": [found]}).encode())).sha256 == "ab" * 32
    assert resolve(stub, NOTHING, (200, json.dumps({"model_version": found}).encode())).sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("which", "path", "query", "answer"),
    [
        ("7", VERSION, {"version": ["7"]}, aliased("7")),
        ("@best_one", ALIASES, {"alias": ["best_one"]}, aliased("7")),
    ],
)
def test_a_number_or_an_alias_says_which_version(stub, which, path, query, answer):
    stub.answers = {path: answer}
    stub.queries.clear()
    assert resolve_stage(which, stub.uri) == StagedVersion("7", source("7"))
    assert stub.queries == [(path, {"name": ["calcloud-predictor"], **query})]


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("7", "calcloud-predictor has no version 7 on"),
        ("latest", "calcloud-predictor has no version on"),
        ("@bset", r"no version of calcloud-predictor has the alias bset on .*expected a stage \(Staging, Production"),
        ("Staging", "is in stage Staging on"),
    ],
)
def test_what_names_no_version_is_told(stub, monkeypatch, which, words):
    stub.answers = {STAGES: NOTHING, ALIASES: NO_ALIAS, VERSION: UNKNOWN, VERSION.replace("get", "search"): NOTHING}
    monkeypatch.setenv("MLFLOW_WORKSPACE", "hst-cal")
    with pytest.raises(NoSuchVersionError, match=f"{words}.*, workspace hst-cal;" if which != "@bset" else words):
        resolve_stage(which, stub.uri)


UNKNOWN = (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')


@pytest.mark.parametrize("stages", [NOTHING, (200, b'{"model_versions": []}'), NO_PAGE])
def test_the_alias_says_where_the_stage_does_not(stub, stages):
    assert resolve(stub, stages, aliased("8"), "Staging") == StagedVersion("8", source("8"))
    assert stub.queries[-1] == (ALIASES, {"name": ["calcloud-predictor"], "alias": ["staging"]})


@pytest.mark.parametrize(
    ("stages", "alias"), [(NOTHING, NO_ALIAS), (UNKNOWN, UNKNOWN), (NOTHING, NO_PAGE), (NO_PAGE, NO_ALIAS)]
)
def test_neither_says(stub, stages, alias):
    with pytest.raises(NoSuchVersionError, match=r"no version of calcloud-predictor is in stage Production") as caught:
        resolve(stub, stages, alias)
    assert stub.uri in str(caught.value)
    assert "calmlflow promote --stage Production" in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "alias"),
    [
        *((stages, NO_PAGE) for stages in (NO_PAGE, (404, b'{"message": "no route"}'), (200, b'{"status": "off"}'))),
        ((500, b"oops"), aliased("8")),
        (NOTHING, (500, b"oops")),
    ],
)
def test_an_answer_that_cannot_be_used_is_no_empty_stage(stub, stages, alias):
    with pytest.raises(RegistryUnavailableError):
        resolve(stub, stages, alias)


def test_a_refusal_ends_the_search(stub):
    with pytest.raises(AccessDeniedError, match=r"status 401.*MLFLOW_TRACKING_USERNAME"):
        resolve(stub, (401, b""), aliased("8"))
    with pytest.raises(AccessDeniedError, match="status 403"):
        resolve(stub, NOTHING, (403, b""))


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
def test_a_version_that_is_no_number_is_refused(stub, answer):
    with pytest.raises(RegistryUnavailableError, match=r"named the version .*; expected a number"):
        resolve(stub, answer)


@pytest.fixture
def versions(tracking, monkeypatch):
    """Ten versions of a model of its own on MLflow's server, of which the ninth was changed last."""
    from mlflow import MlflowClient

    client, model = MlflowClient(), "choices"
    monkeypatch.setattr(settings, "BUNDLE_MODEL", model)
    client.create_registered_model(model)
    made = [client.create_model_version(model, f"s3://{settings.ARTIFACT_BUCKET}/{number}") for number in range(10)]
    client.set_registered_model_alias(model, "best_one", "2")
    client.transition_model_version_stage(model, "9", "Staging")
    yield {str(found.version): StagedVersion(str(found.version), found.source) for found in made}
    client.delete_registered_model(model)


def test_mlflows_server_knows_numbers_aliases_and_latest(versions):
    uri = settings.registry_uri()
    asked = ("7", "10", "latest", "@best_one", "Staging")
    assert [resolve_stage(which, uri) for which in asked] == [versions[name] for name in ("7", "10", "10", "2", "9")]
    for missing in ("11", "@best", "Production"):
        with pytest.raises(NoSuchVersionError):
            resolve_stage(missing, uri)


# -- A registry that is no HTTP server ---------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The address of a registry in a database."""
    import mlflow

    (tmp_path / "registry.db").write_bytes(empty_database())
    uri = f"sqlite:///{tmp_path}/registry.db"
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    yield uri
    mlflow.set_tracking_uri(None)


def test_a_registry_in_a_database_is_asked_too(registry, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(registry, registry)
    made = [client.create_model_version(BUNDLE_MODEL, f"file://{tmp_path / name}") for name in ("one", "two")]
    first, second = (StagedVersion(str(found.version), found.source) for found in made)
    with pytest.raises(NoSuchVersionError):
        resolve_stage("Production", registry)
    client.set_registered_model_alias(BUNDLE_MODEL, "production", first.version)
    assert resolve_stage("Production", registry) == first
    client.transition_model_version_stage(BUNDLE_MODEL, second.version, "Production")
    assert resolve_stage("Production", registry) == second
    assert [resolve_stage(which, registry) for which in ("1", "@production", "latest")] == [first, first, second]
    for missing in ("3", "@best"):
        with pytest.raises(NoSuchVersionError):
            resolve_stage(missing, registry)


@pytest.mark.parametrize(
    ("content", "words"), [("a list", r"cannot be asked \(DatabaseError\)"), (None, "does not exist")]
)
def test_a_database_that_is_none_cannot_be_asked_and_is_not_made(tmp_path, monkeypatch, content, words):
    if content:
        (tmp_path / "registry.db").write_text(content)
    uri = f"sqlite:///{tmp_path}/registry.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryUnavailableError, match=rf"registry\.db {words}"):
        resolve_stage("Production", uri)
    assert len(list(tmp_path.iterdir())) == bool(content)


def test_what_selects_a_registry_names_its_folder_in_the_cache(monkeypatch):
    def names(**environment: str) -> set[str]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return {registry_name(uri) for uri in ("http://one", "http://two", "sqlite:///a.db")}

    plain, other = names(MLFLOW_TRACKING_URI="http://one"), names(MLFLOW_TRACKING_URI="http://other")
    assert len(plain) == 3
    # The tracking server hands out the files of a registry that is no server.
    assert len(plain & other) == 2
    spaces = [names(MLFLOW_TRACKING_URI="http://one", MLFLOW_WORKSPACE=name) for name in ("a", "b")]
    assert len(plain | spaces[0] | spaces[1]) == 9
    assert registry_name("http://user:new@one") == registry_name("http://user:old@one")
