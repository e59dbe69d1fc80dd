"""The gate: what a version must show before it may go to a stage.

For Staging the version itself is looked at: its files, its networks, its serving, its training jobs, its scores against
the limits. For Production it is also held against the champion, on the same jobs.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import FEATURES
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.manifest import read_manifest
from calmlflow.registry.checks import bundle_folder, check_serving, check_whole, download_version, onnx_difference
from calmlflow.registry.held_out import Jobs, judged_jobs, new_to
from calmlflow.registry.history import Check
from calmlflow.registry.limits import COMPARED, Limits
from calmlflow.results.comparison import BinAnswers, Comparison, ValueAnswers, compare_bins, compare_values
from calmlflow.results.scores import PREDICTED, score_predictions
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS

NETWORKS_OF_MODEL = {BUNDLE_MODEL: NETWORKS} | {model: (network,) for network, model in NETWORK_MODELS.items()}
"""What a version of each registered model must hold; of others, what their champion holds."""

LOWER_IS_BETTER = ("excess_cost", "rmse", "mae", "kill_time_reserved")

RELATIVE = ("rmse", "mae", "kill_time_reserved")
"""Scores whose margin is a share of the champion's score."""

FEWEST_JOBS = 5
"""A score of fewer jobs, as the recall of a rare bin may be, has no interval that says anything: any job would do."""


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes
    ----------
    checks : tuple of Check
    metrics : dict of str to float
        ``challenger_{target}_{score}`` of all jobs. With a champion also ``jobs_compared`` and, of these,
        ``champion_...``, ``difference_...`` (challenger - champion) and ``difference_low_...``,
        ``difference_high_...``, the bounds of its 95 % bootstrap interval.
    """

    checks: tuple[Check, ...]
    metrics: dict[str, float]

    @property
    def failed(self) -> list[Check]:
        """Checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def judge(
    client: MlflowClient,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    limits: Limits,
    data: str | None,
    on_step: Callable[[int, str], None],
) -> Verdict:
    """Make every check; a check that cannot be made is one that failed.

    Parameters
    ----------
    client : MlflowClient
    challenger, champion : ModelVersion
        Without a champion nothing is compared.
    limits : Limits
    data : str, optional
        Jobs to judge by that are newer than those of both trainings. Default: the challenger's held-out jobs.
    on_step : callable
        Told the number of steps done, and what comes next.

    Raises
    ------
    InputError
        ``data`` cannot be read, or holds too few newer jobs.
    """
    metrics: dict[str, float] = {}
    on_step(0, "reading jobs")
    jobs = judged_jobs(client, challenger, champion, data)
    checks = list(_data_checks(jobs, limits))
    with tempfile.TemporaryDirectory(prefix="calmlflow-gate-") as temporary:
        on_step(1, "fetching the version")
        whole, files = _fetched(challenger, Path(temporary) / "challenger")
        checks.append(whole)
        if files is None or jobs.scored is None:
            return Verdict(tuple(checks), metrics)
        features = jobs.scored[list(FEATURES)].to_numpy(dtype=float)
        networks = read_manifest(files.bundle)["networks"]
        for step, network in enumerate(networks, start=2):
            on_step(step, f"comparing {network} in ONNX and Keras")
            checks.append(_onnx_check(files.bundle, network, features))
        on_step(5, "serving")
        checks.append(_guarded("serving", "works", lambda: check_serving(files.model, files.bundle, networks)))
        on_step(6, "scoring")
        answers = Bundle.load(files.bundle).predict(features)
        if not all(np.isfinite(column).all() for column in answers.values()):
            checks.append(Check("answers", False, "some are not finite", "numbers"))
            return Verdict(tuple(checks), metrics)
        checks += _limit_checks(jobs.scored, answers, limits, metrics)
        if champion:
            on_step(7, "holding it against the champion")
            among = jobs.scored if data else new_to(client, champion, jobs.scored)
            this = Bundle.load(files.bundle).predict(among[list(FEATURES)].to_numpy(dtype=float))
            checks += _against(champion, Path(temporary) / "champion", among, this, limits, metrics)
    return Verdict(tuple(checks), metrics)


class _Files(NamedTuple):
    """Where a version's files were fetched to: the folder of the MLflow model, and of the bundle in there."""

    model: Path
    bundle: Path


def _fetched(version: ModelVersion, folder: Path) -> tuple[Check, _Files | None]:
    """The check of a version's files, and the files if it passed."""
    expected = "complete, as registered"
    bundle: Path | None = None
    try:
        folder.mkdir()
        model = download_version(version.name, version.version, folder)
        bundle = bundle_folder(model, f"version {version.version} of {version.name}")
        figure = check_whole(bundle, version.tags.get("bundle_sha256"), NETWORKS_OF_MODEL.get(version.name))
    except CalmlflowError as error:
        # The folder is gone when the user reads this.
        return Check("artifacts", False, str(error).replace(str(bundle), "bundle"), expected), None
    return Check("artifacts", True, figure, expected), _Files(model, bundle)


def _onnx_check(bundle: Path, network: str, features: np.ndarray) -> Check:
    return _guarded(
        f"onnx.{network}", "as Keras answers", lambda: f"differs by {onnx_difference(bundle, network, features):.1g}"
    )


def _guarded(name: str, expected: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check(), expected)
    except CalmlflowError as error:
        return Check(name, False, str(error), expected)
    except Exception as error:
        # A version that was tampered with may break whatever reads it, in any way.
        return Check(name, False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}", expected)


def _data_checks(jobs: Jobs, limits: Limits) -> Iterator[Check]:
    yield Check("data.schema", jobs.problem is None, jobs.problem or f"{jobs.trained_on:,} jobs", "valid job records")
    if limits.min_jobs is not None:
        yield Check(
            "data.jobs", jobs.trained_on >= limits.min_jobs, f"{jobs.trained_on:,}", f"at least {limits.min_jobs:,}"
        )
    if limits.max_age_days is not None:
        days = (time.time() - jobs.newest) / 86_400
        # A table without timestamps has 0 everywhere.
        known = jobs.newest > 0
        figure = f"newest job {days:,.0f} days old" if known else "no timestamps"
        # A day for clocks that differ; a newest job of the future hides how old the others are.
        yield Check(
            "data.age", known and -1 <= days <= limits.max_age_days, figure, f"at most {limits.max_age_days:,g} days"
        )


def _limit_checks(
    jobs: pd.DataFrame, answers: Predictions, limits: Limits, metrics: dict[str, float]
) -> Iterator[Check]:
    for target, prediction in PREDICTED.items():
        if prediction not in answers:
            continue
        scores = score_predictions(target, jobs, answers)
        metrics |= {f"challenger_{target}_{name}": value for name, value in scores.items()}
        for name, (low, high) in limits.scores.get(target, {}).items():
            # The recall of a bin that no job needs is undefined.
            if name not in scores:
                continue
            value = scores[name]
            bounds = (low is not None and f"at least {low:g}", high is not None and f"at most {high:g}")
            expected = ", ".join(text for text in bounds if text)
            passed = (low is None or value >= low) and (high is None or value <= high)
            yield Check(f"{target}.{name}", bool(passed), f"{value:.4g}", expected or "any value")


def _against(
    champion: ModelVersion,
    folder: Path,
    jobs: pd.DataFrame,
    answers: Predictions,
    limits: Limits,
    metrics: dict[str, float],
) -> list[Check]:
    name = f"version {champion.version}"
    try:
        folder.mkdir()
        bundle = bundle_folder(download_version(champion.name, champion.version, folder), name)
        others = Bundle.load(bundle).predict(jobs[list(FEATURES)].to_numpy(dtype=float))
    except CalmlflowError as error:
        return [Check("champion", False, str(error).replace(str(folder), name), "a champion to compare with")]
    if missing := sorted(set(others) - set(answers)):
        return [Check("champion", False, f"it gives no {', '.join(missing)}", f"every answer that {name} gives")]
    metrics["jobs_compared"] = len(jobs)
    return list(champion_checks(name, jobs, answers, others, limits, metrics))


def champion_checks(
    name: str, jobs: pd.DataFrame, this: Predictions, other: Predictions, limits: Limits, metrics: dict[str, float]
) -> Iterator[Check]:
    """Hold a challenger's answers against a champion's, for the same jobs.

    A score fails that is worse by more than chance (the whole interval of the paired difference is on the wrong side)
    and by more than its margin.

    Parameters
    ----------
    name : str
        Of the champion.
    jobs : DataFrame of n job records
    this, other : Predictions
        Of challenger and champion; a network that one of them lacks is not compared.
    limits : Limits
        Its margins.
    metrics : dict
        Gets the champion's scores, the differences and their intervals; see `Verdict`.
    """
    for target in TARGETS.values():
        if PREDICTED[target] not in this or PREDICTED[target] not in other:
            continue
        comparison = _compare(target, jobs, this, other)
        for score in COMPARED[target]:
            if score not in comparison.scores.index:
                continue
            row = {str(name): value for name, value in comparison.scores.loc[score].to_dict().items()}
            metrics[f"champion_{target}_{score}"] = row["other"]
            metrics[f"difference_{target}_{score}"] = row["difference"]
            if np.isfinite(row["low"]):
                metrics[f"difference_low_{target}_{score}"] = row["low"]
                metrics[f"difference_high_{target}_{score}"] = row["high"]
            lost = row["difference"] if score in LOWER_IS_BETTER else -row["difference"]
            beyond_chance = row["low"] > 0 if score in LOWER_IS_BETTER else row["high"] < 0
            margin = limits.margins.get(target, {}).get(score, 0.0)
            allowed = margin * row["other"] if score in RELATIVE else margin
            worse = beyond_chance and lost > allowed
            few = row["jobs"] < FEWEST_JOBS
            figure = (
                f"{row['this']:.4g} against {row['other']:.4g}: {row['difference']:+.2g} "
                f"({row['low']:+.2g} to {row['high']:+.2g})"
            )
            yield Check(
                f"champion.{target}.{score}",
                bool(few or not worse),
                f"{figure}, too few jobs ({row['jobs']:.0f}) to tell" if few else figure,
                f"not worse than {name}" + (f" by more than {allowed:.2g}" if margin else ""),
            )


def _compare(target: str, jobs: pd.DataFrame, this: Predictions, other: Predictions) -> Comparison:
    actual = pd.Series(jobs[target].to_numpy(), index=jobs["ipst"].to_numpy(), name=target)
    if target == "mem_bin":
        wallclock_s = jobs["wallclock"].to_numpy()
        return compare_bins(
            BinAnswers(actual, this["probabilities"], this["bin_pred"], wallclock_s),
            BinAnswers(actual, other["probabilities"], other["bin_pred"], wallclock_s),
        )
    prediction = PREDICTED[target]
    kill_times = (this.get("kill_time"), other.get("kill_time")) if target == "wallclock" else (None, None)
    return compare_values(
        ValueAnswers(actual, this[prediction], kill_times[0]), ValueAnswers(actual, other[prediction], kill_times[1])
    )
