"""An answer every time: from the registry's version, or else from the last good one."""

import shutil

import pytest
from predictor_samples import (
    ALIASES,
    CONTROL,
    NO_ALIAS,
    NOTHING,
    STAGES,
    empty_database,
    http_registry,
    keep_in_cache,
    staged,
    write_bundle,
)

from calmlflow import settings
from calmlflow.hst.errors import CalmlflowError, InputError
from calmlflow.hst.features import job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.predictor.registry_http import AccessDeniedError, RegistryUnavailableError
from calmlflow.predictor.stage import Cache, NoSuchVersionError, StagedVersion

JOB = "jabc03020"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A registry whose version 3 is in Production, and in the cache."""
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    # A version that is not on disk is asked for through MLflow, which would try for long.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http_registry({STAGES: staged("3"), ALIASES: NO_ALIAS}) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        found.folder = keep_in_cache(tmp_path / "cache", found.uri, "3")
        yield found
    import sys

    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


def test_the_answer_is_that_of_the_bundle_in_the_stage(server):
    predictor = Predictor()
    answer = predictor.predict(JOB, CONTROL)
    found = Bundle.load(server.folder).predict([job_features(JOB, CONTROL)])
    assert answer["memBin"] == found["bin_pred"][0]
    assert answer["memVal"] == round(float(found["mem_pred"][0]), 2)
    assert answer["clockTime"] == int(found["wall_pred"][0])
    assert answer["killTime"] == found["kill_time"][0]
    assert answer["probabilities"] == pytest.approx(found["probabilities"][0].tolist(), abs=1e-6)
    assert (answer["version"], answer["source"]) == ("3", "registry")
    assert (predictor.version, predictor.source) == ("3", "registry")


def test_the_stage_is_asked_by_its_name(server):
    server.answers[STAGES] = staged("3")
    Predictor("staging")
    assert server.queries[-1][1]["stages"] == ["Staging"]
    with pytest.raises(InputError, match="stage 'Prod' does not exist"):
        Predictor("Prod")


def test_a_registry_that_is_named_comes_before_the_environment(server, monkeypatch, ports):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports[0]}")
    assert Predictor(registry_uri=server.uri).source == "registry"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", server.uri)
    assert Predictor().source == "registry"


@pytest.mark.parametrize("answer", [(500, b"oops"), (200, b"<html>"), staged("latest"), None])
def test_the_remembered_version_answers_when_the_registry_does_not(server, monkeypatch, caplog, answer):
    expected = Predictor().predict(JOB, CONTROL)
    monkeypatch.setenv("CALMLFLOW_TIMEOUT", "0.1")
    server.answers[STAGES] = answer
    assert Predictor().predict(JOB, CONTROL) == {**expected, "source": "cache"}
    assert "answering with version 3 from the cache" in caplog.text


def test_the_remembered_version_is_that_of_the_stage(server):
    Predictor("Production")
    server.answers[STAGES] = 500, b"oops"
    with pytest.raises(RegistryUnavailableError):
        Predictor("Staging")


@pytest.mark.parametrize(
    ("answer", "error"),
    [((401, b""), AccessDeniedError), ((403, b""), AccessDeniedError), (NOTHING, NoSuchVersionError)],
)
def test_what_the_registry_says_clearly_is_not_papered_over(server, answer, error):
    Predictor()
    server.answers[STAGES] = answer
    with pytest.raises(error):
        Predictor()


def test_a_new_version_that_cannot_be_had_leaves_the_last_one_in_place(server, caplog):
    Predictor()
    server.answers[STAGES] = staged("4")
    found = Predictor()
    assert (found.version, found.source) == ("3", "cache")
    assert "version 4 of calcloud-predictor cannot be downloaded" in caplog.text
    # It is not the one to fall back on next time either.
    server.answers[STAGES] = 500, b"oops"
    assert Predictor().version == "3"


def test_no_bundle_anywhere_is_an_error(server):
    shutil.rmtree(server.folder)
    with pytest.raises(CalmlflowError, match="version 3 of calcloud-predictor cannot be downloaded"):
        Predictor()
    server.answers[STAGES] = 500, b"oops"
    with pytest.raises(RegistryUnavailableError, match="status 500"):
        Predictor()


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A real registry in a file, whose first version is in Production; gives its address and its client."""
    import mlflow

    (tmp_path / "registry.db").write_bytes(empty_database())
    uri = f"sqlite:///{tmp_path}/registry.db"
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    yield mlflow.MlflowClient(uri, uri)
    mlflow.set_tracking_uri(None)


def put_in_production(client, folder) -> StagedVersion:
    found = client.create_model_version(settings.BUNDLE_MODEL, f"file://{folder}")
    client.transition_model_version_stage(settings.BUNDLE_MODEL, found.version, "Production", True)
    return StagedVersion(str(found.version), found.source)


def test_a_new_version_that_is_broken_leaves_the_last_one_in_place(database, tmp_path, caplog):
    write_bundle(tmp_path / "good" / "artifacts" / "bundle")
    put_in_production(database, tmp_path / "good")
    expected = Predictor().predict(JOB, CONTROL)
    assert (expected["version"], expected["source"]) == ("1", "registry")

    bundle = write_bundle(tmp_path / "broken" / "artifacts" / "bundle", seed=1)
    (bundle / "tx_data.json").write_text("{}")
    broken = put_in_production(database, tmp_path / "broken")
    assert Predictor().predict(JOB, CONTROL) == {**expected, "source": "cache"}
    assert "tx_data.json does not match" in caplog.text
    assert not (Cache(settings.registry_uri()).folder / broken.folder).exists()

    write_bundle(tmp_path / "mended" / "artifacts" / "bundle", seed=1)
    put_in_production(database, tmp_path / "mended")
    found = Predictor().predict(JOB, CONTROL)
    assert (found["version"], found["source"]) == ("3", "registry")
    assert found["clockTime"] != expected["clockTime"]


@pytest.mark.parametrize("name", ["acs_8ph_01", "SKYCELL-p0797x14y06"])
def test_a_mosaic_needs_no_control_file(server, name):
    answer = Predictor().predict(name, {})
    assert (answer["memBin"], answer["memVal"], answer["clockTime"], answer["killTime"]) == (1, 7.17, 43_200, 259_200)
    assert (answer["probabilities"], answer["version"], answer["source"]) == ([0, 1, 0, 0], None, "policy")


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("xabc03020", CONTROL, "'x'"),
        ("", CONTROL, "is no dataset name"),
        (JOB, {}, "n_files is missing"),
        (JOB, {**CONTROL, "total_mb": "much"}, "total_mb is 'much'"),
    ],
)
def test_a_job_that_breaks_a_rule_is_named(server, name, keys, words):
    with pytest.raises(InputError, match=words):
        Predictor().predict(name, keys)
