import pickle
import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmlflow.errors import InputError
from calmlflow.results import files
from calmlflow.results.files import read_results, write_results
from tests.samples.results_samples import FILES, Bomb, save_objects, small

pytestmark = pytest.mark.filterwarnings("error")


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


@pytest.mark.parametrize(("target", "name"), FILES)
def test_a_truncated_file_is_named(tmp_path, target, name):
    write_results(small(target), tmp_path)
    whole = (tmp_path / name).read_bytes()
    rest = range(1, len(whole) - 1)
    for length in {0, 1, len(whole) - 1, *random.Random(0).sample(rest, min(20, len(rest)))}:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(InputError, match=name):
            read_results(tmp_path, target)


@pytest.mark.parametrize("name", ["test_idx.csv", "y_onehot.csv"])
def test_a_table_truncated_between_two_rows_is_named(tmp_path, name):
    write_results(small("mem_bin"), tmp_path)
    lines = (tmp_path / name).read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (tmp_path / name).write_text("".join(lines[:kept]))
        with pytest.raises(InputError, match=name):
            read_results(tmp_path, "mem_bin")


@settings(deadline=None, max_examples=100)
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
    ("target", "name", "array"),
    [
        ("mem_bin", "y_scores.npy", np.zeros((3, 3))),
        ("mem_bin", "y_scores.npy", np.full((3, 4), "0.25")),
        ("mem_bin", "y_pred.npy", np.zeros((2, 4))),
        ("mem_bin", "y_pred.npy", np.full((3, 4), np.nan)),
        ("mem_bin", "cmx.npy", np.zeros((3, 3))),
        ("mem_bin", "cmx_norm.npy", np.zeros(16)),
        ("mem_bin", "roc_auc.npy", np.zeros(3)),
        ("memory", "predictions.npy", np.zeros((3, 1))),
        ("memory", "residuals.npy", np.zeros((3, 1))),
        ("memory", "residuals.npy", np.zeros(4)),
        ("mem_bin", "acc_loss.npz", {"train_acc": 1, "train_loss": 1, "test_acc": 1}),
        ("mem_bin", "acc_loss.npz", {"train_acc": [1, 2], "train_loss": 1, "test_acc": 1, "test_loss": 1}),
        ("mem_bin", "history.npz", {"loss": [1], "accuracy": [1], "val_loss": [1], "val_accuracy": [1, 2]}),
        ("memory", "history.npz", {"loss": [1], "accuracy": [1], "val_loss": [1], "val_accuracy": [1]}),
        ("memory", "loss.npz", {"train_loss": 1}),
        ("mem_bin", "fnfp.npz", {"conf_idx": [1, 2], "conf_proba": [0.5]}),
        ("mem_bin", "fnfp.npz", {"conf_idx": [0.5], "conf_proba": [0.5]}),
        ("mem_bin", "fnfp-fn_idx.npz", {"0": [1, 2]}),
        ("mem_bin", "fnfp-pred_proba.npz", {"index": ["a"], "columns": ["y_true", "y_pred"], "data": [[0, 1]]}),
    ],
)
def test_arrays_of_another_kind_are_named(tmp_path, target, name, array):
    write_results(small(target), tmp_path)
    if isinstance(array, dict):
        np.savez(tmp_path / name, **array)
    else:
        np.save(tmp_path / name, array)
    with pytest.raises(InputError, match=name):
        read_results(tmp_path, target)


@pytest.mark.parametrize(
    ("target", "name", "text"),
    [
        ("mem_bin", "test_idx.csv", "name,mem_bin\na,0\nb,1\nc,3\n"),
        ("mem_bin", "test_idx.csv", "ipst,mem_bin\na,0\nb,1\nc,4\n"),
        ("mem_bin", "test_idx.csv", "ipst,mem_bin\na,0\nb,1\nc\n"),
        ("memory", "test_idx.csv", "ipst,wallclock\na,0\nb,1\nc,3\n"),
        ("memory", "test_idx.csv", "ipst,memory\na,0\nb,1\nc,much\n"),
        ("mem_bin", "y_onehot.csv", "bin_0,bin_1,bin_2,bin_3\n1,0,0,0\n0,1,0,0\n0,0,0,2\n"),
        ("mem_bin", "y_onehot.csv", "bin_0,bin_1,bin_2\n1,0,0\n0,1,0\n0,0,0\n"),
        ("mem_bin", "report.json", '{"2g": 1}'),
    ],
)
def test_tables_and_texts_of_another_kind_are_named(tmp_path, target, name, text):
    write_results(small(target), tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_results(tmp_path, target)


def test_a_header_that_speaks_of_more_than_the_file_holds_is_named(tmp_path):
    write_results(small("memory"), tmp_path)
    path = tmp_path / "residuals.npy"
    path.write_bytes(path.read_bytes().replace(b"(3,)", b"(3000000000000,)").replace(b" " * 12, b"", 1))
    with pytest.raises(InputError, match=r"residuals\.npy is damaged"):
        read_results(tmp_path, "memory")


def test_files_and_archives_past_the_limit_are_refused(tmp_path, monkeypatch):
    write_results(small("memory"), tmp_path)
    np.savez_compressed(tmp_path / "history.npz", loss=np.zeros(100_000))
    assert (tmp_path / "history.npz").stat().st_size < 10_000
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10_000)
    with pytest.raises(InputError, match=r"history\.npz unpacks to 800128 bytes"):
        read_results(tmp_path, "memory")
    np.save(tmp_path / "residuals.npy", np.zeros(100_000))
    with pytest.raises(InputError, match=r"residuals\.npy has 800128 bytes"):
        read_results(tmp_path, "memory")


def test_an_unknown_target_is_named(tmp_path):
    with pytest.raises(InputError, match="mem_clf"):
        read_results(tmp_path, "mem_clf")
