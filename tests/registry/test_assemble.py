"""Networks of two trainings become one bundle: each as it was, with the tables of its own training."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calmlflow.errors import InputError
from calmlflow.hst.scaling import Scaling
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.decision import Decision
from calmlflow.predictor.manifest import write_manifest
from calmlflow.registry import assemble as assembling
from calmlflow.registry.assemble import assemble, runs_of_version
from calmlflow.registry.package import write_bundle as write_part
from tests.samples.predictor_samples import KILL_TIME, NETWORKS, SCALING, write_bundle

generator = np.random.default_rng(11)
FEATURES = np.column_stack(
    [
        generator.integers(1, 60, 200),
        np.round(generator.lognormal(3, 1.5, 200)),
        generator.integers(0, 2, (200, 6)),
        generator.integers(0, 4, 200),
    ]
)
COLUMNS = {"mem_clf": ("bin_pred", "probabilities"), "mem_reg": ("mem_pred",), "wall_reg": ("wall_pred", "kill_time")}
CHOICES = [chosen for n in (1, 2) for chosen in itertools.combinations(NETWORKS, n)]


def training(folder: Path, seed: int, scaling: Scaling, n_rows: int) -> Path:
    """The ``models`` folder of a training of all networks."""
    write_bundle(folder, seed)
    for network in NETWORKS:
        (folder / network / f"{network}.keras").write_bytes(f"{network} of {seed}".encode())
    ratios = np.random.default_rng(seed).uniform(0.5, 2, (n_rows + 1, 4))
    (folder / "tx_data.json").write_text(scaling.to_json())
    (folder / "seen_rows.json").write_text(json.dumps(FEATURES[:n_rows].tolist()))
    (folder / "decision.json").write_text(Decision(ratios).to_json())
    spread = tuple(np.linspace(0.5, 1.5, n_rows + 1))
    (folder / "killtime.json").write_text(replace(KILL_TIME, spread=spread).to_json())
    write_manifest(folder)
    return folder


@pytest.fixture
def champion(tmp_path):
    return training(tmp_path / "champion", 1, SCALING, 60)


@pytest.fixture
def whole(tmp_path):
    """What a training of all networks would leave."""
    return training(tmp_path / "whole", 2, Scaling((0.3, -0.2), (2.0, 1.0), (0.8, 1.1)), 90)


def fresh(whole: Path, networks, target: Path) -> Path:
    """What a training of these networks alone leaves."""
    return write_part(whole, networks, target / "models")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_each_answers_as_before(found, origins):
    for network, origin in origins.items():
        expected = Bundle.load(origin, [network]).predict(FEATURES)
        for column in COLUMNS[network]:
            np.testing.assert_array_equal(found[column], expected[column], strict=True)


@pytest.mark.parametrize("networks", CHOICES)
def test_every_network_answers_as_in_its_own_training(champion, whole, tmp_path, networks):
    models = fresh(whole, networks, tmp_path)
    before = contents(models)
    origins = {network: whole if network in networks else champion for network in NETWORKS}
    answers = assemble(models, champion).predict(FEATURES)
    assert_each_answers_as_before(answers, origins)
    assert_each_answers_as_before(Bundle.load(models).predict(FEATURES), origins)
    unseen = [Bundle.load(origin).predict(FEATURES)["unseen"] for origin in (champion, whole)]
    assert (unseen[0] & ~unseen[1]).any()
    np.testing.assert_array_equal(answers["unseen"], unseen[0] | unseen[1])

    after, of_champion = contents(models), contents(champion)
    assert json.loads(after["bundle.json"])["format"] == 2
    # No table at the top that an older reader, or a person, could take for that of all.
    assert {name for name in after if "/" not in name} == {
        *("bundle.json", "decision.json", "killtime.json", "ladder.json")
    }
    assert after["decision.json"] == (before if "mem_clf" in networks else of_champion)["decision.json"]
    assert after["killtime.json"] == (before if "wall_reg" in networks else of_champion)["killtime.json"]
    for network in NETWORKS:
        source = before if network in networks else of_champion
        for kind in ("keras", "onnx"):
            name = f"{network}/{network}.{kind}"
            assert after[name] == source[name]
        for table in ("tx_data.json", "seen_rows.json"):
            assert after[f"{network}/{table}"] == source[table]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["champion", "models", "whole"]


def test_networks_of_one_training_share_their_tables(whole, tmp_path):
    models = fresh(whole, ["mem_reg"], tmp_path)
    assemble(models, whole)
    assert contents(models) == contents(whole)
    assert json.loads((models / "bundle.json").read_text())["format"] == 1


def test_a_mixed_champion_hands_its_parts_on(champion, whole, tmp_path):
    """mem_clf comes from a third training; of the champion's, mem_reg and wall_reg are of two."""
    mixed = fresh(whole, ["wall_reg"], tmp_path)
    assemble(mixed, champion)
    third = training(tmp_path / "third", 3, Scaling((0.1, 0.4), (1.0, 2.0), (1.0, 0.5)), 30)
    models = write_part(third, ["mem_clf"], tmp_path / "again" / "models")
    origins = {"mem_clf": third, "mem_reg": champion, "wall_reg": whole}
    assert_each_answers_as_before(assemble(models, mixed).predict(FEATURES), origins)
    # The last part of another training replaced: one table for all again.
    last = fresh(champion, ["wall_reg"], tmp_path / "last")
    assemble(last, mixed)
    assert contents(last) == contents(champion)


def test_a_champion_without_seen_rows_is_not_given_those_of_the_fresh(champion, whole, tmp_path):
    for name in ("seen_rows.json", "decision.json"):
        (champion / name).unlink()
    (champion / "killtime.json").write_text(KILL_TIME.to_json())
    write_manifest(champion)
    models = fresh(whole, ["mem_clf"], tmp_path)
    answers = assemble(models, champion).predict(FEATURES)
    assert_each_answers_as_before(answers, {"mem_clf": whole, "mem_reg": champion, "wall_reg": champion})
    np.testing.assert_array_equal(answers["unseen"], Bundle.load(whole).predict(FEATURES)["unseen"])
    assert "wall_reg/seen_rows.json" not in contents(models)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "mem_reg" / "mem_reg.onnx").write_bytes(b"x"), r"mem_reg\.onnx does not match"),
        (
            lambda folder: ((folder / "seen_rows.json").write_text(json.dumps([[1.0] * 9])), write_manifest(folder)),
            "do not belong together",
        ),
    ],
)
def test_a_champion_that_is_not_whole_leaves_the_training_as_it_was(champion, whole, tmp_path, damage, words):
    models = fresh(whole, ["mem_clf"], tmp_path)
    before = contents(models)
    damage(champion)
    with pytest.raises(InputError, match=words):
        assemble(models, champion)
    assert contents(models) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["champion", "models", "whole"]


@pytest.mark.parametrize("networks", CHOICES[1:4])
def test_a_part_of_a_mixed_bundle_is_packed_with_what_it_needs(champion, whole, tmp_path, networks):
    models = fresh(whole, ["mem_reg"], tmp_path)
    assemble(models, champion)
    part = write_part(models, networks, tmp_path / "part")
    expected = Bundle.load(models, networks).predict(FEATURES)
    found = Bundle.load(part).predict(FEATURES)
    assert set(found) == set(expected)
    for column, values in expected.items():
        np.testing.assert_array_equal(found[column], values)


def test_the_run_of_a_part_is_the_one_that_trained_it(client, monkeypatch):
    """A version says it by its tags; one that was registered otherwise has a run at most."""
    model = "assemble-test"
    monkeypatch.setattr(assembling, "BUNDLE_MODEL", model)
    client.create_registered_model(model)
    run = client.create_run("0").info.run_id
    tagged = client.create_model_version(model, "s3://bucket/x", run, {"run.mem_clf": "a" * 32, "run.wall_reg": "b"})
    bare = client.create_model_version(model, "s3://bucket/x")
    assert runs_of_version(tagged.version, NETWORKS) == {"mem_clf": "a" * 32, "mem_reg": run, "wall_reg": "b"}
    assert runs_of_version(tagged.version, ["mem_clf"]) == {"mem_clf": "a" * 32}
    assert runs_of_version(bare.version, NETWORKS) == {}
