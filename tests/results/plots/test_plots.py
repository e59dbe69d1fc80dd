"""Plots show what happened, on any split."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER, needed_bin
from calmlflow.results.importance import REPEATS, permutation_importance
from calmlflow.results.plots.classification import classification_plots
from calmlflow.results.plots.common import headline_figures
from calmlflow.results.plots.data import PER_BIN, data_plots
from calmlflow.results.plots.regression import regression_plots
from calmlflow.results.plots.theme import log_axis, log_span
from tests.samples import results_samples

EPOCHS = {"loss_per_epoch", "accuracy_per_epoch"}
CURVES = {"roc", "precision_recall"}
CLASSIFIER = {*EPOCHS, *CURVES, "confusion_counts", "confusion_shares", "calibration", "calibration_by_bin"}
CLASSIFIER |= {"errors_by_instrument"}
REGRESSOR = {"loss_per_epoch", "rmse_per_epoch", "predicted_against_actual"}
REGRESSOR |= {"residuals_by_detector", "ratios_by_detector"}
JOBS = {f"{target}_by_instrument" for target in ("memory", "wallclock")}
JOBS |= {f"features_against_{target}" for target in ("memory", "wallclock")}


@pytest.fixture(autouse=True)
def _no_warnings():
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


def regressor(names, actual, predicted, target="memory"):
    return results_samples.regressor(names, np.asarray(actual), np.asarray(predicted), target)


def softmax(n, seed=0):
    scores = np.random.default_rng(seed).random((n, 4)) ** 4 + 1e-6
    return scores / scores.sum(axis=1, keepdims=True)


def of_type(plot, kind):
    return [trace for trace in plot.data if trace.type == kind]


def only(plot, kind):
    (trace,) = of_type(plot, kind)
    return trace


def points(plot):
    (trace,) = (trace for trace in of_type(plot, "scatter") if trace.mode == "markers")
    return trace


def labels(plot):
    return [text.split("<br>") for text in plot.layout.xaxis.ticktext]


# -- Which plots there are ------------------------------------------------------------------------------------------


def test_every_plot_has_its_name_a_title_and_a_sentence_on_how_to_read_it():
    n = 60
    names, jobs = names_of(n), table_of(n)
    plots = classification_plots(classifier(names, np.arange(n) % 4, softmax(n)), jobs)
    assert set(plots) == CLASSIFIER
    regression = regression_plots(regressor(names, jobs["memory"], jobs["memory"] * 1.1), jobs)
    assert set(regression) == REGRESSOR
    assert set(data_plots(jobs)) == JOBS
    for plot in (plots | regression | data_plots(jobs)).values():
        assert plot.data
        assert plot.layout.meta["title"]
        assert plot.layout.meta["reading"].endswith(".")
        assert all(bool(trace.name) or not trace.showlegend for trace in plot.data)


def test_what_a_plot_needs_and_is_not_there_leaves_it_out():
    full = classifier(names_of(8), [0, 1] * 4, softmax(8))
    old = replace(full, roc_auc=None, report=None, acc_loss=None, history=None, fnfp=None)
    assert set(classification_plots(old)) == CLASSIFIER - EPOCHS
    old = replace(regressor(names_of(8), np.arange(1, 9), np.arange(1, 9)), loss=None, history=None)
    assert set(regression_plots(old)) == {name for name in REGRESSOR if "epoch" not in name}
    nameless = replace(old, test_idx=None)
    assert set(regression_plots(nameless)) == set(headline_figures(nameless)) == {"predicted_against_actual"}


def test_a_split_of_one_bin_has_no_curves_that_mean_nothing():
    results = classifier(names_of(5), [2] * 5, softmax(5))
    assert set(classification_plots(results)) == CLASSIFIER - CURVES
    assert set(headline_figures(results)) == {"confusion", "calibration"}


def test_a_history_without_one_finite_value_gives_no_plot_and_gaps_are_gaps():
    one = classifier(names_of(2), [0, 1], softmax(2))
    nothing, gaps = (
        classification_plots(replace(one, history=dict.fromkeys(one.history, np.array(values))))
        for values in ([np.nan, np.inf], [0.0, np.nan, np.inf, 0.5])
    )
    assert not EPOCHS & set(nothing)
    assert set(gaps) >= EPOCHS


def test_dataset_names_that_nobody_expects_are_drawn_apart_and_escaped():
    names = ["<b>x</b>", "j8c601020", "$\\frac$", "Ω%{x}"]
    jobs = table_of(4).assign(ipst=names)
    plots = regression_plots(regressor(names, [1, 2, 3, 4], [4, 3, 2, 1]), jobs)
    assert labels(plots["residuals_by_detector"])[-1] == ["other", "3 jobs"]
    said = plots["predicted_against_actual"].data[-1].text
    assert [text.split(" predicted")[0] for text in said] == [
        "&lt;b&gt;x&lt;/b&gt;", "Ω%{x}", "j8c601020", "$\\frac$",
    ]  # fmt: skip
    texts = [text for plot in data_plots(jobs).values() for trace in plot.data for text in trace.text or []]
    assert not [text for text in texts if "<b>" in text]


def test_a_hundred_thousand_jobs_give_small_plots():
    n = 100_000
    jobs, names = table_of(n), names_of(n)
    wallclock = regressor(names, jobs["wallclock"], jobs["wallclock"] * softmax(n)[:, 0])
    plots = classification_plots(classifier(names, jobs["mem_bin"], softmax(n), epochs=5000), jobs)
    plots |= regression_plots(wallclock, jobs) | data_plots(jobs)
    assert sum(len(plot.to_json()) for plot in plots.values()) < 1_000_000


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from(["jloi", "j", "xyz", "oi"]), st.data())
def test_any_split_is_drawn(true, letters, data):
    n, names = len(true), names_of(len(true), letters)
    jobs, predict = table_of(n, letters=letters), lambda rows: np.full((len(rows), 4), 0.25)
    plots = classification_plots(classifier(names, true, softmax(n, data.draw(st.integers(0, 99)))), jobs, predict)
    assert (set(plots) >= CURVES) == (len(set(true)) > 1)
    predicted = data.draw(st.lists(st.floats(1e-3, 1e6) | st.floats(-10, 0), min_size=n, max_size=n))
    target = data.draw(st.sampled_from(["memory", "wallclock"]))
    plots |= regression_plots(regressor(names, np.arange(1, n + 1), predicted, target), jobs) | data_plots(jobs)
    assert all(plot.to_json() for plot in plots.values())


# -- What they show -------------------------------------------------------------------------------------------------


def test_the_confusion_matrix_counts_by_needed_and_most_probable_bin():
    plots = classification_plots(classifier(names_of(4), [0, 0, 0, 3], np.eye(4)[[0, 0, 1, 0]]))
    counts, shares = (only(plots[f"confusion_{kind}"], "heatmap").text for kind in ("counts", "shares"))
    assert [list(row) for row in counts] == [["2", "1", "0", "0"], ["0"] * 4, ["0"] * 4, ["1", "0", "0", "0"]]
    assert list(shares[0]) == ["66.7%", "33.3%", "0.0%", "0.0%"]
    assert list(shares[1]) == ["no job"] * 4
    axis = plots["confusion_counts"].layout.yaxis
    assert list(axis.ticktext) == ["2g<br>3 jobs", "8g<br>0 jobs", "16g<br>0 jobs", "64g<br>1 job"]
    assert axis.autorange == "reversed"


def test_bins_decided_on_have_a_matrix_of_their_own():
    results = classifier(names_of(4), [0, 0, 0, 3], np.eye(4)[[0, 0, 1, 0]])
    plots = classification_plots(results, decided=np.array([0, 1, 1, 3]))
    plot = plots["confusion_decided_counts"]
    counts = only(plot, "heatmap").text
    assert [list(row) for row in counts] == [["1", "2", "0", "0"], ["0"] * 4, ["0"] * 4, ["0", "0", "0", "1"]]
    assert plot.layout.xaxis.title.text == "bin decided on"
    assert "2 of 4 jobs" in plot.layout.meta["title"]
    # One of three that need 2g, and the one that needs 64g.
    assert plots["confusion_decided_shares"].layout.meta["title"].endswith("recall 2g 33%, 64g 100%")
    most_probable, of_decision = (plots[f"errors{which}_by_instrument"].layout.meta for which in ("", "_decided"))
    assert "1 too low, 1 too high" in most_probable["title"]
    assert "bin decided on: 0 too low, 2 too high" in of_decision["title"]
    assert set(headline_figures(results, np.array([0, 1, 1, 3]))) >= {"confusion", "confusion_decided"}


def test_errors_are_counted_by_instrument_and_side():
    names = ["j00000010", "j00000020", "j00000030", "j00000040", "l00000010", "i00000010"]
    plot = classification_plots(classifier(names, [1, 1, 1, 0, 0, 2], np.eye(4)[[0, 1, 2, 1, 0, 0]]))
    plot = plot["errors_by_instrument"]
    assert labels(plot) == [["ACS", "4 jobs"], ["COS", "1 job"], ["WFC3", "1 job"]]
    low, high = of_type(plot, "bar")
    assert list(low.text) == ["25.0% (1)", "0.0% (0)", "100.0% (1)"]
    assert list(high.text) == ["50.0% (2)", "0.0% (0)", "0.0% (0)"]


def test_calibration_compares_the_stated_probability_with_the_share_of_hits():
    # Four jobs at 0.7, three of them hits; one at 1.
    scores = [[0.7, 0.3, 0, 0]] * 4 + [[0, 0, 0, 1]]
    plot = classification_plots(classifier(names_of(5), [0, 0, 0, 1, 3], scores))["calibration"]
    shown = points(plot)
    np.testing.assert_allclose(shown.x, [0.7, 1])
    np.testing.assert_allclose(shown.y, [0.75, 1])
    assert "4.0%" in plot.layout.meta["title"]


def test_each_bin_has_a_panel_of_its_calibration():
    scores = [[0.7, 0.3, 0, 0]] * 4 + [[0, 0.1, 0, 0.9]]
    plot = classification_plots(classifier(names_of(5), [0, 0, 0, 1, 3], scores))["calibration_by_bin"]
    panels = {trace.xaxis: trace for trace in of_type(plot, "scatter") if trace.mode == "markers"}
    # 8g: one job at 0.1 that did not need it, four at 0.3 of which one did.
    np.testing.assert_allclose(panels["x2"].x, [0.1, 0.3])
    np.testing.assert_allclose(panels["x2"].y, [0, 0.25])
    assert list(panels["x3"].y) == [0]
    # 2g: 4/5 of 0.05; 8g: 1/5 of 0.1 and 4/5 of 0.05; 64g: 1/5 of 0.1.
    assert plot.layout.meta["title"].endswith("2g 4.0%, 8g 6.0%, 16g 0.0%, 64g 2.0%")
    assert [plot.layout[f"xaxis{at}"].title.text for at in ("", "2", "3", "4")] == [
        f"given to {name}" for name in ("2g", "8g", "16g", "64g")
    ]


@pytest.mark.parametrize("name", ["calibration", "calibration_by_bin"])
def test_jobs_of_one_programme_leave_a_share_open(name):
    """Forty jobs of forty programmes tell more than forty of four, of which each hits or misses as a whole."""
    scores, true = np.tile([0.75, 0.25, 0, 0], (40, 1)), np.arange(40) // 10 == 3
    widths = []
    for programme in (np.arange(40), np.arange(40) // 10):
        names = [f"j{number:03d}{at:04d}0" for at, number in enumerate(programme)]
        plot = classification_plots(classifier(names, true.astype(int), scores))[name]
        shown = next(trace for trace in of_type(plot, "scatter") if trace.mode == "markers")
        np.testing.assert_allclose(shown.y, [0.75])
        widths.append(shown.error_y.array[0] + shown.error_y.arrayminus[0])
    # Wilson's interval of 30 of 40 at 95 %, from his formula by hand: 0.598 to 0.858; a little wider for t quantiles.
    assert widths[0] == pytest.approx(0.2604, rel=0.05)
    assert widths[1] > 2 * widths[0]


def test_roc_of_a_perfect_bin_goes_through_the_corner():
    plots = classification_plots(classifier(names_of(4), [0, 0, 1, 1], np.eye(4)[[0, 0, 1, 1]]))
    curves = {line.name: list(zip(line.x, line.y, strict=True)) for line in plots["roc"].data if line.name}
    assert set(curves) == {"2g (2 jobs): area 1.000", "8g (2 jobs): area 1.000"}
    assert all((0, 1) in points for points in curves.values())


def test_every_job_is_in_a_cell_and_the_ladder_is_drawn():
    actual = np.geomspace(0.5, 50, 300)
    plot = regression_plots(regressor(names_of(300), actual, actual * 1.2))["predicted_against_actual"]
    counts = only(plot, "heatmap").customdata
    assert counts.sum() == 300
    # All lie above the diagonal, that is predicted more than they took.
    row, column = np.nonzero(counts)
    assert np.all(row >= column)
    guides = [line for line in of_type(plot, "scatter") if line.mode == "lines+text"]
    limits = [rung.limit_gb for rung in LADDER]
    assert [line.x[0] for line in guides if line.x[0] == line.x[1]] == limits
    assert [line.y[0] for line in guides if line.y[0] == line.y[1]] == limits
    assert "within 20.0%" in plot.layout.meta["title"]


def test_the_largest_errors_can_be_told_by_name():
    predicted = 10.0 + np.arange(60)
    plots = regression_plots(regressor(names_of(60), np.full(60, 10.0), predicted, "wallclock"))
    worst = points(plots["predicted_against_actual"])
    assert sorted(worst.y) == list(predicted[10:])
    assert worst.text[0] == f"{names_of(60)[59]} predicted 69, actual 10 s"


def test_residuals_are_told_apart_by_instrument_and_detector():
    names = ["j00000010", "j00000020", "i00000010", "l00000010"]
    jobs = table_of(4).assign(ipst=names, detector=[1, 0, 1, 0])
    results = regressor(names, [1, 1, 1, 1], [2, 3, 4, 5])
    plots = regression_plots(results, jobs)
    told = [label[0] for label in labels(plots["residuals_by_detector"])]
    assert told == ["ACS HRC, SBC", "ACS WFC", "COS", "WFC3 UVIS"]
    assert list(only(plots["residuals_by_detector"], "box").median) == [2, 1, 4, 3]
    assert list(only(plots["ratios_by_detector"], "box").median) == [3, 2, 5, 4]
    # Jobs that the table does not know still have an instrument.
    part = regression_plots(results, jobs.iloc[:1])["residuals_by_detector"]
    assert [label[0] for label in labels(part)] == ["ACS", "ACS WFC", "COS", "WFC3"]


def test_boxes_hold_the_quantiles_of_each_instrument_and_the_cross_is_its_greatest_job():
    jobs = table_of(400, letters="ji")
    plot = data_plots(jobs)["wallclock_by_instrument"]
    acs = jobs["wallclock"][jobs["ipst"].str.startswith("j")]
    box = only(plot, "box")
    drawn = [edge[0] for edge in (box.lowerfence, box.q1, box.median, box.q3, box.upperfence)]
    np.testing.assert_allclose(drawn, np.quantile(acs, [0.01, 0.25, 0.5, 0.75, 0.99]))
    cross = points(plot)
    assert cross.y[0] == np.float32(acs.max())
    assert cross.text[0].startswith(jobs["ipst"][acs.idxmax()] + ": ")


def test_scatter_plots_keep_every_rare_job_in_each_of_nine_panels():
    jobs = table_of(5000)
    memory = np.where(np.arange(5000) < 30, 40.0, 1.0)
    jobs = jobs.assign(memory=memory, mem_bin=needed_bin(memory))
    plot = data_plots(jobs)["features_against_memory"]
    axes = [plot.layout[f"xaxis{number or ''}"] for number in ("", *range(2, 10))]
    assert [axis.title.text.split(",")[0] for axis in axes] == list(FEATURES)
    shown = np.concatenate([trace.y for trace in plot.data if trace.xaxis == "x"])
    assert len(shown) == PER_BIN + 30
    assert (shown == 40).sum() == 30


def test_axes_are_labelled_with_units():
    jobs = table_of(30)
    for target, unit in (("memory", "GB"), ("wallclock", "s")):
        plots = regression_plots(regressor(names_of(30), jobs[target], jobs[target], target), jobs)
        del plots["ratios_by_detector"]
        for plot in (*plots.values(), data_plots(jobs)[f"{target}_by_instrument"]):
            assert plot.layout.yaxis.title.text.endswith((f", {unit}", f", {unit}²"))


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20))
def test_a_log_axis_holds_its_values_and_has_ticks(values):
    span = log_span(values)
    assert span[0] < min(values) <= max(values) < span[1]
    axis = log_axis("", span)
    assert len(axis["tickvals"]) >= 2
    assert all(span[0] <= tick <= span[1] for tick in axis["tickvals"])
    assert [float(text.replace(",", "")) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


@pytest.mark.parametrize("target", ["mem_bin", "memory", "wallclock"])
def test_headline_pictures_have_ink(target):
    for picture in headline_figures(results_samples.small(target)).values():
        file = io.BytesIO()
        picture.savefig(file)
        file.seek(0)
        assert (imread(file)[..., :3] < 0.9).any(axis=2).mean() > 0.002


# -- Importance -----------------------------------------------------------------------------------------------------


def test_only_the_feature_that_is_used_matters():
    features = np.tile(table_of(300)[list(FEATURES)].to_numpy(dtype=float), (3, 1))
    used = FEATURES.index("total_mb")
    rises = permutation_importance(lambda rows: rows[:, used], features, features[:, used])
    assert rises.shape == (len(FEATURES), REPEATS)
    assert set(np.flatnonzero(np.any(rises != 0, axis=1))) == {used}
    # Of two independent draws, the mean squared difference is twice the variance.
    np.testing.assert_allclose(rises[used], np.sqrt(2) * features[:, used].std(), rtol=0.15)


def test_the_importance_to_a_classifier_is_its_log_loss():
    features = table_of(400)[list(FEATURES)].to_numpy(dtype=float)
    used = FEATURES.index("drizcorr")
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0]])
    actual = features[:, used].astype(int)
    rises = permutation_importance(lambda rows: probabilities[rows[:, used].astype(int)], features, actual)
    # After a shuffle, the job meets its own value with the share of that value.
    share = actual.mean()
    wrong = 2 * share * (1 - share)
    np.testing.assert_allclose(rises[used].mean(), wrong * np.log(9), rtol=0.1)
    assert not rises[FEATURES.index("n_files")].any()
