"""Result files: their formats, older folders, and damage."""

import dataclasses
import json
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.results import files
from calmlflow.results.files import read_results, write_results
from tests.samples.results_samples import (
    FILES,
    FNFP,
    NEEDED,
    OPTIONAL,
    Bomb,
    classifier,
    regressor,
    same,
    save_objects,
    small,
)

pytestmark = pytest.mark.filterwarnings("error")

names_of_any_script = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12)


def written_and_read(results, target):
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        write_results(results, folder)
        same(read_results(folder, target), results)


logits = st.lists(st.floats(-20, 20), min_size=4, max_size=4)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(names_of_any_script, st.integers(0, 3), logits), min_size=1, max_size=8), st.integers(0, 4))
def test_what_is_written_of_a_classifier_is_read_again(jobs, epochs):
    names, true, found = zip(*jobs, strict=True)
    powers = np.exp(np.array(found))
    written_and_read(classifier(list(names), true, powers / powers.sum(axis=1, keepdims=True), epochs), "mem_bin")


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(names_of_any_script, st.floats(0.2, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8),
    st.sampled_from(["memory", "wallclock"]),
    st.integers(0, 4),
)
def test_what_is_written_of_a_regressor_is_read_again(jobs, target, epochs):
    names, actual, predicted = zip(*jobs, strict=True)
    written_and_read(regressor(list(names), actual, predicted, target, epochs), target)


def test_names_that_look_like_something_else_stay_names(tmp_path):
    names = ["nan", "NA", "", "0012", "1e5", "True", 'a "b", c']
    write_results(regressor(names, [1] * 7, [2] * 7), tmp_path)
    assert read_results(tmp_path, "memory").test_idx.index.tolist() == names


def test_files_of_a_classifier_have_the_formats_of_the_contract(tmp_path):
    write_results(small("mem_bin"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for target, name in FILES if target == "mem_bin"}
    assert (tmp_path / "test_idx.csv").read_text().splitlines() == [
        "ipst,mem_bin", "j8c601020,0", "o4qpkupdq,1", "ib1f01020,3",
    ]  # fmt: skip
    assert (tmp_path / "y_onehot.csv").read_text().splitlines() == [
        "bin_0,bin_1,bin_2,bin_3", "1,0,0,0", "0,1,0,0", "0,0,0,1",
    ]  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text()).split()[:2] == ["precision", "recall"]
    keys = {path.name: list(np.load(path, allow_pickle=False)) for path in tmp_path.glob("*.npz")}
    assert keys == {
        "acc_loss.npz": ["train_acc", "train_loss", "test_acc", "test_loss"],
        "history.npz": ["loss", "accuracy", "val_loss", "val_accuracy"],
        "fnfp.npz": ["conf_idx", "conf_proba"],
        "fnfp-pred_proba.npz": ["index", "columns", "data"],
        "fnfp-fn_idx.npz": ["0", "1", "2", "3"],
        "fnfp-fp_idx.npz": ["0", "1", "2", "3"],
    }
    assert np.load(tmp_path / "fnfp-pred_proba.npz")["columns"].tolist() == ["y_true", "y_pred", "proba"]
    assert np.load(tmp_path / "fnfp-pred_proba.npz")["data"].tolist() == [[0, 1, 0.9], [1, 0, 0.6]]
    assert np.load(tmp_path / "fnfp-fn_idx.npz")["1"].tolist() == ["o4qpkupdq"]
    assert np.load(tmp_path / "fnfp-fp_idx.npz")["0"].tolist() == ["j8c601020"]


def test_files_of_a_regressor_have_the_formats_of_the_contract(tmp_path):
    write_results(small("memory"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for target, name in FILES if target == "memory"}
    assert (tmp_path / "test_idx.csv").read_text().splitlines()[:2] == ["ipst,memory", "j8c601020,0.5"]
    assert np.load(tmp_path / "predictions.npy").tolist() == [[0.75, 0.5], [1.5, 1.5], [18.5, 20]]
    assert np.load(tmp_path / "residuals.npy").tolist() == [0.25, 0, -1.5]
    assert list(np.load(tmp_path / "history.npz")) == ["loss", "rmse", "val_loss", "val_rmse"]
    assert list(np.load(tmp_path / "loss.npz")) == [
        "train_loss", "train_rmse", "test_loss", "test_rmse", "rmse_pos", "rmse_neg", "l2_norm", "l2_pos", "l2_neg",
    ]  # fmt: skip


def test_writing_over_a_folder_leaves_nothing_of_the_old_training(tmp_path):
    write_results(small("mem_bin"), tmp_path)
    without = dataclasses.replace(small("mem_bin"), fnfp=None, history=None)
    write_results(without, tmp_path)
    same(read_results(tmp_path, "mem_bin"), without)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "residuals.npy").mkdir()
    with pytest.raises(CalmlflowError, match=r"residuals\.npy cannot be written"):
        write_results(small("memory"), tmp_path)


@pytest.mark.parametrize(("target", "name"), [(target, name) for target in NEEDED for name in NEEDED[target]])
def test_a_needed_file_that_is_missing_is_named(tmp_path, target, name):
    write_results(small(target), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_results(tmp_path, target)


@pytest.mark.parametrize(
    ("target", "name", "field"), [(target, *item) for target in OPTIONAL for item in OPTIONAL[target].items()]
)
def test_an_older_folder_without_an_optional_file_loads(tmp_path, target, name, field):
    write_results(small(target), tmp_path)
    (tmp_path / name).unlink()
    same(read_results(tmp_path, target), dataclasses.replace(small(target), **{field: None}))


@pytest.mark.parametrize("absent", FNFP)
def test_an_older_folder_with_some_of_the_fnfp_files_loads(tmp_path, absent):
    write_results(small("mem_bin"), tmp_path)
    (tmp_path / absent).unlink()
    fnfp = read_results(tmp_path, "mem_bin").fnfp
    assert [name for name, field in FNFP.items() if getattr(fnfp, field) is None] == [absent]


def test_the_fnfp_files_of_the_earlier_library_are_skipped_with_a_warning(tmp_path):
    write_results(small("mem_bin"), tmp_path)
    save_objects(tmp_path / "fnfp.npz", "fnfp", Bomb(tmp_path / "bomb"))
    save_objects(tmp_path / "fnfp-fn_idx.npz", "1", Bomb(tmp_path / "bomb"))
    with pytest.warns(UserWarning, match="pickled") as caught:
        results = read_results(tmp_path, "mem_bin")
    skipped = [str(warning.message).partition(" is pickled")[0] for warning in caught]
    assert skipped == [str(tmp_path / "fnfp.npz"), str(tmp_path / "fnfp-fn_idx.npz")]
    assert not (tmp_path / "bomb").exists()
    fnfp = dataclasses.replace(small("mem_bin").fnfp, conf_idx=None, conf_proba=None, fn_idx=None)
    same(results, dataclasses.replace(small("mem_bin"), fnfp=fnfp))


def test_what_else_the_earlier_library_writes_loads(tmp_path):
    """Booleans in y_onehot, no file for bins without false negatives, no columns in an empty table of probabilities."""
    names = ["j8c601020", "o4qpkupdq"]
    results = classifier(names, [0, 1], [[1, 0, 0, 0], [0, 1, 0, 0]])
    write_results(results, tmp_path)
    results.y_onehot.astype(bool).to_csv(tmp_path / "y_onehot.csv", index=False)
    np.savez(tmp_path / "fnfp-fn_idx.npz")
    np.savez(tmp_path / "fnfp-pred_proba.npz", index=[], columns=["y_true", "y_pred", "proba"], data=[])
    same(read_results(tmp_path, "mem_bin"), results)


# -- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "name"), FILES)
def test_a_truncated_file_is_named(tmp_path, target, name):
    write_results(small(target), tmp_path)
    whole = (tmp_path / name).read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole[:-1]) if byte == ord("\n")]
    for length in {0, 1, len(whole) // 2, len(whole) - 1, *(ends if name.endswith("csv") else ())}:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=name):
            read_results(tmp_path, target)


@pytest.mark.parametrize("name", ["y_scores.npy", "cmx.npy", "roc_auc.npy", "history.npz", "acc_loss.npz"])
def test_pickles_are_refused_unread(tmp_path, name):
    write_results(small("mem_bin"), tmp_path)
    bomb = Bomb(tmp_path / "bomb")
    if name.endswith("npy"):
        np.save(tmp_path / name, np.array([bomb], dtype=object), allow_pickle=True)
    else:
        save_objects(tmp_path / name, "loss", bomb)
    with pytest.raises(InputError, match=f"{name}.*pickled"):
        read_results(tmp_path, "mem_bin")
    (tmp_path / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError, match=f"{name} is damaged"):
        read_results(tmp_path, "mem_bin")
    assert not (tmp_path / "bomb").exists()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FILES), st.data())
def test_changed_bytes_end_in_results_or_in_an_error_that_names_the_file(file, data):
    target, name = file
    with tempfile.TemporaryDirectory() as folder:
        write_results(small(target), folder)
        path = Path(folder) / name
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_results(folder, target)
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("target", "name", "content"),
    [
        ("mem_bin", "y_scores.npy", np.zeros((3, 3))),
        ("mem_bin", "y_scores.npy", np.full((3, 4), "0.25")),
        ("mem_bin", "y_pred.npy", np.zeros((2, 4))),
        ("mem_bin", "cmx.npy", np.full((4, 4), np.nan)),
        ("mem_bin", "cmx_norm.npy", np.zeros(16)),
        ("mem_bin", "roc_auc.npy", np.zeros(3)),
        ("memory", "predictions.npy", np.zeros((3, 1))),
        ("memory", "residuals.npy", np.zeros(4)),
        ("mem_bin", "acc_loss.npz", {"train_acc": [1, 2], "train_loss": 1, "test_acc": 1, "test_loss": 1}),
        ("mem_bin", "history.npz", {"loss": [1], "accuracy": [1], "val_loss": [1], "val_accuracy": [1, 2]}),
        ("memory", "loss.npz", {"train_loss": 1}),
        ("mem_bin", "fnfp.npz", {"conf_idx": [1, 2], "conf_proba": [0.5]}),
        ("mem_bin", "fnfp-fn_idx.npz", {"0": [1, 2]}),
        ("mem_bin", "fnfp-pred_proba.npz", {"index": ["a"], "data": [[0, 1]]}),
        ("mem_bin", "test_idx.csv", "name,mem_bin\na,0\nb,1\nc,3\n"),
        ("mem_bin", "test_idx.csv", "ipst,mem_bin\na,0\nb,1\nc,4\n"),
        ("memory", "test_idx.csv", "ipst,wallclock\na,0\nb,1\nc,3\n"),
        ("memory", "test_idx.csv", "ipst,memory\na,0\nb,1\nc,much\n"),
        ("mem_bin", "y_onehot.csv", "bin_0,bin_1,bin_2,bin_3\n1,0,0,0\n0,1,0,0\n0,0,0,2\n"),
        ("mem_bin", "report.json", '{"2g": 1}'),
    ],
)
def test_content_of_another_kind_is_named(tmp_path, target, name, content):
    write_results(small(target), tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(InputError, match=name):
        read_results(tmp_path, target)


def test_an_archive_that_unpacks_past_the_limit_is_refused(tmp_path, monkeypatch):
    write_results(small("memory"), tmp_path)
    np.savez_compressed(tmp_path / "history.npz", loss=np.zeros(100_000))
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10_000)
    with pytest.raises(InputError, match=r"history\.npz is damaged \(it unpacks to 800128 bytes"):
        read_results(tmp_path, "memory")


def test_an_unknown_target_is_named(tmp_path):
    with pytest.raises(InputError, match="mem_clf"):
        read_results(tmp_path, "mem_clf")
