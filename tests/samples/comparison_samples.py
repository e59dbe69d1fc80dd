"""Comparisons: of given scores, and of two classifiers and two regressors that err more and less on shared jobs."""

import numpy as np
import pandas as pd

from calmlflow.results.comparison import BinAnswers, Comparison, ValueAnswers, compare_bins, compare_values
from calmlflow.results.report.comparison import ComparisonContent


def comparison(target="mem_bin", left_out=(0, 0, 0), **scores):
    """Scores as name=(this, other, low, high, jobs), each job of a programme of its own."""
    table = pd.DataFrame.from_dict(scores, "index", columns=["this", "other", "low", "high", "jobs"], dtype=float)
    table["programmes"] = table["jobs"]
    table.insert(2, "difference", table["this"] - table["other"])
    return Comparison(target, table, 100, *left_out)


def sampled_comparison(n=400):
    """mem_bin: this is right more often. memory: this errs more. Of n jobs, 30 are this one's alone, and 10 changed."""
    generator = np.random.default_rng(11)
    names = pd.Index([f"j{number % 40:03}{number:05}" for number in range(n)], name="ipst")
    needed = np.where(np.arange(n) < 5, 3, generator.integers(0, 3, n))
    actual = pd.Series(generator.uniform(1, 10, n), index=names, name="memory")

    def classifier(right):
        chosen = np.where(generator.uniform(size=n) < right, needed, (needed + 1) % 4)
        probabilities = np.where(np.arange(4) == chosen[:, None], 0.85, 0.05)
        return BinAnswers(pd.Series(needed, index=names, name="mem_bin"), probabilities, chosen, actual.to_numpy() * 60)

    def regressor(error):
        return ValueAnswers(actual, actual.to_numpy() + generator.normal(0, error, n))

    other = regressor(0.2)
    changed = other.actual.where(np.arange(n) >= 10, other.actual + 1)
    other = ValueAnswers(changed[:-30], other.predicted[:-30])
    return ComparisonContent(
        this="data/2026-01-02-1767323045",
        other="models:/calcloud-predictor/Production",
        run_id="0" * 32,
        created="2026-01-02 03:04 UTC",
        comparisons={
            "mem_bin": compare_bins(classifier(0.95), classifier(0.7)),
            "memory": compare_values(regressor(0.9), other),
        },
        only_in={"wallclock": "the other"},
    )
