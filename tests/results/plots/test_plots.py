"""Plots: what they show is what happened, on any split, in both drawings."""

import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.results.importance import REPEATS, permutation_importance
from calmlflow.results.plots.charts import Bars, Boxes, Density, Guide, Line, Matrix, Points, log_span, log_ticks
from calmlflow.results.plots.classification import classification_charts
from calmlflow.results.plots.data import PER_BIN, data_charts
from calmlflow.results.plots.draw_plotly import figure
from calmlflow.results.plots.draw_png import png
from calmlflow.results.plots.png import classification_plots, data_plots, regression_plots, write_pngs
from calmlflow.results.plots.regression import regression_charts
from tests.samples import results_samples

EPOCHS = {"loss_per_epoch", "accuracy_per_epoch"}
CURVES = {"roc", "precision_recall"}
CLASSIFIER = {*EPOCHS, *CURVES, "confusion_counts", "confusion_shares", "calibration", "errors_by_instrument"}
REGRESSOR = {
    *("loss_per_epoch", "rmse_per_epoch", "predicted_against_actual", "residuals_by_detector", "ratios_by_detector"),
}
JOBS = {
    *("memory_by_instrument", "wallclock_by_instrument", "features_against_memory", "features_against_wallclock"),
}


@pytest.fixture(autouse=True)
def _no_warnings():
    """A warning while drawing is a picture that lies somewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def names_of(n, letters="jloi"):
    return [f"{letters[number % len(letters)]}{number:07d}0" for number in range(n)]


def table_of(n, seed=0, letters="jloi"):
    """Job records of any size."""
    draw = np.random.default_rng(seed)
    names = names_of(n, letters)
    table = pd.DataFrame({name: draw.integers(0, 2, n) for name in FEATURES})
    table["n_files"], table["total_mb"] = draw.integers(1, 50, n), draw.integers(0, 900, n)
    table["instr"] = ["jloi".find(name[0]) for name in names]
    memory = draw.lognormal(0, 1, n) + 0.2
    return table.assign(ipst=names, wallclock=draw.lognormal(5, 2, n), memory=memory, mem_bin=needed_bin(memory))


def classifier(names, true, scores, epochs=3):
    return results_samples.classifier(names, np.asarray(true), scores, epochs)


def regressor(names, actual, predicted, target="memory", epochs=3):
    return results_samples.regressor(names, np.asarray(actual), np.asarray(predicted), target, epochs)


def softmax(n, seed=0):
    scores = np.random.default_rng(seed).random((n, 4)) ** 4 + 1e-6
    return scores / scores.sum(axis=1, keepdims=True)


def marks(chart, kind):
    return [mark for panel in chart.panels for mark in panel.marks if isinstance(mark, kind)]


def only(chart, kind):
    (mark,) = marks(chart, kind)
    return mark


def drawn(charts):
    """Draw both ways; every picture must have ink."""
    for chart in charts.values():
        assert figure(chart).to_json()
        pixels = imread(io.BytesIO(png(chart)))[..., :3]
        assert pixels.shape[1] == 1080
        assert (pixels[120:] < 0.9).any(axis=2).mean() > 0.002, chart.title


# -- Which plots there are ------------------------------------------------------------------------------------------


def test_every_plot_has_its_name_and_is_a_figure():
    n = 60
    names = names_of(n)
    jobs = table_of(n)
    plots = {
        "classifier": classification_plots(classifier(names, np.arange(n) % 4, softmax(n)), jobs),
        "regressor": regression_plots(regressor(names, jobs["memory"], jobs["memory"] * 1.1), jobs),
        "jobs": data_plots(jobs),
    }
    assert {part: set(figures) for part, figures in plots.items()} == {
        "classifier": CLASSIFIER,
        "regressor": REGRESSOR,
        "jobs": JOBS,
    }
    assert all(figure.data for figures in plots.values() for figure in figures.values())


def test_what_a_plot_needs_and_is_not_there_leaves_it_out():
    full = classifier(names_of(8), [0, 1] * 4, softmax(8))
    old = type(full)(**{**vars(full), **dict.fromkeys(("roc_auc", "report", "acc_loss", "history", "fnfp"))})
    assert set(classification_charts(old)) == CLASSIFIER - EPOCHS
    full = regressor(names_of(8), np.arange(1, 9), np.arange(1, 9))
    old = type(full)(full.test_idx, full.predictions, full.residuals, None, None)
    assert set(regression_charts(old)) == {name for name in REGRESSOR if "epoch" not in name}
    nameless = type(full)(None, full.predictions, full.residuals, None, None)
    assert set(regression_charts(nameless)) == {"predicted_against_actual"}
    drawn(regression_charts(nameless))


def test_a_split_of_one_bin_has_no_curves_that_mean_nothing():
    charts = classification_charts(classifier(names_of(5), [2] * 5, softmax(5)))
    assert set(charts) == CLASSIFIER - CURVES
    drawn(charts)


def test_a_history_without_one_finite_value_gives_no_plot_and_gaps_are_gaps():
    one = classifier(names_of(2), [0, 1], softmax(2))
    nothing, gaps = (
        type(one)(**{**vars(one), "history": dict.fromkeys(one.history, np.array(values))})
        for values in ([np.nan, np.inf], [0.0, np.nan, np.inf, 0.5])
    )
    assert not EPOCHS & set(classification_charts(nothing))
    charts = classification_charts(gaps)
    drawn({name: charts[name] for name in EPOCHS})


def test_a_single_job_can_be_drawn():
    n = 1
    jobs = table_of(n)
    names = names_of(n)
    predict = lambda rows: np.full((len(rows), 4), 0.25)  # noqa: E731
    charts = classification_charts(classifier(names, jobs["mem_bin"], softmax(n), epochs=1), jobs, predict)
    assert "feature_importance" in charts
    charts |= regression_charts(regressor(names, jobs["wallclock"], jobs["wallclock"], "wallclock", epochs=1), jobs)
    drawn(charts | data_charts(jobs))


def test_dataset_names_that_nobody_expects_are_drawn_apart_and_escaped():
    names = ["<b>x</b>", "j8c601020", "$\\frac$", "Ω%{x}"]
    jobs = table_of(4).assign(ipst=names)
    charts = regression_charts(regressor(names, [1, 2, 3, 4], [4, 3, 2, 1]), jobs) | data_charts(jobs)
    drawn(charts)
    labels = charts["residuals_by_detector"].panels[0].x.labels
    assert [label.split("\n") for label in labels][-1] == ["other", "3 jobs"]
    said = json.loads(figure(charts["predicted_against_actual"]).to_json())["data"][-1]["text"]
    assert [text.split(" predicted")[0] for text in said] == [
        "&lt;b&gt;x&lt;/b&gt;", "Ω%{x}", "j8c601020", "$\\frac$",
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from(["jloi", "j", "xyz", "oi"]), st.data())
def test_any_split_is_described_and_drawn(true, letters, data):
    n = len(true)
    names = names_of(n, letters)
    charts = classification_charts(classifier(names, true, softmax(n, data.draw(st.integers(0, 99)))))
    assert (set(charts) >= CURVES) == (len(set(true)) > 1)
    numbers = st.floats(1e-3, 1e6) | st.floats(-10, 0)
    predicted = data.draw(st.lists(numbers, min_size=n, max_size=n))
    charts |= regression_charts(
        regressor(names, np.arange(1, n + 1), predicted, data.draw(st.sampled_from(["memory", "wallclock"])))
    )
    for chart in charts.values():
        assert figure(chart).to_json()


def everything(n):
    """Every plot of n jobs as JSON."""
    jobs, names = table_of(n), names_of(n)
    charts = classification_charts(classifier(names, jobs["mem_bin"], softmax(n), epochs=5000), jobs)
    plots = {f"mem_bin {name}": chart for name, chart in charts.items()}
    charts = regression_charts(regressor(names, jobs["wallclock"], jobs["wallclock"] * softmax(n)[:, 0]), jobs)
    return {name: figure(chart).to_json() for name, chart in (plots | charts | data_charts(jobs)).items()}


def test_a_hundred_thousand_jobs_give_small_plots():
    assert sum(map(len, everything(100_000).values())) < 1_000_000


def test_the_same_jobs_give_the_same_plots():
    assert everything(3000) == everything(3000)


# -- What they show -------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_counts_by_needed_and_most_probable_bin():
    scores = np.eye(4)[[0, 0, 1, 0]]
    charts = classification_charts(classifier(names_of(4), [0, 0, 0, 3], scores))
    counts = only(charts["confusion_counts"], Matrix)
    assert counts.texts == [["2", "1", "0", "0"], ["0"] * 4, ["0"] * 4, ["1", "0", "0", "0"]]
    shares = only(charts["confusion_shares"], Matrix)
    assert shares.texts[0] == ["66.7%", "33.3%", "0.0%", "0.0%"]
    assert shares.texts[1] == ["no job"] * 4
    assert charts["confusion_counts"].panels[0].y.labels == ("2g\n3 jobs", "8g\n0 jobs", "16g\n0 jobs", "64g\n1 job")


def test_errors_are_counted_by_instrument_and_side():
    names = ["j00000010", "j00000020", "j00000030", "j00000040", "l00000010", "i00000010"]
    chart = classification_charts(classifier(names, [1, 1, 1, 0, 0, 2], np.eye(4)[[0, 1, 2, 1, 0, 0]]))[
        "errors_by_instrument"
    ]
    assert chart.panels[0].x.labels == ("ACS\n4 jobs", "COS\n1 job", "WFC3\n1 job")
    low, high = marks(chart, Bars)
    np.testing.assert_allclose(low.values, [1 / 4, 0, 1])
    np.testing.assert_allclose(high.values, [2 / 4, 0, 0])
    assert low.texts == ["25.0% (1)", "0.0% (0)", "100.0% (1)"]


def test_calibration_holds_the_stated_probability_against_the_share_of_hits():
    # Four jobs at 0.7, three of them hits; one at 1.
    scores = [[0.7, 0.3, 0, 0]] * 4 + [[0, 0, 0, 1]]
    chart = classification_charts(classifier(names_of(5), [0, 0, 0, 1, 3], scores))["calibration"]
    points = only(chart, Points)
    np.testing.assert_allclose(points.x, [0.7, 1])
    np.testing.assert_allclose(points.y, [0.75, 1])
    # Wilson's interval of 3 of 4 at 95 %, from his formula by hand: 0.301 to 0.954.
    np.testing.assert_allclose(points.y[0] - points.error[0, 0], 0.3006, atol=5e-4)
    np.testing.assert_allclose(points.y[0] + points.error[1, 0], 0.9544, atol=5e-4)
    assert "4.0%" in chart.title


def test_roc_of_a_perfect_bin_goes_through_the_corner():
    charts = classification_charts(classifier(names_of(4), [0, 0, 1, 1], np.eye(4)[[0, 0, 1, 1]]))
    curves = [line for line in marks(charts["roc"], Line) if line.name]
    assert [line.name for line in curves] == ["2g (2 jobs): area 1.000", "8g (2 jobs): area 1.000"]
    assert all((0, 1) in zip(line.x, line.y, strict=True) for line in curves)


def test_every_job_is_in_a_cell_and_the_ladder_is_drawn():
    actual = np.geomspace(0.5, 50, 300)
    chart = regression_charts(regressor(names_of(300), actual, actual * 1.2))["predicted_against_actual"]
    density = only(chart, Density)
    assert density.counts.sum() == 300
    # All lie above the diagonal, that is predicted more than they took.
    row, column = np.nonzero(density.counts)
    assert np.all(row >= column)
    limits = [rung.limit_gb for rung in LADDER]
    assert [guide.at for guide in marks(chart, Guide) if not guide.vertical] == limits
    assert [guide.at for guide in marks(chart, Guide) if guide.vertical] == limits
    assert "within 20.0%" in chart.title
    wallclock = regression_charts(regressor(names_of(300), actual, actual, "wallclock"))["predicted_against_actual"]
    assert not marks(wallclock, Guide)


def test_the_largest_errors_can_be_told_by_name():
    actual = np.full(60, 10.0)
    predicted = actual + np.arange(60)
    chart = regression_charts(regressor(names_of(60), actual, predicted, "wallclock"))["predicted_against_actual"]
    worst = only(chart, Points)
    assert sorted(worst.y) == list(predicted[10:])
    assert worst.texts[0] == f"{names_of(60)[59]} predicted 69, actual 10 s"


def test_residuals_are_told_apart_by_instrument_and_detector():
    names = ["j00000010", "j00000020", "i00000010", "l00000010"]
    jobs = table_of(4).assign(ipst=names, detector=[1, 0, 1, 0])
    results = regressor(names, [1, 1, 1, 1], [2, 3, 4, 5])
    chart = regression_charts(results, jobs)["residuals_by_detector"]
    assert [label.split("\n")[0] for label in chart.panels[0].x.labels] == [
        "ACS HRC, SBC",
        "ACS WFC",
        "COS",
        "WFC3 UVIS",
    ]
    assert only(chart, Boxes).quantiles[:, 2].tolist() == [2, 1, 4, 3]
    ratios = regression_charts(results, jobs)["ratios_by_detector"]
    assert only(ratios, Boxes).quantiles[:, 2].tolist() == [3, 2, 5, 4]
    # Jobs that the table does not know still have an instrument.
    part = regression_charts(results, jobs.iloc[:1])["residuals_by_detector"]
    assert [label.split("\n")[0] for label in part.panels[0].x.labels] == ["ACS", "ACS WFC", "COS", "WFC3"]


def test_boxes_hold_the_quantiles_of_each_instrument_and_the_cross_is_its_greatest_job():
    jobs = table_of(400, letters="ji")
    chart = data_charts(jobs)["wallclock_by_instrument"]
    acs = jobs["wallclock"][jobs["ipst"].str.startswith("j")]
    np.testing.assert_allclose(only(chart, Boxes).quantiles[0], np.quantile(acs, [0.01, 0.25, 0.5, 0.75, 0.99]))
    cross = only(chart, Points)
    assert cross.y[0] == acs.max()
    assert cross.texts[0].startswith(jobs["ipst"][acs.idxmax()] + ": ")


def test_scatter_plots_keep_every_rare_job():
    jobs = table_of(5000)
    memory = np.where(np.arange(5000) < 30, 40.0, 1.0)
    jobs = jobs.assign(memory=memory, mem_bin=needed_bin(memory))
    chart = data_charts(jobs)["features_against_memory"]
    assert [panel.x.title.split(",")[0] for panel in chart.panels] == list(FEATURES)
    shown = np.concatenate([mark.y for mark in chart.panels[0].marks])
    assert len(shown) == PER_BIN + 30
    assert (shown == 40).sum() == 30


def test_axes_are_labelled_with_units():
    jobs = table_of(30)
    for target, unit in (("memory", "GB"), ("wallclock", "s")):
        charts = regression_charts(regressor(names_of(30), jobs[target], jobs[target], target), jobs)
        charts |= {name: chart for name, chart in data_charts(jobs).items() if target in name}
        for name in set(charts) - {"ratios_by_detector"}:
            for panel in charts[name].panels:
                assert panel.y.title.endswith((f", {unit}", f", {unit}²")), name


# -- Importance -----------------------------------------------------------------------------------------------------


def test_only_the_feature_that_is_used_matters():
    features = np.tile(table_of(300)[list(FEATURES)].to_numpy(dtype=float), (3, 1))
    used = FEATURES.index("total_mb")
    seen = []

    def predict(rows):
        seen.append(len(rows) - len(np.unique(rows, axis=0)))
        return rows[:, used]

    rises = permutation_importance(predict, features, features[:, used])
    assert {name for name, rise in rises.items() if np.any(rise != 0)} == {"total_mb"}
    # Of two independent draws, the mean squared difference is twice the variance.
    np.testing.assert_allclose(rises["total_mb"], np.sqrt(2) * features[:, used].std(), rtol=0.15)
    assert len(rises["total_mb"]) == REPEATS
    assert set(seen) == {0}, "rows were predicted twice"


def test_the_importance_to_a_classifier_is_its_log_loss():
    features = table_of(400)[list(FEATURES)].to_numpy(dtype=float)
    used = FEATURES.index("drizcorr")
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    actual = features[:, used].astype(int)
    rises = permutation_importance(lambda rows: probabilities[rows[:, used].astype(int)], features, actual)
    # After a shuffle, the job meets its own value with the share of that value.
    share = actual.mean()
    wrong = 2 * share * (1 - share)
    np.testing.assert_allclose(rises["drizcorr"].mean(), wrong * np.log(9), rtol=0.1)
    assert not rises["n_files"].any()


# -- Drawing --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20))
def test_a_log_axis_holds_its_values_and_has_ticks(values):
    span = log_span(values)
    assert span[0] < min(values) <= max(values) < span[1]
    ticks = log_ticks(span)
    assert len(ticks) >= 2
    assert all(span[0] <= tick <= span[1] for tick in ticks)
    assert [float(text.replace(",", "")) for text in ticks.values()] == pytest.approx(list(ticks))


def test_pictures_are_written_under_their_names_and_are_the_same_twice(tmp_path):
    charts = classification_charts(classifier(names_of(20), np.arange(20) % 4, softmax(20)))
    write_pngs(charts, tmp_path / "plots")
    written = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert set(written) == {f"{name}.png" for name in CLASSIFIER}
    assert all(data.startswith(b"\x89PNG\r\n\x1a\n") for data in written.values())
    assert png(charts["roc"]) == written["roc.png"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    charts = data_charts(table_of(3))
    with pytest.raises(CalmlflowError, match=r"file/sub/.*\.png cannot be written"):
        write_pngs(charts, tmp_path / "file" / "sub")
