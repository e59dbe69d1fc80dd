"""The report of a training: everything is on one page, and no text of a user is read as HTML."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from calmlflow.hst.features import FEATURES
from calmlflow.results.comparison import Interval
from calmlflow.results.plots.data import data_plots
from calmlflow.results.report.training import (
    WORST,
    ReportContent,
    report_html,
    score_rows,
    scores_by_evidence,
    verdict,
    worst_jobs,
)
from calmlflow.results.scores import SCORES
from calmlflow.results.table import COUNTS, PROBABILITIES
from tests.samples.comparison_samples import comparison
from tests.samples.report_samples import sampled_content

BARE = ReportContent("Training", "0" * 32, "2026-01-02", "sample", {})


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, texts, and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts, self.inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif data.strip():
            self.texts.append(data.strip())

    def plots(self):
        scripts = [attrs for tag, attrs in self.tags if tag == "script"]
        named = zip(scripts, self.scripts, strict=True)
        return {attrs["data-plot"]: json.loads(text) for attrs, text in named if "data-plot" in attrs}


@pytest.fixture(scope="module")
def content():
    return sampled_content()


@pytest.fixture(scope="module")
def page(content):
    return Page(report_html(content))


# -- The whole page -------------------------------------------------------------------------------------------------


def test_the_report_is_below_six_megabytes_and_holds_plotly_once(content):
    text = report_html(content)
    assert 5_000_000 < len(text.encode()) < 6_000_000
    assert text.count(get_plotlyjs()[:200]) == 1
    assert len(report_html(replace(content, figures={}))) < 300_000


def test_it_loads_nothing_and_its_sections_are_in_order(content, page):
    order = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert order == ["scores", "answer", "mem_bin", "memory", "wallclock", "jobs", "worst", "facts"]
    addresses = [(tag, name, value) for tag, attrs in page.tags for name, value in attrs.items()
                 if name in ("src", "href", "srcset", "action", "data", "poster")]  # fmt: skip
    assert addresses
    assert all(tag == "a" and name == "href" and value.startswith("#") for tag, name, value in addresses)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {value[1:] for *_, value in addresses} <= ids
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert not re.search(r"@import|url\(", report_html(replace(content, figures={})))


def test_every_plot_is_there_with_a_word_on_how_to_read_it(content, page):
    plots = {f"{section}-{name}": plot for section, part in content.figures.items() for name, plot in part.items()}
    assert len(plots) > 20
    found = page.plots()
    assert set(found) == set(plots)
    assert {attrs["id"] for tag, attrs in page.tags if attrs.get("class") == "plot"} == set(plots)
    assert all(found[name]["data"] for name in found)
    # Line breaks in labels are tags, but none of them begins in the page itself.
    assert not [text for text in page.scripts[: len(found)] if "<" in text]
    for plot in plots.values():
        assert plot.layout.meta["title"] in page.texts
        assert plot.layout.meta["reading"] in page.texts


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7*7 }}", "&lt;b&gt;"]
)
def test_hostile_names_of_datasets_stay_text_in_tables_and_plots(text):
    content = sampled_content(400)
    jobs = content.jobs.assign(ipst=[text + name for name in content.jobs["ipst"]])

    page = Page(report_html(replace(content, title=text, jobs=jobs, figures={"jobs": data_plots(jobs)})))
    plain = Page(report_html(replace(content, figures={"jobs": data_plots(content.jobs)})))
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert text in page.texts
    assert any(word.startswith(text) for word in page.texts[1:])
    texts = [said for plot in page.plots().values() for trace in plot["data"] for said in trace.get("text") or []]
    # Plotly reads tags in what it shows, so they must not be any.
    assert any(unescape(said).startswith(text) for said in texts)
    assert not [said for said in texts if "<" in said]


def test_a_report_of_next_to_nothing_is_still_a_page():
    page = Page(report_html(BARE))
    assert [attrs["id"] for tag, attrs in page.tags if tag == "h2"] == ["scores", "facts"]
    assert any("No champion" in text for text in page.texts)
    assert "none: every record was valid" in page.texts


# -- Scores ---------------------------------------------------------------------------------------------------------


def test_the_verdict_judges_every_target_by_its_own_measure_and_its_paired_interval():
    assert verdict({}, "").startswith("No champion")
    against = {
        "mem_bin": comparison(accuracy=(0.9, 0.8, 0.05, 0.15, 50), excess_cost=(0.03, 0.06, -0.04, -0.02, 50)),
        "memory": comparison("memory", rmse=(0.5, 0.4, 0.05, 0.15, 50)),
        "wallclock": comparison("wallclock", rmse=(600, 700, -210, 10, 50)),
    }
    assert verdict(against, "version 7") == (
        "Against the champion, version 7: memory bin is better (excess cost over always right 3.00% against 6.00%, "
        "difference -4.00 to -2.00 pp); memory is worse (RMSE 0.5 GB against 0.4 GB, difference +0.05 to +0.15 GB); "
        "wallclock is not different beyond chance (RMSE 600 s against 700 s, difference -210 to +10 s)."
    )
    few = {"memory": comparison("memory", rmse=(0.5, 0.4, 0.05, 0.15, 4))}
    assert "memory: too few jobs to tell (RMSE" in verdict(few, "version 7")


def test_scores_have_their_intervals_beside_them():
    scores = {"mem_bin": {"test": {"recall_64g": 0.5}, "answer": {"recall_64g": 0.25}}}
    intervals = {"mem_bin": {"recall_64g": Interval(0.1, 0.6, 12, 4)}}
    page = Page(report_html(replace(BARE, scores=scores, intervals=intervals)))
    at = page.texts.index("recall 64g")
    row = ["recall 64g", "higher", "25.00%", "50.00%", "10.00% to 60.00%", "3 of 12 in 4"]
    assert page.texts[at : at + 6] == row
    assert "over seeds" not in page.texts
    seeds = {"mem_bin": {"recall_64g": (0.2, 0.05, 3)}}
    said = "split by time, seed 7"
    page = Page(report_html(replace(BARE, scores=scores, intervals=intervals, seeds=seeds, split=said)))
    at = page.texts.index("recall 64g")
    assert page.texts[at : at + 7] == [*row, "20.00% \N{PLUS-MINUS SIGN} 5.00% (3)"]
    assert "over seeds" in page.texts
    assert any(text.endswith(f"jobs from sample; {said}") for text in page.texts)


def test_the_best_predictor_is_marked_and_the_floor_is_none():
    def rows(**scores):
        found = score_rows("memory", scores, ("test", "floor", "forest"), summary=True)
        return {score.name: cells for score, cells in found}

    assert rows(test={"rmse": 2.0, "r2": 0.5}, floor={"rmse": 1.0}, forest={"rmse": 3.0, "r2": 0.9}) == {
        "rmse": [("2 GB", True), ("1 GB", False), ("3 GB", False)],
        "r2": [("0.5000", False), ("", False), ("0.9000", True)],
    }
    assert not any(best for _, best in rows(test={"rmse": 2.0}, floor={"rmse": 1.0})["rmse"])
    assert not any(best for _, best in rows(test={"rmse": 2.0}, forest={"rmse": 2.0})["rmse"])


def test_a_target_without_an_answer_of_this_run_has_no_scores_in_the_report():
    champion = {"champion": {"rmse": 1.0}}
    scores = {"memory": {"test": {"rmse": 2.0}} | champion, "wallclock": champion}
    page = Page(report_html(replace(BARE, scores=scores)))
    assert "Memory" in page.texts
    assert "Wallclock" not in page.texts
    # Where only evidence is new, the networks have no scores of their own.
    page = Page(report_html(replace(BARE, scores={"wallclock": {"answer": {"rmse": 2.0}} | champion})))
    assert "Wallclock" in page.texts
    headings = page.texts[page.texts.index("score on the test jobs") :]
    assert headings[:4] == ["score on the test jobs", "better", "answer", "champion (champion)"]


def test_every_score_of_the_run_is_in_the_report(content, page):
    for target, whose in content.scores.items():
        for kind in whose.values():
            for name, value in kind.items():
                assert SCORES[target][name].text(value) in page.texts, (target, name)


# -- Worst jobs and data --------------------------------------------------------------------------------------------


def job_table(**columns):
    n = len(next(iter(columns.values())))
    base = {name: [0] * n for name in FEATURES} | {"wallclock": [3600.0] * n, "memory": [1.0] * n, "mem_bin": [0] * n}
    names = [f"j{number:07d}0" for number in range(n)]
    return pd.DataFrame({"ipst": names, "split": ["test"] * n} | base | columns)


def test_the_dearest_mistakes_come_first_and_right_choices_do_not_come_at_all():
    # $ per job-hour: 2g 0.308/8 = 0.0385, 8g 0.344/4 = 0.086, 16g 0.226/2 = 0.113.
    table = worst_jobs(job_table(mem_bin=[0, 0, 2, 1, 0], bin_pred=[0, 2, 0, 1, 1]))[0]
    shown = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["dataset"], row["needed"], row["decided on"], row["excess cost"]) for row in shown] == [
        ("j00000020", "16g", "2g", "$0.1245"),
        ("j00000010", "2g", "16g", "$0.0745"),
        ("j00000040", "2g", "8g", "$0.0475"),
    ]
    assert set(FEATURES) - {"instr"} <= set(table.columns)
    assert "$0.25 more" in table.note


def test_fifty_test_jobs_by_the_size_of_their_residual():
    n = 120
    wall_pred = 3600.0 + np.where(np.arange(n) % 2, 1, -1) * np.arange(n)
    split = np.where(np.arange(n) < 100, "test", "train")
    (table,) = worst_jobs(job_table(wall_pred=wall_pred, split=split))
    assert table.title.startswith("Wallclock")
    assert [row[0] for row in table.rows] == [f"j{number:07d}0" for number in range(99, 99 - WORST, -1)]
    shown = dict(zip(table.columns, table.rows[1], strict=True))
    assert (shown["actual, s"], shown["predicted, s"], shown["residual, s"]) == ("3,600", "3,502", "-98")


def answered(jobs):
    """The jobs with perfect answers: all have their bin, memory and wallclock."""
    found = jobs.assign(bin_pred=jobs["mem_bin"], mem_pred=jobs["memory"], wall_pred=jobs["wallclock"], kill_time=9000)
    found[PROBABILITIES] = np.eye(4)[jobs["mem_bin"]]
    return found.assign(**dict.fromkeys(COUNTS, 0))


def test_answers_are_scored_by_what_was_known_of_the_job():
    split = ["test"] * 5 + ["train"]
    jobs = answered(job_table(mem_bin=[0, 1, 0, 1, 1, 1], memory=[1.0, 3.0, 1.0, 3.0, 3.0, 3.0], split=split))
    jobs["jobs_row"], jobs["jobs_programme"] = [5, 5, 1, 1, 1, 0], [1, 2, 0, 0, 0, 0]
    # Of the three jobs that only their row is known of: one put too low, one GB too much, one killed.
    jobs.loc[3, ["bin_pred", *PROBABILITIES]] = [0, 1, 0, 0, 0]
    jobs.loc[2, "mem_pred"] = 2.0
    jobs.loc[4, ["wall_pred", "kill_time"]] = [1800.0, 3599]
    table = scores_by_evidence(jobs)
    assert table.columns[:4] == ["known", "test jobs", "accuracy", "excess cost"]
    # $ per job-hour: 2g 0.0385, 8g 0.086. ln 2 / 3 is 0.2310.
    excess = f"{0.0385 / (0.0385 + 2 * 0.086):.2%}"
    assert table.rows == [
        ["programme and row", "2", "100.00%", "0.00%", "0 GB", "0 s", "0.0000", "100.00%"],
        ["row only", "3", "66.67%", excess, "0.333 GB", "600 s", "0.2310", "66.67%"],
        ["neither", "0", *[""] * 6],
    ]
    assert scores_by_evidence(job_table(mem_bin=[0])) is None


def test_the_worst_jobs_tell_how_many_finished_jobs_stood_behind_their_answers():
    jobs = answered(job_table(mem_bin=[0, 1]))
    jobs.loc[1, ["bin_pred", *COUNTS]] = [0, 7, 5, 3, 1]
    table = worst_jobs(jobs)[0]
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert [shown[name] for name in ("dataset", "row", "programme", "visit", "run")] == [
        "j00000010",
        "7",
        "5",
        "3",
        "1",
    ]
    assert "stood behind the answer" in table.note
    assert "row" not in worst_jobs(jobs.drop(columns=COUNTS))[0].columns


def test_the_facts_count_jobs_by_instrument_and_bin():
    jobs = job_table(mem_bin=[0, 0, 1, 3]).assign(ipst=["j00000010", "i00000020", "i00000030", "i00000040"])
    sizes = {"n_jobs": 4, "n_distinct_rows": 1234}
    page = Page(report_html(replace(BARE, jobs=jobs, sizes=sizes, quarantine={"memory is under 0.2 GB": 33})))
    texts = "|".join(page.texts)
    assert "|distinct rows|1,234|" in texts
    assert "|memory is under 0.2 GB|33|" in texts
    assert "|instrument|2g|8g|16g|64g|all|ACS|1|0|0|0|1|WFC3|1|1|0|1|3|all|2|1|0|1|4" in texts
