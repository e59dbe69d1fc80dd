"""Which version a stage holds, whatever the registry answers; and its files on disk."""

import json
import shutil

import numpy as np
import pytest
from predictor_samples import (
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

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError
from calmlflow.predictor.bundle import write_manifest
from calmlflow.predictor.registry_http import AccessDeniedError, RegistryUnavailableError
from calmlflow.predictor.stage import Cache, NoSuchVersionError, StagedVersion, resolve_stage

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


@pytest.mark.parametrize("stages", [NOTHING, NO_PAGE, (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')])
@pytest.mark.parametrize("alias", [NO_ALIAS, NO_PAGE, (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')])
def test_neither_says(server, stages, alias):
    with pytest.raises(NoSuchVersionError, match=r"no version of calcloud-predictor is in stage Production") as caught:
        resolve(server, stages, alias)
    assert server.uri in str(caught.value)
    assert "calmlflow promote --stage Production" in str(caught.value)


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
        staged("latest"), staged(""), staged("../1"), staged("1.5"), staged("-1"),
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


# -- A registry that is no HTTP server, and the cache -----------------------------------------------------------------


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


def test_a_version_is_fetched_once_and_answers_from_disk_after(registry, tmp_path):
    version = publish(registry, tmp_path / "model")
    cache = Cache(registry)
    first = wallclock(cache.load(version))
    shutil.rmtree(tmp_path / "model")
    assert wallclock(Cache(registry).load(version)) == first
    # Nothing but the version is left of the download.
    assert [path.name for path in cache.folder.iterdir()] == [version.folder]


@pytest.mark.parametrize("file", ["bundle.json", "tx_data.json", "mem_reg/mem_reg.onnx"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_copy_is_fetched_again(registry, tmp_path, file, damage):
    version = publish(registry, tmp_path / "model")
    cache = Cache(registry)
    expected = wallclock(cache.load(version))
    path = cache.folder / version.folder / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    assert wallclock(cache.load(version)) == expected
    assert path.read_bytes() == content


def test_a_bundle_that_lacks_a_network_is_refused(registry, tmp_path):
    version = publish(registry, tmp_path / "model")
    bundle = tmp_path / "model" / "artifacts" / "bundle"
    shutil.rmtree(bundle / "mem_reg")
    write_manifest(bundle)
    with pytest.raises(CalmlflowError, match="mem_reg"):
        Cache(registry).load(version)
    assert list(Cache(registry).folder.iterdir()) == []


def test_a_version_that_is_not_there_is_told(registry):
    with pytest.raises(RegistryUnavailableError, match="version 9 of calcloud-predictor cannot be downloaded"):
        Cache(registry).load(StagedVersion("9", "somewhere"))


def test_a_version_of_a_registry_that_was_set_up_anew_is_another(registry, tmp_path):
    old = write_bundle(Cache(registry).folder / StagedVersion("1", "elsewhere").folder, seed=5)
    version = publish(registry, tmp_path / "model")
    assert version.version == "1"
    assert wallclock(Cache(registry).load(version)) != wallclock(Cache(registry).load(StagedVersion("1", "elsewhere")))
    assert old.is_dir()


def test_another_process_that_was_first_is_no_fault(registry, tmp_path, monkeypatch):
    version = publish(registry, tmp_path / "model")
    cache = Cache(registry)
    from calmlflow.predictor import stage

    download = stage._download

    def overtaken(*arguments):
        found = download(*arguments)
        write_bundle(cache.folder / version.folder)
        return found

    monkeypatch.setattr(stage, "_download", overtaken)
    assert np.isfinite(wallclock(cache.load(version)))


def test_a_cache_that_cannot_be_written_is_named(registry, tmp_path):
    version = publish(registry, tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(CalmlflowError, match=r"cache folder .* cannot be written .*CALMLFLOW_CACHE"):
        Cache(registry, tmp_path / "file" / "cache").load(version)


def test_what_a_stage_held_is_remembered(tmp_path):
    cache = Cache("http://one", tmp_path)
    cache.folder.mkdir()
    assert cache.recall("Production") is None
    for version in ("1", "2"):
        cache.remember("Production", StagedVersion(version, "s"))
    cache.remember("Staging", StagedVersion("3", "t"))
    assert Cache("http://one", tmp_path).recall("Production") == StagedVersion("2", "s")
    assert cache.recall("Staging") == StagedVersion("3", "t")
    assert cache.recall("Archived") is None
    assert sorted(path.name for path in cache.folder.iterdir()) == ["Production.json", "Staging.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"version": "1"}', b"\xff\xfe"])
def test_a_damaged_note_is_none_and_is_written_anew(tmp_path, content):
    cache = Cache("http://one", tmp_path)
    cache.folder.mkdir()
    (cache.folder / "Production.json").write_bytes(content)
    assert cache.recall("Production") is None
    cache.remember("Production", StagedVersion("2", "s"))
    assert cache.recall("Production") == StagedVersion("2", "s")


def test_a_note_that_cannot_be_written_stops_nobody(tmp_path, caplog):
    Cache("http://one", tmp_path / "none").remember("Production", StagedVersion("2", "s"))
    assert "Production.json cannot be written" in caplog.text


def test_two_registries_do_not_share(tmp_path):
    one, other = Cache("http://one", tmp_path), Cache("http://other", tmp_path)
    one.folder.mkdir()
    one.remember("Production", StagedVersion("2", "s"))
    assert other.recall("Production") is None
    assert one.folder != other.folder
    # A password that was changed is no other registry.
    assert Cache("http://user:new@one", tmp_path).folder == one.folder


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path))
    assert Cache("http://one").folder.parent == tmp_path
