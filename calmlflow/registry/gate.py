"""Judge a version before it may go to a stage."""

# For Staging the version itself is checked: its files, its networks, its serving, its training jobs, its scores against
# the limits. For Production it is also compared with the champion, on the same jobs.

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import TimeoutError as NoAnswerError
from multiprocessing.pool import AsyncResult, Pool
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.hst.features import FEATURES
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.evidence import Finished
from calmlflow.predictor.manifest import read_manifest
from calmlflow.registry.checks import (
    Check,
    bundle_folder,
    check_digest,
    check_onnx,
    check_serving,
    check_whole,
    download_version,
    guarded,
)
from calmlflow.registry.held_out import Jobs, judged_jobs, new_to
from calmlflow.registry.limits import Limits
from calmlflow.registry.versions import Version
from calmlflow.results.comparison import compare_predictions
from calmlflow.results.scores import PREDICTED, SCORES, headlines, score_predictions
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS

NETWORKS_OF_MODEL = {BUNDLE_MODEL: NETWORKS} | {model: (network,) for network, model in NETWORK_MODELS.items()}
"""What a version of each registered model must hold; of others, what their champion holds."""

STEPS = 5

KERAS_TIMEOUT_S = 600.0
"""A pool waits for ever for a process of its own that was killed."""


@dataclass(frozen=True)
class Verdict:
    """Checks of the gate, and the figures behind them.

    Metrics: ``challenger_{target}_{score}`` of all jobs. With a champion also ``jobs_compared`` and, of these,
    ``champion_...``, ``difference_...`` (challenger - champion) and its bootstrap interval: ``difference_low_...``,
    ``difference_high_...`` (95 %).
    """

    checks: tuple[Check, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """Checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def judge(
    challenger: Version,
    champion: Version | None,
    limits: Limits,
    data: str | None,
    on_step: Callable[[int, str], None],
    beside: Pool | None = None,
) -> Verdict:
    """Make every check; a check that cannot be made is one that failed.

    Parameters
    ----------
    challenger, champion : Version
        Without a champion nothing is compared.
    limits : Limits
    data : str, optional
        Jobs to judge by that are newer than those of both trainings; an InputError where they are too few. Default: the
        challenger's held-out jobs.
    on_step : callable
        Told the number of steps done, of `STEPS`, and what comes next.
    beside : Pool, optional
        Processes to compare ONNX with Keras in. Default: this one, which imports TensorFlow where it has not.
    """
    on_step(0, "reading jobs")
    jobs = judged_jobs(challenger, champion, data)
    checks = list(_data_checks(jobs, limits))
    with tempfile.TemporaryDirectory(prefix="calmlflow-gate-") as temporary:
        on_step(1, "fetching the version")
        expected = "complete, as registered"
        try:
            model, bundle = _fetched(challenger, Path(temporary) / "challenger")
            figure = check_whole(bundle, challenger.tags.get("bundle_sha256"), NETWORKS_OF_MODEL.get(challenger.model))
        except CalmlflowError as error:
            # The folder is gone when the user reads this.
            figure = str(error).replace(f"{temporary}/challenger/", "")
            return Verdict((*checks, Check("artifacts", False, figure, expected)))
        checks.append(Check("artifacts", True, figure, expected))
        if jobs.scored is None:
            return Verdict(tuple(checks))
        features = _features_of(jobs.scored)
        networks = read_manifest(bundle)["networks"]
        on_step(2, "scoring, serving, comparing ONNX with Keras")
        with ThreadPoolExecutor(1) as served:
            of_onnx = (bundle, networks, features)
            onnx = beside.apply_async(check_onnx, of_onnx) if beside else None
            serving = served.submit(guarded, "serving", "works", lambda: check_serving(model, bundle, networks))
            scored, metrics = _scored(bundle, jobs.scored, limits)
            compared: list[Check] = []
            if champion and all(check.passed for check in scored if check.name == "answers"):
                on_step(3, "comparing with the champion")
                among = jobs.scored if data else new_to(champion, jobs.scored)
                this = _answers(bundle, among)
                compared, found = _against(champion, Path(temporary) / "champion", among, this, limits)
                metrics |= found
            on_step(4, "waiting for the answers of MLflow and Keras")
            agreed = _answered(onnx) if onnx else check_onnx(*of_onnx)
            checks += [*agreed, serving.result(), *scored, *compared]
    return Verdict(tuple(checks), metrics)


def _answered(onnx: "AsyncResult[list[Check]]") -> list[Check]:
    try:
        return onnx.get(KERAS_TIMEOUT_S)
    except NoAnswerError:
        figure = f"no answer in {KERAS_TIMEOUT_S:.0f} s: the process that compares was killed, or is too slow"
        return [Check("onnx", False, figure, "as Keras answers")]


def _answers(bundle: Path, jobs: pd.DataFrame) -> Predictions:
    """Answers of a bundle to finished jobs, each left out of its own answer, so that no job vouches for itself."""
    finished = Finished.of(jobs)
    return Bundle.load(bundle).predict(finished.features, finished.names, finished)


def _features_of(jobs: pd.DataFrame) -> np.ndarray:
    return jobs[list(FEATURES)].to_numpy(dtype=float)


def _fetched(version: Version, folder: Path) -> tuple[Path, Path]:
    """Folders of a version's model and of its bundle. Their digest is checked; nothing has run."""
    folder.mkdir()
    model = download_version(version, folder)
    check_digest(version, model)
    return model, bundle_folder(model, str(version))


def _data_checks(jobs: Jobs, limits: Limits) -> Iterator[Check]:
    yield Check("data.schema", jobs.problem is None, jobs.problem or f"{jobs.trained_on:,} jobs", "valid job records")
    fewest, oldest_days = limits.data.min_jobs, limits.data.max_age_days
    if fewest is not None:
        yield Check("data.jobs", jobs.trained_on >= fewest, f"{jobs.trained_on:,}", f"at least {fewest:,}")
    if oldest_days is not None:
        days = (time.time() - jobs.newest) / 86_400
        # A table without timestamps has 0 everywhere.
        known = jobs.newest > 0
        figure = f"newest job {days:,.0f} days old" if known else "no timestamps"
        # A day for clocks that differ; a newest job of the future hides how old the others are.
        yield Check("data.age", known and -1 <= days <= oldest_days, figure, f"at most {oldest_days:,g} days")


def _scored(bundle: Path, jobs: pd.DataFrame, limits: Limits) -> tuple[list[Check], dict[str, float]]:
    """Compare the scores of a bundle with the limits."""
    answers = _answers(bundle, jobs)
    if not all(np.isfinite(column).all() for column in answers.values()):
        return [Check("answers", False, "some are not finite", "numbers")], {}
    checks: list[Check] = []
    metrics: dict[str, float] = {}
    for target, prediction in PREDICTED.items():
        if prediction in answers:
            scores = score_predictions(target, jobs, answers)
            metrics |= {f"challenger_{target}_{name}": value for name, value in scores.items()}
            checks += [
                Check(f"{target}.{name}", bounds.hold(scores[name]), f"{scores[name]:.4g}", str(bounds))
                # The recall of a bin that no job needs is undefined.
                for name, bounds in limits.scores.get(target, {}).items()
                if name in scores
            ]
    return checks, metrics


def _against(
    champion: Version, folder: Path, jobs: pd.DataFrame, answers: Predictions, limits: Limits
) -> tuple[list[Check], dict[str, float]]:
    name = f"version {champion.number}"
    try:
        _, bundle = _fetched(champion, folder)
        others = _answers(bundle, jobs)
    except CalmlflowError as error:
        return [Check("champion", False, str(error).replace(str(folder), name), "a champion to compare with")], {}
    if missing := sorted(set(others) - set(answers) - {"evidence"}):
        return [Check("champion", False, f"it gives no {', '.join(missing)}", f"every answer that {name} gives")], {}
    checks, metrics = champion_checks(name, jobs, answers, others, limits)
    return checks, {**metrics, "jobs_compared": len(jobs)}


def champion_checks(
    name: str, jobs: pd.DataFrame, this: Predictions, other: Predictions, limits: Limits
) -> tuple[list[Check], dict[str, float]]:
    """Compare a challenger's answers with a champion's, for the same jobs; gives checks, and metrics as in `Verdict`.

    A score fails that is worse by more than chance (the whole interval of the paired difference is on the wrong side)
    and by more than its margin. A network that one of the two lacks is not compared.
    """
    checks: list[Check] = []
    metrics: dict[str, float] = {}
    for target, prediction in PREDICTED.items():
        if prediction not in this or prediction not in other:
            continue
        comparison = compare_predictions(target, jobs, this, other)
        for score in headlines(target):
            if score not in comparison.scores.index:
                continue
            rule = SCORES[target][score]
            row = {str(column): float(value) for column, value in comparison.scores.loc[score].to_dict().items()}
            found = {"champion": row["other"], "difference": row["difference"]}
            found |= {"difference_low": row["low"], "difference_high": row["high"]} if np.isfinite(row["low"]) else {}
            metrics |= {f"{kind}_{target}_{score}": value for kind, value in found.items()}
            margin = limits.margins.get(target, {}).get(score, 0.0)
            allowed = margin * row["other"] if rule.relative_margin else margin
            verdict = rule.verdict(row["difference"], (row["low"], row["high"]), int(row["jobs"]), allowed)
            figure = (
                f"{row['this']:.4g} against {row['other']:.4g}: {row['difference']:+.2g} "
                f"({row['low']:+.2g} to {row['high']:+.2g})"
            )
            few = f", too few jobs ({row['jobs']:.0f}) to tell" if verdict == "too few jobs" else ""
            expected = f"not worse than {name}" + (f" by more than {allowed:.2g}" if margin else "")
            checks.append(Check(f"champion.{target}.{score}", verdict != "worse", figure + few, expected))
    return checks, metrics
