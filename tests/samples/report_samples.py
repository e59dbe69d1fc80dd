"""A report from real parts in seconds: jobs of the sample, and forests in place of networks and answers."""

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from calmlflow.hst.features import FEATURES
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.results.classification import classification_results, classification_scores
from calmlflow.results.floors import classification_floor, regression_floor
from calmlflow.results.plots.classification import classification_plots
from calmlflow.results.plots.data import data_plots
from calmlflow.results.plots.regression import regression_plots
from calmlflow.results.regression import regression_results, regression_scores
from calmlflow.results.report.training import ReportContent
from calmlflow.results.table import COUNTS, PREDICTIONS, PROBABILITIES, training_table, with_answers


def history(metric, epochs=40):
    falling = np.geomspace(1, 0.1, epochs)
    return {"loss": falling, metric: falling / 2, "val_loss": falling + 0.1, f"val_{metric}": falling}


def sampled_content(n=1500):
    checked = read_jobs(f"sample:{n}", 0)
    jobs = checked.valid
    features = jobs[list(FEATURES)].to_numpy(dtype=float)
    test = np.arange(len(jobs)) % 4 == 0
    forest = RandomForestClassifier(20, random_state=0).fit(features[~test], jobs["mem_bin"][~test])

    def probabilities(rows):
        found = np.zeros((len(rows), 4))
        found[:, forest.classes_] = forest.predict_proba(rows)
        return found

    held = jobs[test]
    predictions = {"bin_pred": probabilities(features).argmax(axis=1)}
    names = pd.Index(held["ipst"], name="ipst")
    answers = probabilities(features[test])
    split = pd.Series(held["mem_bin"].to_numpy(), index=names, name="mem_bin")
    results = classification_results(split, answers, history("accuracy"), (0.97, 0.1))
    figures = {"mem_bin": classification_plots(results, jobs, probabilities)}
    scores = {
        "mem_bin": {
            "test": classification_scores(split, answers, answers.argmax(axis=1), held["wallclock"]),
            "floor": classification_floor(features[test], split, held["wallclock"]),
        }
    }
    for target, column in (("memory", "mem_pred"), ("wallclock", "wall_pred")):
        trees = RandomForestRegressor(20, random_state=0).fit(features[~test], jobs[target][~test])
        predictions[column] = trees.predict(features)
        split = pd.Series(held[target].to_numpy(), index=names, name=target)
        results = regression_results(split, predictions[column][test], history("rmse"), 1.0)
        figures[target] = regression_plots(results, jobs, trees.predict)
        scores[target] = {
            "test": regression_scores(split, predictions[column][test]),
            "floor": regression_floor(features[test], split),
        }
    figures["jobs"] = data_plots(jobs)
    figures["answer"] = {
        f"{target}-{name}": figures[target][name]
        for target, name in (("mem_bin", "calibration"), ("memory", "predicted_against_actual"))
    }
    for found in scores.values():
        found["answer"] = found["test"]
    table = training_table(jobs, predictions, np.where(test, "test", "train"))
    answers = table[["ipst", "split", *PREDICTIONS]].assign(kill_time=6 * table["wall_pred"])
    answers[PROBABILITIES] = probabilities(features)
    answers[COUNTS] = np.arange(len(jobs) * 4).reshape(-1, 4) % 9
    return ReportContent(
        title=f"Training on {len(jobs):,} jobs",
        run_id="0" * 32,
        created="2026-01-02 03:04:05 UTC",
        source=f"sample:{n}",
        scores=scores,
        figures=figures,
        jobs=with_answers(table, answers),
        quarantine=checked.reasons(),
        sizes={"n_jobs": len(jobs), "n_test": int(test.sum())},
    )
