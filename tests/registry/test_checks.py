"""A version's files, networks and serving, spoiled in each way."""

import hashlib
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.predictor.manifest import MANIFEST, write_manifest
from calmlflow.registry.checks import check_onnx, check_serving, check_whole, guarded, probe_rows

NETWORKS = ("mem_clf", "mem_reg", "wall_reg")


def digest_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()


def flip_a_byte(bundle: Path) -> None:
    network = bundle / "mem_reg" / "mem_reg.onnx"
    content = bytearray(network.read_bytes())
    content[len(content) // 2] ^= 1
    network.write_bytes(content)


def spoil_scaling(bundle: Path) -> None:
    (bundle / "tx_data.json").write_text('{"lambdas": [1, 1], "mu": [0, 0], "sigma": [1, 1]}')
    write_manifest(bundle)


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        (r"mem_reg/mem_reg\.onnx does not match its SHA-256", flip_a_byte),
        (r"wall_reg\.keras cannot be read", lambda bundle: (bundle / "wall_reg" / "wall_reg.keras").unlink()),
        (r"surplus\.txt is not listed", lambda bundle: (bundle / "surplus.txt").write_text("x")),
        (r"bundle\.json has the SHA-256", spoil_scaling),
    ],
)
def test_a_bundle_must_be_whole_and_the_one_that_was_registered(copy, words, spoil):
    bundle = copy / "artifacts" / "bundle"
    recorded = digest_of(bundle)
    assert "files match" in check_whole(bundle, recorded, NETWORKS)
    assert "files match" in check_whole(bundle, recorded, None)
    spoil(bundle)
    with pytest.raises(InputError, match=words):
        check_whole(bundle, recorded, NETWORKS)


def test_a_bundle_must_hold_the_networks_of_its_model(downloaded):
    bundle = downloaded / "artifacts" / "bundle"
    with pytest.raises(InputError, match="it holds the networks mem_clf, mem_reg, wall_reg; expected mem_clf"):
        check_whole(bundle, digest_of(bundle), ["mem_clf"])
    with pytest.raises(InputError, match="expected a tag bundle_sha256 as registered"):
        check_whole(bundle, None, NETWORKS)


def test_what_the_export_compared_is_not_compared_again(copy, monkeypatch):
    bundle = copy / "artifacts" / "bundle"
    # In place of TensorFlow, which the module imports.
    monkeypatch.setitem(sys.modules, "calmlflow.networks.keras_file", None)
    found = check_onnx(bundle, NETWORKS, np.zeros((1, 9)))
    assert all(check.passed and "when it was exported" in check.figure for check in found), found
    with (bundle / "mem_reg" / "mem_reg.keras").open("ab") as file:
        file.write(b"x")
    found = check_onnx(bundle, NETWORKS, np.zeros((1, 9)))
    assert [check.name for check in found if not check.passed] == ["onnx.mem_reg"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mem_clf", "wall_reg"])
def test_onnx_must_answer_as_keras_does(copy, network):
    from calmlflow.networks.architectures import TargetRange, build_classifier, build_regressor

    bundle = copy / "artifacts" / "bundle"
    other = build_classifier(2) if network == "mem_clf" else build_regressor(network, TargetRange(6, 1, 10, 9000), 2)
    other.save(bundle / network / f"{network}.keras")
    features = np.array([[1, 2, 0, 1, 0, 1, 0, 1, 2], [9, 40, 1, 1, 2, 0, 1, 0, 0]], float)
    found = {check.name: check for check in check_onnx(bundle, NETWORKS, features)}
    assert [name for name, check in found.items() if not check.passed] == [f"onnx.{network}"]
    assert "ONNX and Keras answers differ" in found[f"onnx.{network}"].figure


def change_mlmodel(folder: Path, change) -> None:
    described = yaml.safe_load((folder / "MLmodel").read_text())
    change(described)
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


def drop_a_column(described: dict) -> None:
    signature = described["signature"]
    signature["inputs"] = json.dumps(json.loads(signature["inputs"])[:-1])


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        (
            "cannot answer the input example .it has no input example.",
            lambda folder: change_mlmodel(folder, lambda described: described.pop("saved_input_example_info")),
        ),
        ("the signature's inputs are", lambda folder: change_mlmodel(folder, drop_a_column)),
        (
            r"cannot answer the input example .*Error: no",
            lambda folder: (folder / "served.py").write_text("raise ValueError('no')"),
        ),
    ],
)
def test_a_version_must_be_servable(copy, words, spoil):
    spoil(copy)
    with pytest.raises(InputError, match=words):
        check_serving(copy, copy / "artifacts" / "bundle", NETWORKS)


def name_a_pickle(copy: Path, canary: Path) -> None:
    (copy / "python_model.pkl").write_bytes(pickle.dumps(Opened(str(canary))))
    change_mlmodel(copy, lambda described: described["flavors"]["python_function"].pop("model_code_path"))
    more = {"python_model": "python_model.pkl", "cloudpickle_version": "3.1.1"}
    change_mlmodel(copy, lambda described: described["flavors"]["python_function"].update(more))


class Opened:
    """To unpickle it creates a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("MLmodel loads 'python_model.pkl' by", name_a_pickle),
        ("MLmodel loads 'served.py' by 'evil'", lambda copy, canary: change_mlmodel(
            copy, lambda described: described["flavors"]["python_function"].update(loader_module="evil"))),
    ],
)  # fmt: skip
def test_a_version_is_served_from_code_by_mlflow_and_nothing_is_unpickled(copy, tmp_path, words, spoil):
    spoil(copy, tmp_path / "canary")
    with pytest.raises(InputError, match=words):
        check_serving(copy, copy / "artifacts" / "bundle", NETWORKS)
    assert not (tmp_path / "canary").exists()


def test_the_serving_check_sees_nothing_of_the_user(copy, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "CALMLFLOW_JOBS"):
        monkeypatch.setenv(name, "of the user")
    seen = tmp_path / "seen.json"
    look = "import json, os, pathlib; found = [dict(os.environ), os.listdir(pathlib.Path.home())]; "
    write = f"pathlib.Path({str(seen)!r}).write_text(json.dumps(found))\n"
    (copy / "served.py").write_text(look + write + (copy / "served.py").read_text())
    assert check_serving(copy, copy / "artifacts" / "bundle", NETWORKS) == "signature and input example work"
    environment, at_home = json.loads(seen.read_text())
    assert not {name for name, value in environment.items() if value == "of the user" or name.startswith("AWS_")}
    assert (environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"], at_home) == ("false", [])
    assert environment["HOME"] != os.environ["HOME"]
    assert not Path(environment["HOME"]).exists()


def test_probes_are_smaller_and_larger_than_the_jobs_of_every_kind():
    jobs = np.array([[2, 9, 0, 1, 0, 0, 0, 0, 2], [6, 30, 0, 1, 0, 0, 0, 0, 2], [1, 0, 1, 0, 0, 0, 0, 0, 3]], float)
    found = sorted(map(tuple, probe_rows(jobs)))
    flags, alone = jobs[0, 2:], jobs[2, 2:]
    assert found == [
        (1, 0, *alone), (1, 0, *alone), (1, 4, *flags), (1, 60, *flags), (2, 0, *alone), (2, 0, *alone),
        (12, 4, *flags), (12, 60, *flags),
    ]  # fmt: skip


def test_a_check_that_breaks_is_one_that_failed():
    def broken(error):
        raise error

    assert guarded("x", "y", lambda: "fine") == ("x", True, "fine", "y")
    assert guarded("x", "y", lambda: broken(CalmlflowError("why"))) == ("x", False, "why", "y")
    assert guarded("x", "y", lambda: broken(KeyError("a\nb"))).figure == r"KeyError: 'a\nb'"
