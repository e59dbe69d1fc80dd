"""A bundle is what its manifest says, or it is refused; its answers are those of its files."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from predictor_samples import KILL_TIME, NETWORKS, SCALING, write_bundle, write_network
from scipy.stats import yeojohnson

from calmlflow.hst.errors import InputError
from calmlflow.predictor.bundle import Bundle, write_manifest
from calmlflow.predictor.predictor import as_answers

generator = np.random.default_rng(7)
FEATURES = np.column_stack(
    [
        generator.integers(1, 60, 200),
        np.round(generator.lognormal(3, 1.5, 200)),
        generator.integers(0, 2, (200, 6)),
        generator.integers(0, 4, 200),
    ]
)


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "bundle")


def scaled(features):
    """By scipy, which fits and transforms on its own."""
    found = features.astype(float)
    for column in range(2):
        powered = yeojohnson(found[:, column], SCALING.lambdas[column])
        found[:, column] = (powered - SCALING.mu[column]) / SCALING.sigma[column]
    return found.astype(np.float32)


def test_predictions_are_those_of_the_three_files(folder):
    found = Bundle.load(folder).predict(FEATURES)
    direct = {
        network: onnxruntime.InferenceSession(folder / network / f"{network}.onnx").run(
            None, {"features": scaled(FEATURES)}
        )[0]
        for network in NETWORKS
    }
    np.testing.assert_allclose(found["probabilities"], direct["mem_clf"], rtol=1e-4)
    np.testing.assert_array_equal(found["bin_pred"], direct["mem_clf"].argmax(axis=1))
    assert len(set(found["bin_pred"])) == 4
    np.testing.assert_allclose(found["mem_pred"], direct["mem_reg"][:, 0], rtol=1e-4)
    np.testing.assert_allclose(found["wall_pred"], direct["wall_reg"][:, 0], rtol=1e-4)
    wall = found["wall_pred"]
    (edge,), (low, high) = KILL_TIME.edges_s, KILL_TIME.factors
    assert wall.min() < edge < wall.max()
    expected = np.clip(np.ceil(wall * np.where(wall <= edge, low, high)), 60, 172_800)
    np.testing.assert_array_equal(found["kill_time"], expected)


def test_a_job_gets_the_same_answer_alone_and_among_others(folder):
    bundle = Bundle.load(folder)
    together = as_answers(bundle.predict(FEATURES))
    assert [as_answers(bundle.predict([row]))[0]["memBin"] for row in FEATURES] == [one["memBin"] for one in together]


def test_a_bundle_can_be_asked_by_many_threads(folder):
    bundle = Bundle.load(folder)
    expected = bundle.predict(FEATURES)["wall_pred"]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: bundle.predict(FEATURES)["wall_pred"], range(50)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("network", "columns", "keys"),
    [
        ("mem_clf", {"bin_pred", "probabilities"}, ("memBin", "probabilities", "unseen")),
        ("mem_reg", {"mem_pred"}, ("memVal",)),
        ("wall_reg", {"wall_pred", "kill_time"}, ("clockTime", "killTime")),
    ],
)
def test_one_network_answers_its_own_keys(folder, network, columns, keys):
    bundle = Bundle.load(folder, [network])
    found = bundle.predict(FEATURES[:2])
    assert set(found) == columns
    assert bundle.answer_keys == keys
    assert [set(answer) for answer in as_answers(found)] == [set(keys)] * 2


def test_an_answer_is_in_the_words_of_the_answer(folder):
    bundle = Bundle.load(folder)
    found = bundle.predict(FEATURES[:1])
    (answer,) = as_answers(found)
    assert json.loads(json.dumps(answer)) == answer
    assert answer["memVal"] == round(float(found["mem_pred"][0]), 2)
    assert answer["clockTime"] == int(found["wall_pred"][0])
    assert answer["killTime"] == found["kill_time"][0]
    assert answer["probabilities"] == pytest.approx(found["probabilities"][0].tolist(), abs=1e-6)


@pytest.mark.parametrize("file", ["mem_reg/mem_reg.onnx", "tx_data.json", "killtime.json"])
def test_a_file_that_is_not_there_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        Bundle.load(folder)


@pytest.mark.parametrize("file", ["mem_clf/mem_clf.onnx", "mem_reg/mem_reg.onnx", "wall_reg/wall_reg.onnx"])
def test_one_flipped_bit_is_enough(folder, file):
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{file} does not match its SHA-256"):
        Bundle.load(folder)


def test_a_scaling_of_another_training_is_refused(folder):
    (folder / "tx_data.json").write_text((folder / "tx_data.json").read_text().replace("1.2", "1.3"))
    with pytest.raises(InputError, match=r"tx_data\.json does not match"):
        Bundle.load(folder)


def change_manifest(folder, change):
    manifest = json.loads((folder / "bundle.json").read_text())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_outside_of_the_folder_is_refused(folder, tmp_path, absolute):
    content = b"of somebody else"
    (tmp_path / "secret").write_bytes(content)
    name = str(tmp_path / "secret") if absolute else "../secret"
    change_manifest(folder, lambda manifest: manifest["sha256"].update({name: hashlib.sha256(content).hexdigest()}))
    with pytest.raises(InputError, match="lies outside the bundle"):
        Bundle.load(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "tx_data.json").rename(tmp_path / "tx_data.json")
    (folder / "tx_data.json").symlink_to(tmp_path / "tx_data.json")
    with pytest.raises(InputError, match="lies outside the bundle"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(format=2),
        lambda manifest: manifest.update(format="1"),
        lambda manifest: manifest.pop("format"),
        lambda manifest: manifest.pop("networks"),
        lambda manifest: manifest.update(networks=["mem_clf", "other"]),
        lambda manifest: manifest.update(networks=3),
        lambda manifest: manifest.update(networks=[[]]),
        lambda manifest: manifest.pop("sha256"),
        lambda manifest: manifest.update(sha256=["tx_data.json"]),
        lambda manifest: manifest["sha256"].update({"tx_data.json": 5}),
    ],
)
def test_a_manifest_of_another_shape_is_refused(folder, change):
    change_manifest(folder, change)
    with pytest.raises(InputError, match=r"bundle\.json is damaged; expected format 1"):
        Bundle.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / "bundle.json").write_bytes(content)
    with pytest.raises(InputError, match=r"bundle\.json is damaged"):
        Bundle.load(folder)


def test_a_folder_without_a_manifest_is_named(folder, tmp_path):
    (folder / "bundle.json").unlink()
    for path in (folder, tmp_path / "none"):
        with pytest.raises(InputError, match=r"bundle\.json cannot be read"):
            Bundle.load(path)


@pytest.mark.parametrize("file", ["wall_reg/wall_reg.onnx", "killtime.json", "tx_data.json"])
def test_what_the_manifest_does_not_list_is_not_read(folder, file):
    change_manifest(folder, lambda manifest: manifest["sha256"].pop(file))
    with pytest.raises(InputError, match=f"{file} is not listed"):
        Bundle.load(folder)


@pytest.mark.parametrize(("network", "outputs"), [("mem_clf", 1), ("mem_reg", 4), ("wall_reg", 4)])
def test_a_network_of_another_shape_is_refused(folder, network, outputs):
    write_network(folder / network / f"{network}.onnx", outputs, 1)
    write_manifest(folder)
    with pytest.raises(InputError, match=rf"{network}\.onnx takes and gives"):
        Bundle.load(folder)


def test_a_network_that_is_none_is_refused(folder):
    (folder / "mem_reg" / "mem_reg.onnx").write_bytes(b"a picture of a network")
    write_manifest(folder)
    with pytest.raises(InputError, match=r"mem_reg\.onnx is no ONNX network"):
        Bundle.load(folder)


def test_the_manifest_lists_every_file_and_the_networks_that_are_there(folder):
    (folder / "mem_reg" / "mem_reg.onnx").unlink()
    (folder / "mem_reg" / "mem_reg.keras").write_bytes(b"x")
    write_manifest(folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["networks"] == ["mem_clf", "wall_reg"]
    assert set(manifest["sha256"]) == {
        "killtime.json", "tx_data.json", "mem_clf/mem_clf.onnx", "mem_reg/mem_reg.keras", "wall_reg/wall_reg.onnx",
    }  # fmt: skip
    assert set(Bundle.load(folder).predict(FEATURES)) >= {"bin_pred", "wall_pred"}
