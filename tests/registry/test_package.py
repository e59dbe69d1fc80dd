"""Bundles as models of the real server: packed small, with a digest, registered all or none, served and pulled."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.hst.features import FEATURES, job_features
from calmlflow.predictor import Bundle, Predictor
from calmlflow.predictor.answers import as_answers
from calmlflow.registry import package
from calmlflow.registry.lineage import Lineage
from calmlflow.registry.package import LoggedModel, log_model, model_digest, register
from calmlflow.registry.promote import promote
from calmlflow.registry.versions import read_state
from tests.registry.conftest import NUMBERS, SOURCE
from tests.samples.predictor_samples import CONTROL, NETWORKS, write_bundle

LOGGED = LoggedModel(SOURCE, "1" * 64, "0" * 64, ("mem_clf",))
LINEAGE = Lineage("sample", 0, 0, None, {}, {})


# -- Registration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def names() -> list[str]:
    return [f"package-test-{next(NUMBERS)}" for _ in range(3)]


def test_all_models_are_registered_with_their_tags(client, names):
    scores = {"mem_bin": {"accuracy": 0.75, "recall_2g": 1.0}, "memory": {"rmse": 2.0}, "wallclock": {"mae": 3.5}}
    runs = dict(zip(NETWORKS, ("a", "b", "c"), strict=True))
    lineage = Lineage("sample", 800, 1600000000, 3, scores, runs, alone={"mem_bin": {"accuracy": 0.5}})
    held = [("mem_clf",), ("wall_reg",), NETWORKS]
    models = {name: replace(LOGGED, networks=networks) for name, networks in zip(names, held, strict=True)}
    assert register(models, lineage) == dict.fromkeys(names, 1)
    assert register({names[0]: models[names[0]]}, lineage) == {names[0]: 2}
    common = {"data": "sample", "jobs": "800", "newest_job": "1600000000", "seed": "3", "ladder": "1"}
    common |= {"model_sha256": "1" * 64, "bundle_sha256": "0" * 64}
    # A network alone answers without evidence, and has scores of its own.
    alone = {"run.mem_clf": "a", "score.mem_bin.accuracy": "0.5"}
    of_bin = {"run.mem_clf": "a", "score.mem_bin.accuracy": "0.75", "score.mem_bin.recall_2g": "1"}
    of_memory = {"run.mem_reg": "b", "score.memory.rmse": "2"}
    of_wallclock = {"run.wall_reg": "c", "score.wallclock.mae": "3.5"}
    for name, tags in zip(names, [alone, of_wallclock, of_bin | of_memory | of_wallclock], strict=True):
        version = client.get_model_version(name, "1")
        assert version.tags == {**common, **tags}
        assert (version.source, version.current_stage) == (SOURCE, "None")


def count(client, name) -> int:
    return len(client.search_model_versions(f"name = '{name}'"))


class ThirdFailedError(Exception):
    """What the third registration fails with."""


@pytest.mark.parametrize("fault", [ThirdFailedError, KeyboardInterrupt])
@pytest.mark.parametrize("is_cleaned", [True, False])
def test_a_failure_takes_the_new_versions_back_and_leaves_the_old(
    client, names, fault, is_cleaned, monkeypatch, caplog
):
    register({names[0]: LOGGED}, LINEAGE)
    real, calls, delete = mlflow.register_model, itertools.count(1), MlflowClient.delete_model_version

    def fail_third(*arguments, **options):
        if next(calls) == 3:
            raise fault("the third")
        return real(*arguments, **options)

    def refuse_first(self, name, version):
        if name == names[0]:
            raise MlflowException("not now")
        delete(self, name, version)

    monkeypatch.setattr(mlflow, "register_model", fail_third)
    if not is_cleaned:
        monkeypatch.setattr(MlflowClient, "delete_model_version", refuse_first)
    # The failure is told, and not that of the cleaning.
    with pytest.raises(fault, match="the third"):
        register(dict.fromkeys(names, LOGGED), LINEAGE)
    assert [count(client, name) for name in names] == [1 if is_cleaned else 2, 0, 0]
    assert (f"version 2 of {names[0]}" in caplog.text) != is_cleaned


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
    name = f"package-test-{next(NUMBERS)}"
    with mlflow.start_run() as run:
        mlflow.log_params({"seed": 3})
        mlflow.log_metrics({"test_memory_mae": 0.5})
        logged = log_model(models, NETWORKS, name, {"seed": 3})
    assert logged.networks == NETWORKS
    info = mlflow.models.get_model_info(logged.uri)
    assert (info.metadata, info.run_id) == ({"seed": 3}, run.info.run_id)
    assert info.signature.inputs.required_input_names() == ["ipppssoot", "n_files", "total_mb"]
    # On MLflow's pages it stands with its run, parameters and scores.
    page = client.get_logged_model(logged.uri.removeprefix("models:/"))
    assert (page.source_run_id, page.params, str(page.status)) == (run.info.run_id, {"seed": "3"}, "READY")
    assert {metric.key: metric.value for metric in page.metrics} == {"test_memory_mae": 0.5}
    assert [out.model_id for out in client.get_run(run.info.run_id).outputs.model_outputs] == [page.model_id]

    assert register({name: logged}, LINEAGE) == {name: 1}
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1"))
    tags = client.get_model_version(name, "1").tags
    manifest = (folder / "artifacts" / "bundle" / "bundle.json").read_bytes()
    assert tags["bundle_sha256"] == logged.bundle_sha256 == hashlib.sha256(manifest).hexdigest()
    assert tags["model_sha256"] == logged.model_sha256 == model_digest(folder)
    promote(read_state(name), 1, "Production")
    # The bundle's own name on this server belongs to other tests.
    monkeypatch.setattr(settings, "BUNDLE_MODEL", name)
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    answer = Predictor().predict("jabc03020", CONTROL)
    assert (answer["version"], answer["source"]) == ("1", "registry")
    package.write_bundle(models, NETWORKS, tmp_path / "bundle")
    (expected,) = as_answers(Bundle.load(tmp_path / "bundle").predict([job_features("jabc03020", CONTROL)]))
    for key in ("memBin", "memVal", "clockTime", "killTime"):
        assert answer[key] == expected[key]


def test_a_model_packs_what_serving_imports_and_nothing_else(tmp_path):
    packed = package._copy_sources(tmp_path)
    files = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert {"__init__.py", "errors.py", "settings.py", "hst/features.py", "predictor/bundle.py"} <= files
    assert {name.partition("/")[0] for name in files if "/" in name} <= {"hst", "predictor", "storage"}
    assert len(files) <= 30


def test_a_digest_covers_every_file_and_its_name(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a")
    (tmp_path / "MLmodel").write_text("b")
    digests = [model_digest(tmp_path)]
    (tmp_path / "registered_model_meta").write_text("a note of MLflow's")
    assert model_digest(tmp_path) == digests[0]
    for change in (
        lambda: (tmp_path / "code" / "a.py").write_text("c"),
        lambda: (tmp_path / "code" / "a.py").rename(tmp_path / "code" / "b.py"),
        lambda: (tmp_path / "code" / "registered_model_meta").write_text(""),
        lambda: (tmp_path / "MLmodel").unlink(),
    ):
        change()
        digests.append(model_digest(tmp_path))
    assert len(set(digests)) == len(digests)


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
