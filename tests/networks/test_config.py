"""Hyper-parameters given by a user."""

import json

import pytest

from calmlflow.errors import InputError
from calmlflow.networks.config import DEFAULTS, Searched, TrainingConfig, read_config, read_found_on


def write(folder, content) -> str:
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


def test_given_values_count_and_the_rest_keeps_its_default(tmp_path):
    assert read_config("default") == DEFAULTS
    found = read_config(write(tmp_path, {"wall_reg": {"epochs": 7, "learning_rate": 0.01}, "mem_reg": {}}))
    wall_reg = TrainingConfig(**{**vars(DEFAULTS["wall_reg"]), "epochs": 7, "learning_rate": 0.01})
    assert found == {**DEFAULTS, "wall_reg": wall_reg}


# Bounds that are in; values just past them are out.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1), ("epochs", 100_000), ("refit_epochs", 0), ("members", 2), ("members", 16),
        ("learning_rate", 1), ("learning_rate", 1e-7), ("weight_decay", 0), ("patience", 1), ("linear_share", 1.0),
    ],
)  # fmt: skip
def test_every_hyper_parameter_can_be_set(tmp_path, name, value):
    assert getattr(read_config(write(tmp_path, {"mem_reg": {name: value}}))["mem_reg"], name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 10.0), ("epochs", "100"), ("epochs", True), ("epochs", 100_001), ("refit_epochs", -1),
        ("members", 1), ("members", 17), ("learning_rate", 0), ("learning_rate", 1.5), ("learning_rate", float("nan")),
        ("weight_decay", -0.1), ("patience", 0), ("linear_share", 1.01), ("epoch", 3),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_file_network_and_key(tmp_path, name, value):
    with pytest.raises(InputError) as caught:
        read_config(write(tmp_path, {"mem_reg": {name: value}}))
    assert f"config.json: mem_reg.{name} is {value!r}; expected " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_may_say_what_it_was_found_on(tmp_path):
    searched = Searched("jobs.csv", "time", 3, 0.2, 1_620_000_000)
    path = write(tmp_path, {"mem_clf": {"epochs": 9}, "found_on": {"mem_clf": vars(searched)}})
    assert read_config(path)["mem_clf"].epochs == 9
    assert read_found_on(path) == {"mem_clf": searched}
    assert read_found_on(write(tmp_path, {"mem_clf": {"epochs": 9}})) == read_found_on("default") == {}
    with pytest.raises(InputError, match=r"config.json: found_on.mem_clf.split is 'visit'; expected"):
        read_config(write(tmp_path, {"found_on": {"mem_clf": {**vars(searched), "split": "visit"}}}))


@pytest.mark.parametrize(
    "content", [b"{", b"", [], {"memclf": {}}, {"mem_clf": 3}, {"mem_clf": None}, b"\xff\xfe\x00", b"[" * 100_000]
)
def test_a_file_of_another_shape_is_named(tmp_path, content):
    with pytest.raises(InputError, match=r"config .*config\.json: .*; expected ") as caught:
        read_config(write(tmp_path, content))
    assert len(str(caught.value).splitlines()[0]) == len(str(caught.value)) < 600
    with pytest.raises(InputError, match=f"config {tmp_path} cannot be read"):
        read_config(str(tmp_path))
