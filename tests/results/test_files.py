import dataclasses
import json
import tempfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import CalmlflowError, InputError
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


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(names_of_any_script, st.integers(0, 3), st.lists(st.floats(-20, 20), min_size=4, max_size=4)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 4),
)
def test_what_is_written_of_a_classifier_is_read_again(jobs, epochs):
    names, true, logits = zip(*jobs, strict=True)
    powers = np.exp(np.array(logits))
    results = classifier(list(names), true, powers / powers.sum(axis=1, keepdims=True), epochs)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        write_results(results, folder)
        same(read_results(folder, "mem_bin"), results)


@settings(deadline=None)
@given(
    st.lists(st.tuples(names_of_any_script, st.floats(0.2, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8),
    st.sampled_from(["memory", "wallclock"]),
    st.integers(0, 4),
)
def test_what_is_written_of_a_regressor_is_read_again(jobs, target, epochs):
    names, actual, predicted = zip(*jobs, strict=True)
    results = regressor(list(names), actual, predicted, target, epochs)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        write_results(results, folder)
        same(read_results(folder, target), results)


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
    pred_proba = np.load(tmp_path / "fnfp-pred_proba.npz", allow_pickle=False)
    assert pred_proba["index"].dtype == "<U9"
    assert pred_proba["columns"].tolist() == ["y_true", "y_pred", "proba"]
    assert pred_proba["data"].tolist() == [[0, 1, 0.9], [1, 0, 0.6]]
    assert np.load(tmp_path / "fnfp-fn_idx.npz", allow_pickle=False)["1"].tolist() == ["o4qpkupdq"]
    assert np.load(tmp_path / "fnfp-fp_idx.npz", allow_pickle=False)["0"].tolist() == ["j8c601020"]
    shapes = {path.name: np.load(path, allow_pickle=False).shape for path in tmp_path.glob("*.npy")}
    assert shapes == {
        "y_scores.npy": (3, 4), "y_pred.npy": (3, 4), "cmx.npy": (4, 4), "cmx_norm.npy": (4, 4), "roc_auc.npy": (4,),
    }  # fmt: skip


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


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_aside(tmp_path):
    (tmp_path / "residuals.npy").mkdir()
    with pytest.raises(CalmlflowError, match=r"residuals\.npy cannot be written"):
        write_results(small("memory"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.npy", "residuals.npy"}


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "memory").write_text("")
    with pytest.raises(CalmlflowError, match=r"memory/predictions\.npy cannot be written"):
        write_results(small("memory"), tmp_path / "memory")
    with pytest.raises(InputError, match=r"memory/predictions\.npy"):
        read_results(tmp_path / "memory", "memory")


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
    assert {name: getattr(fnfp, field) is None for name, field in FNFP.items()} == {n: n == absent for n in FNFP}


def test_an_older_folder_without_fnfp_files_loads(tmp_path):
    write_results(small("mem_bin"), tmp_path)
    for name in FNFP:
        (tmp_path / name).unlink()
    assert read_results(tmp_path, "mem_bin").fnfp is None


def test_the_fnfp_files_of_the_earlier_library_are_skipped_with_a_warning(tmp_path):
    write_results(small("mem_bin"), tmp_path)
    save_objects(tmp_path / "fnfp.npz", "fnfp", Bomb(tmp_path / "bomb"))
    save_objects(tmp_path / "fnfp-fn_idx.npz", "1", Bomb(tmp_path / "bomb"))
    with pytest.warns(UserWarning, match="pickled") as caught:
        results = read_results(tmp_path, "mem_bin")
    assert [str(warning.message).split(",")[0] for warning in caught] == [
        str(tmp_path / "fnfp.npz"), str(tmp_path / "fnfp-fn_idx.npz"),
    ]  # fmt: skip
    assert not (tmp_path / "bomb").exists()
    fnfp = small("mem_bin").fnfp
    skipped = dataclasses.replace(fnfp, conf_idx=None, conf_proba=None, fn_idx=None)
    same(results, dataclasses.replace(small("mem_bin"), fnfp=skipped))


def test_what_else_the_earlier_library_writes_loads(tmp_path):
    """Booleans in y_onehot, no file for bins without false negatives, no columns in an empty table of probabilities."""
    names = ["j8c601020", "o4qpkupdq"]
    results = classifier(names, [0, 1], [[1, 0, 0, 0], [0, 1, 0, 0]])
    write_results(results, tmp_path)
    results.y_onehot.astype(bool).to_csv(tmp_path / "y_onehot.csv", index=False)
    np.savez(tmp_path / "fnfp-fn_idx.npz")
    np.savez(tmp_path / "fnfp-pred_proba.npz", index=[], columns=["y_true", "y_pred", "proba"], data=[])
    same(read_results(tmp_path, "mem_bin"), results)
