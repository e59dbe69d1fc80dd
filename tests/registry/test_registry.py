"""Versions against the real server: registered all or none, promoted by clear rules, served without TensorFlow."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.registry import package
from calmlflow.registry import promote as promotion
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import LoggedModel, log_model, register
from calmlflow.registry.promote import choose
from calmlflow.registry.versions import read_state
from tests.samples.predictor_samples import CONTROL, NETWORKS, write_bundle

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
NUMBERS = itertools.count()
SOURCE = "s3://calcloud-artifacts/of-a-test"
LOGGED = LoggedModel(SOURCE, "0" * 64, ("mem_clf",))
LINEAGE = Lineage("sample", 0, 0, None, {}, {})


@pytest.fixture
def client(tracking) -> MlflowClient:
    return MlflowClient()


@pytest.fixture
def model(client) -> str:
    """A registered model of this test's own."""
    name = f"registry-test-{next(NUMBERS)}"
    client.create_registered_model(name)
    return name


def add(client, model, *stages) -> list[int]:
    """New versions in these stages, one after the other."""
    numbers = []
    for stage in stages:
        version = client.create_model_version(model, SOURCE).version
        client.transition_model_version_stage(model, version, stage)
        numbers.append(int(version))
    return numbers


def stages(client, model) -> dict[int, str]:
    return {int(found.version): found.current_stage for found in client.search_model_versions(f"name = '{model}'")}


def aliases(client, model) -> dict[str, int]:
    return {name: int(version) for name, version in client.get_registered_model(model).aliases.items()}


# -- Promotion --------------------------------------------------------------------------------------------------------


def promote(client, model, stage, version=None) -> int:
    """Choose and move, as a promotion does between and after its gate."""
    state = read_state(client, model)
    chosen = int(choose(client, model, version, stage, state).version)
    promotion.promote(client, model, chosen, stage, state)
    return chosen


def test_a_version_that_is_named_moves_and_the_one_before_it_is_archived(client, model):
    one, two = add(client, model, "Production", "None")
    promote(client, model, "Production", two)
    assert stages(client, model) == {one: "Archived", two: "Production"}
    assert aliases(client, model) == {"production": two, "archived": one}


def test_the_newest_without_a_stage_goes_to_staging(client, model):
    one, two, three = add(client, model, "None", "None", "Production")
    assert promote(client, model, "Staging") == two
    assert stages(client, model) == {one: "None", two: "Staging", three: "Production"}
    assert aliases(client, model) == {"staging": two, "production": three}


def test_the_one_in_staging_goes_to_production(client, model):
    one, two, three = add(client, model, "Staging", "Production", "None")
    assert promote(client, model, "Production") == one
    assert stages(client, model) == {one: "Production", two: "Archived", three: "None"}
    assert aliases(client, model) == {"production": one, "archived": two}


def test_a_version_in_production_never_leaves_it_by_a_repeated_command(client, model):
    (one,) = add(client, model, "Production")
    state = read_state(client, model)
    with pytest.raises(InputError, match=f"in stage None or Staging; expected one: version {one} is in Production"):
        choose(client, model, None, "Staging", state)
    assert int(choose(client, model, None, "Production", state).version) == one
    add(client, model, "Archived", "Archived")
    with pytest.raises(InputError, match="no version"):
        choose(client, model, None, "Staging", read_state(client, model))


def test_only_what_was_staged_goes_to_production_by_itself(client, model):
    add(client, model, "None", "Archived")
    with pytest.raises(InputError, match="is in stage Staging or Production; expected one: train one first"):
        choose(client, model, None, "Production", read_state(client, model))


def test_a_version_is_archived_by_its_number_only(client, model):
    one, two = add(client, model, "Staging", "Archived")
    with pytest.raises(InputError, match="no version was named to archive"):
        choose(client, model, None, "Archived", read_state(client, model))
    promote(client, model, "Archived", one)
    # Both stay there: archiving one takes no place of another.
    assert stages(client, model) == {one: "Archived", two: "Archived"}
    assert aliases(client, model) == {"archived": two}


def test_aliases_of_others_are_left_alone(client, model):
    one, two = add(client, model, "None", "None")
    client.set_registered_model_alias(model, "production", two)
    client.set_registered_model_alias(model, "staging", two)
    client.set_registered_model_alias(model, "of-somebody-else", two)
    promote(client, model, "Production", one)
    assert aliases(client, model) == {"production": one, "of-somebody-else": two}


def test_what_does_not_exist_is_named(client, model):
    add(client, model, "None")
    with pytest.raises(InputError, match=r"version 9 of .* does not exist"):
        choose(client, model, 9, "Staging", read_state(client, model))
    with pytest.raises(InputError, match="registry-test-none does not exist in the registry"):
        read_state(client, "registry-test-none")


def test_what_the_registry_refuses_is_one_sentence(client, model):
    with pytest.raises(CalmlflowError) as caught:
        choose(client, model, -1, "Staging", read_state(client, model))
    assert "\n" not in str(caught.value)


# -- Registration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def names() -> list[str]:
    return [f"registry-test-{next(NUMBERS)}" for _ in range(3)]


def test_all_models_are_registered_with_their_tags(client, names):
    scores = {"mem_bin": {"accuracy": 0.75, "recall_2g": 1.0}, "memory": {"rmse": 2.0}, "wallclock": {"mae": 3.5}}
    lineage = Lineage("sample", 800, 1600000000, 3, scores, dict(zip(NETWORKS, ("a", "b", "c"), strict=True)))
    digests = [letter * 64 for letter in "abc"]
    held = [("mem_clf",), ("wall_reg",), NETWORKS]
    models = {
        name: LoggedModel(SOURCE, digest, networks) for name, digest, networks in zip(names, digests, held, strict=True)
    }
    assert register(models, lineage) == dict.fromkeys(names, 1)
    assert register({names[0]: models[names[0]]}, lineage) == {names[0]: 2}
    common = {"data": "sample", "jobs": "800", "newest_job": "1600000000", "seed": "3"}
    of_bin = {"run.mem_clf": "a", "score.mem_bin.accuracy": "0.75", "score.mem_bin.recall_2g": "1"}
    of_memory = {"run.mem_reg": "b", "score.memory.rmse": "2"}
    of_wallclock = {"run.wall_reg": "c", "score.wallclock.mae": "3.5"}
    expected = [of_bin, of_wallclock, of_bin | of_memory | of_wallclock]
    for name, digest, tags in zip(names, digests, expected, strict=True):
        version = client.get_model_version(name, "1")
        assert version.tags == {**common, **tags, "bundle_sha256": digest}
        assert (version.source, version.current_stage) == (SOURCE, "None")


def count(client, name) -> int:
    return len(client.search_model_versions(f"name = '{name}'"))


def test_a_model_that_does_not_exist_takes_the_others_back(client, names):
    with pytest.raises(MlflowException, match="no-such-model"):
        register({**dict.fromkeys(names, LOGGED), names[2]: replace(LOGGED, uri="models:/no-such-model/1")}, LINEAGE)
    assert [count(client, name) for name in names] == [0, 0, 0]


class ThirdFailedError(Exception):
    """What the third registration fails with."""


@pytest.fixture(params=[ThirdFailedError, KeyboardInterrupt, SystemExit])
def fault(request, monkeypatch):
    """The third registration fails, before the server hears of it."""
    real, calls = mlflow.register_model, itertools.count(1)

    def fail_third(*arguments, **options):
        if next(calls) == 3:
            raise request.param("the third")
        return real(*arguments, **options)

    monkeypatch.setattr(mlflow, "register_model", fail_third)
    return request.param


def test_a_failure_takes_the_new_versions_back_and_leaves_the_old(client, names, fault):
    client.create_registered_model(names[0])
    add(client, names[0], "Production")
    with pytest.raises(fault, match="the third"):
        register(dict.fromkeys(names, LOGGED), LINEAGE)
    assert stages(client, names[0]) == {1: "Production"}
    assert [count(client, name) for name in names[1:]] == [0, 0]


def test_the_failure_is_told_and_not_that_of_the_cleaning(client, names, fault, monkeypatch, caplog):
    real = MlflowClient.delete_model_version

    def refuse_first(self, name, version):
        if name == names[0]:
            raise MlflowException("not now")
        real(self, name, version)

    monkeypatch.setattr(MlflowClient, "delete_model_version", refuse_first)
    with pytest.raises(fault, match="the third"):
        register(dict.fromkeys(names, LOGGED), LINEAGE)
    assert [count(client, name) for name in names] == [1, 0, 0]
    assert f"version 1 of {names[0]}" in caplog.text


# -- A bundle on its way from a training to an answer -----------------------------------------------------------------


@pytest.fixture
def models(tmp_path):
    """The ``models`` folder of a training that had jobs like the one asked about."""
    folder = write_bundle(tmp_path / "models")
    rows = [job_features("jabc03020", CONTROL), job_features("oabc06090", {"n_files": 7, "total_mb": 11})]
    (folder / "seen_rows.json").write_text(json.dumps(rows))
    (folder / "decision.json").write_text(json.dumps({"risk": 0.0, "wallclock_ratio": np.ones((3, 4)).tolist()}))
    return folder


def test_a_logged_bundle_is_registered_promoted_pulled_and_answers(client, models, tmp_path, monkeypatch):
    name = f"registry-test-{next(NUMBERS)}"
    mlflow.set_experiment("registry-test")
    with mlflow.start_run():
        logged = log_model(models, NETWORKS, name, {"seed": 3})
    assert logged.networks == NETWORKS
    info = mlflow.models.get_model_info(logged.uri)
    assert info.metadata == {"seed": 3}
    assert info.signature.inputs.required_input_names() == ["ipppssoot", "n_files", "total_mb"]
    inputs = pd.DataFrame(
        [
            {"ipppssoot": "jabc03020", **CONTROL, "n_files": 17, "total_mb": 9.6},
            {"ipppssoot": "acs_8ph_01", "n_files": 1, "total_mb": 1.0},
            {"ipppssoot": "oabc06090", "n_files": 7, "total_mb": 11.1},
        ]
    )
    served = mlflow.pyfunc.load_model(logged.uri)
    answers = served.predict(inputs)
    assert list(answers) == info.signature.outputs.input_names()
    rows = [job_features("jabc03020", CONTROL), job_features("oabc06090", {"n_files": 7, "total_mb": 11.1})]
    package.write_bundle(models, NETWORKS, tmp_path / "bundle")
    expected = Bundle.load(tmp_path / "bundle").predict(rows)
    assert answers["memBin"].tolist() == [expected["bin_pred"][0], 1, expected["bin_pred"][1]]
    assert answers["clockTime"].tolist() == [int(expected["wall_pred"][0]), 43_200, int(expected["wall_pred"][1])]
    assert answers["killTime"].tolist() == [expected["kill_time"][0], 259_200, expected["kill_time"][1]]
    with pytest.raises(MlflowException, match="n_files"):
        served.predict(inputs.assign(n_files=0))

    assert register({name: logged}, LINEAGE) == {name: 1}
    manifest = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1/artifacts/bundle/bundle.json"))
    recorded = client.get_model_version(name, "1").tags["bundle_sha256"]
    assert recorded == logged.bundle_sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
    for stage in ("Staging", "Production"):
        promote(client, name, stage)
    # The bundle's own name on this server belongs to other tests.
    monkeypatch.setattr(settings, "BUNDLE_MODEL", name)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    answer = Predictor().predict("jabc03020", CONTROL)
    assert (answer["version"], answer["source"]) == ("1", "registry")
    for key in ("memBin", "memVal", "clockTime", "killTime"):
        assert answer[key] == answers[key][0]
    assert np.allclose(answer["probabilities"], answers["probabilities"][0], atol=1e-6)


@pytest.mark.parametrize("networks", [["mem_clf"], ["mem_reg"], ["wall_reg"], list(NETWORKS)])
def test_a_bundle_holds_what_its_networks_need(models, tmp_path, networks):
    (models / "mem_clf" / "mem_clf.keras").write_bytes(b"x")
    folder = package.write_bundle(models, networks, tmp_path / "bundle")
    assert json.loads((folder / "bundle.json").read_text())["networks"] == networks
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {f"{network}/{network}.onnx" for network in networks} | {"tx_data.json", "bundle.json"} <= files
    assert ("killtime.json" in files) == ("wall_reg" in networks)
    assert ("mem_clf/mem_clf.keras" in files) == ("mem_clf" in networks)
    assert len(Bundle.load(folder).predict(np.ones((1, len(FEATURES))))) >= len(networks)
