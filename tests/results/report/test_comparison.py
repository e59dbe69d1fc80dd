"""The page of a comparison: verdicts, jobs left out, and no text of a user read as HTML."""

import re
from dataclasses import replace

import numpy as np
import pytest

from calmlflow.results.report.comparison import (
    ComparisonContent,
    comparison_figure,
    comparison_html,
    counted_verdict,
    paired_rows,
)
from tests.results.report.test_training import Page
from tests.samples.comparison_samples import comparison, sampled_comparison


def words(found):
    return {row.score.title: row.verdict for row in paired_rows(found)}


@pytest.fixture(scope="module")
def content():
    return sampled_comparison()


@pytest.fixture(scope="module")
def page(content):
    return Page(comparison_html(content))


# -- Verdicts -------------------------------------------------------------------------------------------------------


def test_verdicts_are_counted_in_a_sentence():
    better, worse, same, few = (0.1, 0.3, 50), (-0.3, -0.1, 50), (-0.1, 0.3, 50), (0.1, 0.3, 1)
    rows = paired_rows(
        comparison(
            accuracy=(0.5, 0.4, *better), recall_2g=(0.5, 0.4, *better), recall_8g=(0.4, 0.5, *worse),
            log_loss=(0.5, 0.4, *same), recall_64g=(0.5, 0.4, *few),
        )
    )  # fmt: skip
    assert counted_verdict(rows) == (
        "better on 2 scores, worse on 1, no difference that 95 % intervals could tell on 1, too few jobs to tell on 1"
    )
    assert counted_verdict(rows[2:3]) == "worse on 1 score"
    assert counted_verdict(rows[3:4] * 11) == "no difference that 95 % intervals could tell on 11 scores"


def test_few_programmes_get_no_verdict():
    found = comparison(accuracy=(0.5, 0.4, 0.1, 0.3, 50))
    found.scores["programmes"] = 4
    assert counted_verdict(paired_rows(found)) == "too few programmes to tell on 1 score"
    assert [dot.name for dot in comparison_figure(found).data if dot.name] == ["too few programmes"]


def test_differences_are_written_with_sign_and_unit():
    found = comparison(
        accuracy=(0.95, 0.9375, -0.005, 0.0305, 1234),
        recall_2g=(0.5, 0.5, 0, 0, 3),
        log_loss=(0.1, 0.25, -0.2, -0.1, 9),
    )
    rows = paired_rows(found)
    assert (rows[0].this, rows[0].other) == ("95.00%", "93.75%")
    # A difference of two shares is no share of anything.
    assert [(row.jobs, row.difference, row.interval) for row in rows] == [
        (1234, "+1.25 pp", "-0.50 to +3.05 pp"),
        (3, "0.00 pp", "0.00 to 0.00 pp"),
        (9, "-0.1500 nats", "-0.2000 to -0.1000 nats"),
    ]
    (seconds,) = paired_rows(comparison("wallclock", rmse=(700, 2000, -1500, 12.5, 50)))
    assert (seconds.difference, seconds.interval) == ("-1,300 s", "-1,500 to +12.5 s")


# -- The chart ------------------------------------------------------------------------------------------------------


def test_dots_and_whiskers_are_shares_of_the_others_score():
    found = comparison(
        accuracy=(0.9, 0.6, 0.15, 0.45, 50), recall_2g=(0.5, 0, 0.5, 0.5, 50), log_loss=(0.5, 0.4, -0.1, 0.3, 50)
    )
    plot = comparison_figure(found)
    # The first score stands on top; what is a share of 0 cannot be drawn, and is said.
    assert list(plot.layout.yaxis.ticktext) == ["log loss", "accuracy"]
    assert "the other's is 0: recall 2g." in plot.layout.meta["reading"]
    dots = {trace.name: trace for trace in plot.data if trace.name}
    assert {name: (list(dot.x), list(dot.y)) for name, dot in dots.items()} == {
        "better": ([pytest.approx(0.5)], [1]),
        "no difference": ([pytest.approx(0.25)], [0]),
    }
    assert dots["better"].text == ("accuracy: 90.00% against 60.00%<br>difference +30.00 pp (+15.00 to +45.00 pp)",)
    for word, low, high in (("better", 0.25, 0.75), ("no difference", -0.25, 0.75)):
        bars = dots[word].error_x
        np.testing.assert_allclose(dots[word].x - bars.arrayminus, low, rtol=1e-6)
        np.testing.assert_allclose(dots[word].x + bars.array, high, rtol=1e-6)
    left, right = plot.layout.xaxis.range
    assert left < -0.25 < 0.75 < right


def test_differences_of_nothing_and_shares_of_nothing():
    assert comparison_figure(comparison("memory", rmse=(2, 2, 0, 0, 50))).layout.xaxis.range == (-0.01, 0.01)
    found = comparison(recall_64g=(0.5, 0, 0, 1, 50))
    assert comparison_figure(found) is None
    page = Page(comparison_html(ComparisonContent("a", "b", "0" * 32, "2026-01-02", {"mem_bin": found})))
    assert "recall 64g" in page.texts
    assert not page.plots()


# -- The whole page -------------------------------------------------------------------------------------------------


def test_it_says_who_is_better_and_what_was_left_out(content, page):
    assert f"{content.this} against {content.other}" in page.texts
    rows = [row for found in content.comparisons.values() for row in paired_rows(found)]
    verdict = next(said for said in page.texts if said.startswith("This against the other:"))
    assert verdict == f"This against the other: {counted_verdict(rows)}."
    # As they were made: this classifier is the better one, this regressor the worse one, and 5 jobs need 64 GB.
    found = {target: words(held) for target, held in content.comparisons.items()}
    assert found["mem_bin"]["accuracy"] == found["mem_bin"]["log loss"] == "better"
    assert found["mem_bin"]["recall 64g"] == "too few jobs"
    assert set(found["memory"].values()) == {"worse"}
    plain = re.sub(r"\s+", " ", " ".join(page.texts))
    assert "360 test jobs compared. Left out: 30 that only this saw, 0 that only the other saw, 10 whose" in plain
    assert "400 test jobs compared. Left out: 0 that only this saw, 0 that only the other saw, 0 whose" in plain
    assert "Wallclock: only the other has it" in plain
    assert [attrs["id"] for tag, attrs in page.tags if tag == "h2"] == ["mem_bin", "memory"]


def test_every_score_of_both_is_in_a_table_and_in_a_plot(content, page):
    for target, found in content.comparisons.items():
        drawn = page.plots()[f"differences-{target}"]["layout"]["yaxis"]["ticktext"]
        for row in paired_rows(found):
            better = "higher" if row.score.higher_is_better else "lower"
            told = [
                row.score.title,
                better,
                f"{row.jobs:,}",
                f"{row.programmes:,}",
                row.this,
                row.other,
                row.difference,
                row.interval,
            ]
            start = page.texts.index(row.score.title)
            assert page.texts[start : start + 9] == [*told, row.verdict]
            assert row.score.title in drawn


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7*7 }}"])
def test_hostile_names_stay_text_beside_plots(content, page, text):
    hostile = Page(comparison_html(replace(content, this=text, other=text)))
    assert f"{text} against {text}" in hostile.texts
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in page.tags]
