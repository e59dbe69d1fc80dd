"""Results of a training, read from its folder."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from calmlflow.errors import InputError
from calmlflow.results.classification import ClassificationResults
from calmlflow.results.files import write_results
from calmlflow.results.regression import RegressionResults
from calmlflow.results.training import read_training
from tests.samples.results_samples import classifier, same, small, some_jobs, write_tree

TARGETS = ("mem_bin", "memory", "wallclock")


def load(folder):
    return read_training(folder, str(folder))


def plain(loaded):
    """The result that was written, without what loading adds."""
    kind = ClassificationResults if isinstance(loaded, ClassificationResults) else RegressionResults
    return kind(**{field.name: getattr(loaded, field.name) for field in dataclasses.fields(kind)})


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "2021-11-04-1636048291")


def test_a_folder_gives_what_was_written(tree):
    opened = load(tree)
    for target in TARGETS:
        same(plain(getattr(opened, target)), small(target))
    pd.testing.assert_frame_equal(opened.jobs, some_jobs())
    assert opened.jobs is opened.wallclock.jobs


@pytest.mark.parametrize("part", ["", "results", "results/mem_bin", "results/wallclock/"])
def test_any_folder_of_the_tree_opens_the_training(tree, part):
    opened = load(f"{tree}/{part}")
    assert list(opened.by_target()) == list(TARGETS)
    assert len(opened.jobs) == 4


def test_a_folder_of_one_target_opens_alone(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tree / "results" / "memory").rename(tmp_path / "elsewhere" / "memory")
    # A table that lies near by chance is not that of the training.
    shutil.copytree(tree / "data", tmp_path / "data")
    opened = load(tmp_path / "elsewhere" / "memory")
    assert list(opened.by_target()) == ["memory"]
    assert opened.jobs is None
    assert list(load(tree).by_target()) == ["mem_bin", "wallclock"]


def test_files_without_endings_are_told_as_pickles_and_never_read(tree):
    for path in (tree / "results" / "mem_bin").iterdir():
        path.rename(path.with_suffix(""))
    with pytest.raises(
        InputError, match=r"results/mem_bin holds acc_loss and others without endings, which are pickles"
    ):
        load(tree)


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} holds no results"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace("total_mb", "size"), "has no column 'total_mb'"),
        (lambda text: text.replace(",300.0,", ",soon,"), "column wallclock"),
        (lambda text: text.replace(",20.0,3,2,", ",20.0,4,2,"), "column mem_bin"),
        (lambda text: text.replace(",20.0,3,2,", ",20.0,3,2.5,"), "column bin_pred"),
    ],
)
def test_a_damaged_table_of_jobs_is_named(tree, change, says):
    path = tree / "data" / "latest.csv"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(InputError, match=f"data/latest.csv.*{says}"):
        load(tree)


def test_a_table_of_jobs_of_the_earlier_library_opens(tree):
    """Empty statistics for a job alone in its group, no timestamp, columns nobody knows, numbers as floats."""
    older = some_jobs().drop(columns="timestamp").assign(wc_std=[1.5, 1.5, np.nan, np.nan], note="x")
    older.astype({"mem_bin": float, "bin_pred": float}).to_csv(tree / "data" / "latest.csv", index=False)
    assert load(tree).jobs["bin_pred"].tolist() == [0, 1, 2, 0]
    assert "excess_cost" in load(tree).mem_bin.scores()


def test_regressors_that_do_not_name_their_jobs_cannot_be_compared(tree):
    whole = load(tree)
    (tree / "results" / "memory" / "test_idx.csv").unlink()
    for this, other in ((load(tree), whole), (whole, load(tree))):
        with pytest.raises(InputError, match=r"results of memory have no test_idx\.csv"):
            this.memory.compare(other.memory)


def test_a_regressor_whose_split_holds_memory_bins_keeps_its_names(tree):
    (tree / "results" / "memory" / "test_idx.csv").write_text("ipst,mem_bin\nj8c601020,0\no4qpkupdq,1\nib1f01020,3\n")
    same(plain(load(tree).memory), small("memory"))


def test_the_likeliest_bins_are_judged_for_being_right_and_the_decided_ones_for_their_cost(tree):
    # Most probable: 1, 0, 3 of the needed 0, 1, 3. Decided on, by latest.csv: 0, 1, 2.
    scores = load(tree).mem_bin.scores()
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["underallocated"] == pytest.approx(1 / 3)
    prices = np.array([0.308 / 8, 0.344 / 4, 0.226 / 2, 0.452])
    needed = 100 * prices[0] + 200 * prices[1] + 300 * prices[3]
    assert scores["excess_cost"] == pytest.approx(300 * prices[2] / needed)


@pytest.mark.parametrize("damage", ["no file", "another job", "twice the same job"])
def test_without_its_jobs_the_most_probable_bin_is_scored(tree, damage):
    path = tree / "data" / "latest.csv"
    if damage == "no file":
        path.unlink()
    elif damage == "another job":
        path.write_text(path.read_text().replace("o4qpkupdq", "o4qpkupdr"))
    else:
        path.write_text(path.read_text().replace("lbek01xyz", "o4qpkupdq"))
    scores = load(tree).mem_bin.scores()
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert "excess_cost" not in scores


def test_a_summary_tells_the_scores(tree):
    lines = load(tree).summary().splitlines()
    assert lines[0] == f"mem_bin: 3 test jobs of {tree}"
    # Residuals of memory 0.25, 0 and -1.5: root of 2.3125 / 3, mean of 1.75 / 3.
    told = (["accuracy", "33.33%"], ["recall_64g", "100.00%"], ["rmse", "0.878", "GB"], ["mae", "0.583", "s"])
    assert all(words in [line.split() for line in lines] for words in told)


def test_plots_are_figures_and_know_the_jobs(tree):
    figures = load(tree).plots()
    assert set(figures) == {*TARGETS, "data"}
    assert all(figure.data for named in figures.values() for figure in named.values())
    (tree / "data" / "latest.csv").unlink()
    assert set(load(tree).plots()) == set(TARGETS)


# -- Answers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answered(tree):
    """The tree with answers as a training of a bundle leaves them: the last test job is put on rung 3, and killed."""
    for target in TARGETS:
        write_results(small(target), tree / "results" / "answer" / target)
    table = some_jobs()[["ipst", "split", "bin_pred", "mem_pred", "wall_pred"]].replace({"bin_pred": {2: 3}})
    table = table.assign(kill_time=[150, 250, 299, 60], prob_2g=[1, 0, 0, 1], prob_8g=[0, 1, 0, 0], prob_16g=0)
    table = table.assign(prob_64g=[0, 0, 1, 0], jobs_row=[3, 2, 1, 0], jobs_programme=1, jobs_visit=1, jobs_run=0)
    table.to_csv(tree / "data" / "answers.csv", index=False)
    return tree


def test_an_older_training_has_no_answers(tree):
    assert load(tree).answer is None


def test_answers_are_read_beside_the_networks(answered):
    opened = load(answered)
    assert list(opened.answer.by_target()) == list(TARGETS)
    assert opened.answer.jobs["bin_pred"].tolist() == [0, 1, 3, 0]
    assert opened.answer.jobs["jobs_row"].tolist() == [3, 2, 1, 0]
    assert opened.answer.jobs["n_files"].tolist() == opened.jobs["n_files"].tolist()
    # Kill times of 150, 250 and 299 s for jobs of 100, 200 and 300 s, whose actual values stand in the results.
    assert opened.answer.mem_bin.scores()["excess_cost"] == 0
    assert opened.mem_bin.scores()["excess_cost"] > 0
    actual = opened.answer.wallclock.predictions[:, 1]
    scores = opened.answer.wallclock.scores()
    assert scores["kill_time_coverage"] == np.mean(actual <= [150, 250, 299])
    assert "kill_time_coverage" not in opened.wallclock.scores()
    assert "kill_time_coverage" not in opened.answer.memory.scores()
    compared = opened.answer.compare(opened.answer)["wallclock"].scores
    assert compared.loc["kill_time_coverage", "this"] == scores["kill_time_coverage"]
    assert "confusion_decided_counts" in opened.answer.plots()["mem_bin"]
    assert opened.summary().count("(answers)\n") == 3


def test_a_training_of_evidence_alone_has_answers_only(answered):
    for target in TARGETS:
        shutil.rmtree(answered / "results" / target)
    opened = load(answered)
    assert (opened.by_target(), list(opened.answer.by_target())) == ({}, list(TARGETS))
    assert repr(opened) == f"<training {answered}: answer>"
    assert opened.answer.jobs["bin_pred"].tolist() == [0, 1, 3, 0]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("kill_time", "killed", "has no column 'kill_time'"),
        (",150,", ",,", "column kill_time"),
        (",18.5,", ",much,", "column mem_pred"),
    ],
)
def test_damaged_answers_are_named(answered, before, after, says):
    path = answered / "data" / "answers.csv"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=f"data/answers.csv.*{says}"):
        load(answered)


# -- Comparisons ----------------------------------------------------------------------------------------------------


def test_trainings_are_compared_target_by_target(tree, tmp_path):
    other = classifier(["o4qpkupdq", "ib1f01020", "lbek01xyz"], [1, 2, 0], np.eye(4)[[1, 1, 0]])
    write_results(other, tmp_path / "other" / "results" / "mem_bin")
    found = load(tree).compare(load(tmp_path / "other"))
    assert list(found) == ["mem_bin"]
    # o4qpkupdq needs bin 1 in both; ib1f01020 needs 3 here and 2 there; the others are in one only.
    only = found["mem_bin"]
    assert (only.jobs, only.only_this, only.only_other, only.differing) == (1, 1, 1, 1)
    # Its most probable bin is wrong here; the bin decided on is right in both, and costs the same.
    assert only.scores.loc["accuracy", ["this", "other"]].tolist() == [0, 1]
    assert only.scores.loc["excess_cost", "difference"] == 0


def test_what_cannot_be_compared_is_said(tree, tmp_path):
    opened = load(tree)
    with pytest.raises(InputError, match="memory cannot be compared with <wallclock: 3 test jobs"):
        opened.memory.compare(opened.wallclock)
    for target in ("mem_bin", "memory"):
        (tree / "results" / target).rename(tmp_path / target)
    with pytest.raises(InputError, match="expected a target in common"):
        load(tree).compare(load(tmp_path / "memory"))
