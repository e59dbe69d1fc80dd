"""Both ways between calmlflow and the earlier library, spacekit 1.1.4, with the real package.

It sets matplotlib's style when imported and numpy's print options when used; the fixture takes both back.
"""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from calmlflow import load_results
from calmlflow.results.files import read_results, write_results
from tests.samples.results_samples import classifier, regressor, same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # It divides by empty sums.

QUIET = {"console": False, "logfile": False}
NAMES = ["j8c601020", "o4qpkupdq", "ib1f01020", "lbek01010", "iabc01xyq", "jbcd04010", "oabc06090", "labc05010"]
BINS = [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.fixture(scope="module")
def compute():
    with mpl.rc_context(), np.printoptions():
        from spacekit.analyzer import compute

        yield compute


def softmax(seed, n):
    powers = np.exp(np.random.default_rng(seed).normal(size=(n, 4)))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bins", [BINS, [0, 0, 1, 1, 0, 1, 0, 1], [2] * 8], ids=["all bins", "two bins", "one bin"])
def test_a_classifier_of_calmlflow_loads_in_spacekit(compute, tmp_path, bins):
    ours = classifier(NAMES, bins, softmax(0, 8))
    write_results(ours, tmp_path)
    loader = compute.ComputeMulti(res_path=str(tmp_path), **QUIET)
    outputs = loader.upload()
    theirs = loader.load_results(outputs)
    for field in ("y_scores", "y_pred", "cmx", "cmx_norm", "roc_auc"):
        np.testing.assert_array_equal(getattr(theirs, field), getattr(ours, field))
    pd.testing.assert_frame_equal(theirs.y_onehot, ours.y_onehot)
    assert theirs.report == ours.report
    assert {key: float(value) for key, value in theirs.acc_loss.items()} == ours.acc_loss
    same(dict(theirs.history), ours.history)
    assert outputs["test_idx"]["mem_bin"].to_dict() == dict(zip(NAMES, bins, strict=True))
    np.testing.assert_array_equal(theirs.fnfp["conf_idx"], ours.fnfp.conf_idx)
    table = pd.DataFrame(**{key: theirs.fnfp["pred_proba"][key] for key in ("index", "columns", "data")})
    assert table["y_true"].astype(int).to_dict() == ours.fnfp.pred_proba["y_true"].to_dict()
    for side in ("fn_idx", "fp_idx"):
        same(dict(theirs.fnfp[side]), getattr(ours.fnfp, side))
    assert all(len(figure.data) > 1 for figure in (theirs.roc_fig, theirs.pr_fig, theirs.acc_fig, theirs.loss_fig))


@pytest.mark.parametrize("target", ["memory", "wallclock"])
def test_a_regressor_of_calmlflow_loads_in_spacekit(compute, tmp_path, target):
    ours = regressor(NAMES, np.arange(1.0, 9), np.arange(8.0, 0, -1), target)
    write_results(ours, tmp_path)
    loader = compute.ComputeRegressor(res_path=str(tmp_path), **QUIET)
    theirs = loader.load_results(loader.upload())
    np.testing.assert_array_equal(theirs.predictions, ours.predictions)
    np.testing.assert_array_equal(theirs.residuals, ours.residuals)
    assert {key: float(value) for key, value in theirs.loss.items()} == ours.loss
    assert theirs.test_idx[target].to_dict() == dict(zip(NAMES, range(1, 9), strict=True))
    assert theirs.res_fig.data[0].y.tolist() == list(range(8, 0, -1))
    assert theirs.loss_fig.data[1].y.tolist() == ours.history["val_loss"].tolist()


@pytest.fixture(scope="module")
def earlier(compute, tmp_path_factory):
    """A tree as spacekit's own training leaves it: Keras networks scored by its Compute classes, saved by them."""
    import keras

    tree = tmp_path_factory.mktemp("earlier")
    generator = np.random.default_rng(1)
    features = generator.normal(size=(8, 9)).astype("float32")
    # It splits once, on the memory bins, and hands the same series to every network.
    test_idx = pd.Series(BINS, index=pd.Index(NAMES, name="ipst"), name="mem_bin")

    def saved(make, target, y, network, **compiled):
        network = keras.Sequential([keras.Input((9,)), network])
        network.set_weights([generator.normal(size=weights.shape) for weights in network.get_weights()])
        network.compile(**compiled)
        history = network.fit(features, y, validation_data=(features, y), epochs=2, verbose=0)
        made = make(res_path=str(tree / "results" / target), **QUIET)
        made.inputs(network, history, features, y, features, y, test_idx)
        if target == "mem_bin":
            made.calculate_multi(show_summary=False)
        else:
            made.calculate_results()
        made.make_outputs()
        return made

    rmse = keras.metrics.RootMeanSquaredError
    return SimpleNamespace(
        tree=tree,
        mem_bin=saved(
            compute.ComputeMulti, "mem_bin", np.eye(4)[BINS], keras.layers.Dense(4, activation="softmax"),
            loss="categorical_crossentropy", metrics=["accuracy"],
        ),
        memory=saved(
            compute.ComputeRegressor, "memory", np.arange(1.0, 9)[:, None], keras.layers.Dense(1),
            loss="mse", metrics=[rmse(name="rmse")],
        ),
    )  # fmt: skip


def test_a_classifier_of_spacekit_loads_in_calmlflow(earlier):
    theirs = earlier.mem_bin
    with pytest.warns(UserWarning, match="pickled") as caught:
        ours = read_results(earlier.tree / "results" / "mem_bin", "mem_bin")
    skipped = {str(warning.message).partition(" is pickled")[0].rpartition("/")[2] for warning in caught}
    assert "fnfp.npz" in skipped
    for field in ("y_scores", "y_pred", "cmx", "cmx_norm", "roc_auc"):
        np.testing.assert_array_equal(getattr(ours, field), np.asarray(getattr(theirs, field)))
    assert ours.test_idx.to_dict() == dict(zip(NAMES, BINS, strict=True))
    assert ours.y_onehot.to_numpy().argmax(axis=1).tolist() == BINS
    assert ours.report == theirs.report
    assert ours.acc_loss == {key: float(value) for key, value in theirs.acc_loss.items()}
    assert {key: value.tolist() for key, value in ours.history.items()} == dict(theirs.history)
    assert ours.fnfp.conf_idx is None
    wrong = [name for name, miss in zip(NAMES, theirs.y_pred.argmax(axis=1) != BINS, strict=True) if miss]
    assert wrong
    assert ours.fnfp.pred_proba.index.tolist() == wrong


def test_a_regressor_of_spacekit_loads_in_calmlflow(earlier):
    theirs = earlier.memory
    ours = read_results(earlier.tree / "results" / "memory", "memory")
    np.testing.assert_array_equal(ours.predictions, theirs.predictions)
    np.testing.assert_array_equal(ours.residuals, theirs.residuals)
    # Without a residual above 0 its mean is NaN there; assert_equal takes NaN for equal.
    np.testing.assert_equal(ours.loss, {key: float(value) for key, value in theirs.loss.items()})
    assert {key: value.tolist() for key, value in ours.history.items()} == dict(theirs.history)
    assert ours.test_idx.name == "memory"
    assert ours.test_idx.to_dict() == dict(zip(NAMES, range(1, 9), strict=True))


@pytest.mark.filterwarnings("ignore:.*pickled")
def test_a_tree_of_spacekit_can_be_opened_and_compared(earlier):
    opened = load_results(earlier.tree)
    assert opened.wallclock is None
    assert opened.jobs is None
    accuracy = np.mean(earlier.mem_bin.y_scores.argmax(axis=1) == BINS)
    assert f"accuracy{accuracy:>26.2%}" in opened.summary()
    for comparison in opened.compare(load_results(earlier.tree)).values():
        assert comparison.jobs == 8
        assert not comparison.scores["difference"].any()
