"""One network at a time, through a real server: the others come from the version in Production, and that is told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import needed_bin
from calmlflow.predictor.bundle import Bundle, combine
from calmlflow.settings import NETWORKS
from tests.conftest import free_ports
from tests.samples.commands import FAST, client, mlflow_run, run, runs_named

pytestmark = pytest.mark.slow

TAKEN = ("mem_clf", "mem_reg")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory):
    """A server of this file's own: the versions of the bundle on the shared one belong to another test."""
    from calmlflow.server import supervisor as embedded

    home = tmp_path_factory.mktemp("only") / "home"
    try:
        yield embedded.start(*free_ports(), home)
    finally:
        embedded.stop(home)


@pytest.fixture(scope="module")
def champion(own_server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, of all three networks, in Production; gives the tree of its training."""
    output = tmp_path_factory.mktemp("champion")
    done = mlflow_run(own_server, "main", data="sample:1000", output=output, config=FAST, only="all")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "taken over" not in done.stdout
    with pytest.warns(FutureWarning):
        client(own_server).transition_model_version_stage("calcloud-predictor", "1", "Production")
    (tree,) = output.iterdir()
    return tree


@pytest.fixture(scope="module")
def mixed(own_server, champion, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Version 2: wall_reg trained on other jobs; gives the tree, and what the command printed."""
    output = tmp_path_factory.mktemp("mixed")
    done = mlflow_run(own_server, "main", data="sample:1000", output=output, config=FAST, seed=7, only="wallclock")
    assert done.returncode == 0, done.stderr[-3000:]
    (tree,) = output.iterdir()
    return tree, done.stdout


def versions(server) -> dict[str, int]:
    """How many versions each registered model has."""
    names = ("calcloud-mem-bin", "calcloud-memory", "calcloud-wallclock", "calcloud-predictor")
    return {name: len(client(server).search_model_versions(f"name = '{name}'")) for name in names}


def download(server, model: str, version: int) -> Path:
    """The bundle of a registered version, on disk."""
    uri = f"models:/{model}/{version}/artifacts/bundle"
    done = run(server, "python", "-c", f"import mlflow; print(mlflow.artifacts.download_artifacts('{uri}'))")
    return Path(done.stdout.splitlines()[-1])


def test_the_network_and_the_bundle_become_versions_and_the_others_do_not(own_server, mixed):
    tree, printed = mixed
    assert versions(own_server) == {
        "calcloud-mem-bin": 1, "calcloud-memory": 1, "calcloud-wallclock": 2, "calcloud-predictor": 2,
    }  # fmt: skip
    assert "mem_clf, mem_reg: from version 1\n" in printed
    assert sorted(path.name for path in (tree / "results").iterdir()) == ["answer", "wallclock"]
    assert sorted(path.name for path in (tree / "results" / "answer").iterdir()) == ["mem_bin", "memory", "wallclock"]


def test_each_network_of_the_new_version_answers_as_in_its_own_training(own_server, champion, mixed):
    tree, _ = mixed
    folder = download(own_server, "calcloud-predictor", 2)
    assert json.loads((folder / "bundle.json").read_text())["format"] == 3
    features = pd.read_csv(tree / "data" / "latest.csv")[list(FEATURES)].to_numpy(dtype=float)
    bundle = Bundle.load(folder)
    # Without evidence, which is of other jobs.
    outputs, of_champion = bundle.run(features), Bundle.load(champion / "models").run(features)
    found, before = combine(outputs, bundle.decision), combine(of_champion)
    for column in ("probabilities", "mem_pred"):
        np.testing.assert_array_equal(found[column], before[column])
    assert not np.array_equal(found["wall_pred"], before["wall_pred"])
    for network in TAKEN:
        name = f"{network}/{network}.keras"
        assert (folder / name).read_bytes() == (champion / "models" / name).read_bytes()
    # The network that was trained has a version of its own, with the same answers.
    of_network = Bundle.load(download(own_server, "calcloud-wallclock", 2)).run(features)
    alone = combine(of_network, networks=["wall_reg"])
    table = pd.read_csv(tree / "data" / "latest.csv")
    for column in ("bin_pred", "mem_pred", "wall_pred"):
        np.testing.assert_allclose(table[column], found[column])
    np.testing.assert_array_equal(found["wall_pred"], alone["wall_pred"])
    np.testing.assert_array_equal(found["unseen"], before["unseen"] | alone["unseen"])
    assert 0 < alone["unseen"].sum() < found["unseen"].sum()


def test_lineage_says_which_run_each_part_comes_from(own_server, mixed):
    api = client(own_server)
    newest, first = runs_named(own_server, "main")
    targets = zip(NETWORKS, ("mem_bin", "memory", "wallclock"), strict=True)
    children = {network: runs_named(own_server, target) for network, target in targets}
    assert [len(children[name]) for name in NETWORKS] == [1, 1, 2]
    assert children["wall_reg"][0].data.tags["mlflow.parentRunId"] == newest.info.run_id
    of_runs = {f"run.{name}": found[0].info.run_id for name, found in children.items()}
    parts = {f"part.{name}": "version 1" for name in TAKEN}

    def origins(tags):
        return {name: value for name, value in tags.items() if name.startswith(("run.", "part."))}

    version = api.get_model_version("calcloud-predictor", "2")
    assert origins(version.tags) == origins(newest.data.tags) == {**of_runs, **parts}
    assert newest.data.tags["champion_version"] == "1"
    assert newest.data.params["only"] == "wallclock"
    before = {**of_runs, "run.wall_reg": children["wall_reg"][1].info.run_id}
    assert origins(api.get_model_version("calcloud-predictor", "1").tags) == origins(first.data.tags) == before
    assert origins(api.get_model_version("calcloud-wallclock", "2").tags) == {"run.wall_reg": of_runs["run.wall_reg"]}


def test_the_version_is_judged_on_the_same_jobs_in_all_its_parts(own_server, mixed):
    newest = runs_named(own_server, "main")[0]
    version = client(own_server).get_model_version("calcloud-predictor", "2")
    metrics = newest.data.metrics
    assert metrics["test_wallclock_rmse"] != metrics["champion_wallclock_rmse"]
    for target, score in (("mem_bin", "accuracy"), ("memory", "rmse"), ("wallclock", "rmse")):
        figure = pytest.approx(metrics[f"answer_{target}_{score}"], rel=1e-4)
        assert float(version.tags[f"score.{target}.{score}"]) == figure
        assert (f"test_{target}_{score}" in metrics) == (target == "wallclock")
    assert (version.tags["jobs"], version.tags["seed"]) == (newest.data.params["n_train"], "7")


def test_evidence_alone_is_rebuilt_from_a_store_without_training(own_server, champion, mixed, tmp_path):
    jobs = pd.read_csv(champion / "data" / "latest.csv", dtype={"ipst": str})
    # A programme that is new to the champion: its jobs of one row need four times the memory.
    row = jobs.iloc[0]
    name = row["ipst"]
    new = pd.DataFrame([row] * 30).assign(
        ipst=[f"{name[0]}zzz{number:02d}{name[6:]}" for number in range(30)],
        memory=4 * row["memory"],
        mem_bin=needed_bin(4 * row["memory"]),
        timestamp=jobs["timestamp"].max() + 1,
    )
    columns = ["ipst", "timestamp", *FEATURES, "wallclock", "memory", "mem_bin"]
    pd.concat([jobs, new])[columns].to_csv(tmp_path / "jobs.csv", index=False)
    done = mlflow_run(own_server, "main", data=tmp_path / "jobs.csv", output=tmp_path / "data", only="evidence")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mem_clf, mem_reg, wall_reg: from version 1\n" in done.stdout
    # The mixed version stands between; no network became a version.
    assert versions(own_server) == {
        "calcloud-mem-bin": 1, "calcloud-memory": 1, "calcloud-wallclock": 2, "calcloud-predictor": 3,
    }  # fmt: skip
    newest = runs_named(own_server, "main")[0]
    assert newest.data.params["only"] == "evidence"
    assert "train_mem_clf" not in done.stdout

    folder = download(own_server, "calcloud-predictor", 3)
    for network in NETWORKS:
        path = f"{network}/{network}.onnx"
        assert (folder / path).read_bytes() == (champion / "models" / path).read_bytes()
    features = [row[list(FEATURES)].to_numpy(dtype=float)]
    before, after = (
        Bundle.load(one).predict(features, [f"{name[0]}zzz99{name[6:]}"]) for one in (champion / "models", folder)
    )
    assert (before["evidence"][0, 1], after["evidence"][0, 1]) == (0, 30)
    assert abs(after["mem_pred"][0] - 4 * row["memory"]) < abs(before["mem_pred"][0] - 4 * row["memory"])
    # The networks have not seen these jobs: to retrain they are new still.
    code = f"""
import pandas as pd
from calmlflow.registry.tracking import connect
from calmlflow.runs.retrain import new_jobs, read_seen
connect()
jobs = pd.read_csv({str(tmp_path / "jobs.csv")!r})
print(*(len(new_jobs(jobs, read_seen(version).jobs)) for version in (1, 3)))
"""
    assert run(own_server, "python", "-c", code).stdout.splitlines()[-1:] == ["30 30"]


@pytest.mark.parametrize(("test_size", "is_scored"), [(0.5, True), (0.05, False)])
def test_an_answer_is_scored_on_jobs_that_no_network_was_trained_on(
    own_server, champion, tmp_path, test_size, is_scored
):
    given = {"data": champion, "output": tmp_path, "only": "evidence", "register": "false"}
    done = mlflow_run(own_server, "main", **given, split="job", seed=1, test_size=test_size)
    assert done.returncode == 0, done.stderr[-3000:]
    (tree,) = tmp_path.iterdir()
    of_champion, table, answers = (
        pd.read_csv(path, index_col="ipst")["split"]
        for path in (champion / "data" / "latest.csv", tree / "data" / "latest.csv", tree / "data" / "answers.csv")
    )
    test = table.index[table == "test"]
    newest = runs_named(own_server, "main")[0]
    new, held_out = (int(newest.data.params[name]) for name in ("n_test_answer", "n_test"))
    assert 0 < new < held_out
    assert len(test) == (new if is_scored else 0)
    assert (of_champion[test] == "test").all()
    assert (answers == table).all()
    assert f"{new} of {held_out} test jobs are new to the trainings of mem_clf, mem_reg, wall_reg: " in done.stderr
    assert ("too few for scores" in done.stderr) != is_scored
    assert any(name.startswith("answer_") for name in newest.data.metrics) == is_scored
    assert (tree / "report.html").is_file()


def test_without_a_version_in_production_nothing_is_read_or_trained(tracking, tmp_path, monkeypatch):
    from calmlflow import settings
    from calmlflow.runs.train import TrainingRequest, train

    monkeypatch.setattr(settings, "BUNDLE_MODEL", "only-test-none")
    monkeypatch.setenv("CALMLFLOW_CACHE", str(tmp_path / "cache"))
    request = TrainingRequest(data="no-such-file.csv", output=str(tmp_path / "out"))
    with pytest.raises(InputError) as caught:
        train(request, ["wall_reg"])
    assert str(caught.value) == (
        "mem_clf, mem_reg cannot be taken from the version of only-test-none in Production, for there is none; "
        "expected one, or only=all"
    )
    assert not (tmp_path / "out").exists()
