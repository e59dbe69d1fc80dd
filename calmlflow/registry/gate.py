"""Judge a version before it may go to a stage."""

# For Staging the version itself is checked: its files, its networks, its serving, its training jobs, its scores against
# the limits. For Production it is also compared with the champion, on the same jobs.

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.features import FEATURES
from calmlflow.hst.ladder import LADDER
from calmlflow.networks.onnx_file import check_graph
from calmlflow.predictor.answers import by_policy
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.evidence import Finished
from calmlflow.registry.against import champion_checks, limit_checks, on_this_ladder, rung_checks, settled
from calmlflow.registry.checks import (
    Check,
    bundle_folder,
    check_digest,
    check_onnx,
    check_serving,
    check_whole,
    download_version,
    guarded,
    probe_rows,
)
from calmlflow.registry.held_out import Jobs, judged_jobs, known_to_both, new_to, newest_of
from calmlflow.registry.history import in_production_since
from calmlflow.registry.limits import Limits
from calmlflow.registry.versions import State, Version
from calmlflow.results.scores import DECISIVE, FEWEST_JUDGED, PREDICTED, score_predictions
from calmlflow.settings import BUNDLE_MODEL, NETWORK_MODELS, NETWORKS, TARGETS

NETWORKS_OF_MODEL = {BUNDLE_MODEL: NETWORKS} | {model: (network,) for network, model in NETWORK_MODELS.items()}
"""What a version of each registered model must hold; of others, what their champion holds."""

STEPS = 5

REFERENCE_DAYS = 365
"""How far back a version must have been in Production to be held against."""


@dataclass(frozen=True)
class Verdict:
    """Checks of the gate, and the figures behind them.

    Metrics: ``challenger_{target}_{score}`` of all jobs. With a champion also ``jobs_compared`` and, of these,
    ``champion_...``, ``difference_...`` (challenger - champion) and its bootstrap interval: ``difference_low_...``,
    ``difference_high_...`` (95 %). With an earlier version ``reference_...``, ``reference_difference_...`` and so on.
    """

    checks: tuple[Check, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        """Checks that failed; those that are not decided did not."""
        return [check for check in self.checks if check.passed is False]


def reference_version(state: State, challenger: Version, champion: Version | None, named: int | str) -> Version | None:
    """The earlier version that a challenger is held against beside the champion, so that losses do not add up.

    The best of those that were in Production within a year and that no rollback left: by the scores of their own
    held-out jobs. None without a champion, or where there is none; an InputError where the version that is ``named``
    does not exist.
    """
    if champion is None or named == "none":
        return None
    apart = {challenger.number, champion.number}
    if named != "best":
        if named not in state.versions:
            raise InputError(
                f"reference {named} of the gate is no version of {state.model}; expected one, best or none"
            )
        return None if named in apart else state.versions[int(named)]
    past = in_production_since(state.events, datetime.now(UTC) - timedelta(days=REFERENCE_DAYS)) - apart
    known = [state.versions[number] for number in past if number in state.versions]
    return min((v for v in known if not state.was_rolled_back(v.number)), key=_own_scores, default=None)


def _own_scores(version: Version) -> tuple[float, int]:
    """Product of the scores that sum up each target of the model; infinite where one is not known."""
    product = 1.0
    for network in NETWORKS_OF_MODEL.get(version.model, NETWORKS):
        target = TARGETS[network]
        try:
            product *= float(version.tags[f"score.{target}.{DECISIVE[target]}"])
        except (KeyError, ValueError):
            return float("inf"), version.number
    return product, version.number


def judge(
    challenger: Version,
    champion: Version | None,
    limits: Limits,
    data: str | None,
    on_step: Callable[[int, str], None],
    reference: Version | None = None,
    newest: bool = False,
) -> Verdict:
    """Make every check; a check that cannot be made is one that failed.

    What too few of the judged jobs tell is decided on all jobs that the trainings of both versions knew, each left out
    of the evidence for its own answer.

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
    reference : Version, optional
        An earlier version that the challenger must not be worse than either; see `reference_version`.
    newest : bool
        Compare on the held-out jobs that are newer than the champion's training, where they are enough.
    """
    on_step(0, "reading jobs")
    jobs = judged_jobs(challenger, champion, data)
    checks = list(_data_checks(jobs, limits))
    with tempfile.TemporaryDirectory(prefix="calmlflow-gate-") as temporary:
        on_step(1, "fetching the version")
        expected = "complete, as registered"
        try:
            model, files = _fetched(challenger, Path(temporary) / "challenger")
            figure = check_whole(files, challenger.tags.get("bundle_sha256"), NETWORKS_OF_MODEL.get(challenger.model))
            bundle = Bundle.load(files)
        except CalmlflowError as error:
            # The folder is gone when the user reads this.
            figure = str(error).replace(f"{temporary}/challenger/", "")
            return Verdict((*checks, Check("artifacts", False, figure, expected)))
        checks.append(Check("artifacts", True, figure, expected))
        if bundle.ladder != LADDER:
            checks.append(Check("ladder", False, f"trained for {bundle.ladder}", f"{LADDER}, in force"))
        if bundle.ladder != LADDER or jobs.scored is None:
            return Verdict((*checks, guarded("serving", "works", lambda: check_serving(model, files, bundle.networks))))
        on_step(2, "scoring, serving")
        with ThreadPoolExecutor(1) as served:
            serving = served.submit(guarded, "serving", "works", lambda: check_serving(model, files, bundle.networks))
            scored, metrics = _scored(bundle, jobs.scored, jobs.known, limits)
            compared: list[Check] = []
            if all(check.passed for check in scored if check.name == "answers"):
                on_step(3, "comparing with the champion")
                for role, other in (("champion", champion), ("reference", reference)):
                    if other:
                        among = jobs.scored if data else new_to(other, jobs.scored)
                        among = newest_of(among, other) if newest and not data else among
                        of_role = limits if role == "champion" else limits.model_copy(update={"slices": {}})
                        folder = Path(temporary) / role
                        found, more = _against(role, other, folder, bundle, among, jobs.known, of_role)
                        compared, metrics = compared + found, metrics | more
            on_step(4, "comparing ONNX with Keras")
            agreed = check_onnx(files, bundle.networks, _features_of(jobs.scored))
            checks += [*agreed, serving.result(), *scored, *compared]
    return Verdict(tuple(checks), metrics)


def _answers(bundle: Bundle, jobs: pd.DataFrame) -> Predictions:
    """Answers of a bundle to finished jobs, each left out of its own answer, so that no job vouches for itself."""
    finished = Finished.of(jobs)
    return bundle.predict(finished.features, finished.names, finished)


def _features_of(jobs: pd.DataFrame) -> np.ndarray:
    return jobs[list(FEATURES)].to_numpy(dtype=float)


def _fetched(version: Version, folder: Path) -> tuple[Path, Path]:
    """Folders of a version's model and of its bundle. Digest and graphs are checked; nothing has run."""
    folder.mkdir()
    model = download_version(version, folder)
    check_digest(version, model)
    bundle = bundle_folder(model, str(version))
    for network in sorted(bundle.glob("*/*.onnx")):
        check_graph(network)
    return model, bundle


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


def _scored(
    bundle: Bundle, jobs: pd.DataFrame, known: pd.DataFrame | None, limits: Limits
) -> tuple[list[Check], dict[str, float]]:
    """Compare the scores of a bundle with the limits."""
    answers = _answers(bundle, jobs)
    rows = probe_rows(_features_of(jobs))
    sound = [
        _sound("answers", answers, f"{len(jobs):,} jobs"),
        _sound("answers.probes", bundle.predict(rows), f"{len(rows):,} made-up jobs"),
    ]
    if not sound[0].passed:
        return sound, {}
    metrics: dict[str, float] = {}
    for target, prediction in PREDICTED.items():
        if prediction in answers:
            scores = score_predictions(target, jobs, answers)
            metrics |= {f"challenger_{target}_{name}": value for name, value in scores.items()}
    checks = limit_checks(jobs, answers, limits)
    if known is not None:
        jobs, answers = known, _answers(bundle, known)
        wider = limit_checks(known, answers, limits)
        checks = settled(checks, wider, f"of all {len(known):,} jobs of the training")
    # Needed so rarely that all jobs are looked at.
    return sound + checks + rung_checks(jobs, answers), metrics


def _sound(name: str, found: Predictions, asked: str) -> Check:
    figure = by_policy(found["by_policy"]) if "by_policy" in found else asked
    return Check(name, "by_policy" not in found, figure, "what can be true")


def _against(
    role: str,
    other: Version,
    folder: Path,
    challenger: Bundle,
    jobs: pd.DataFrame,
    known: pd.DataFrame | None,
    limits: Limits,
) -> tuple[list[Check], dict[str, float]]:
    """Compare the challenger's bundle with another version."""
    name, expected = f"version {other.number}", f"a {role} to compare with"
    try:
        bundle = Bundle.load(_fetched(other, folder)[1])
        others = on_this_ladder(_answers(bundle, jobs), bundle.ladder)
    except CalmlflowError as error:
        # Of old versions the files may be gone; where nobody asked for this one, that stops nothing.
        passed = None if role == "reference" and limits.reference == "best" else False
        return [Check(role, passed, str(error).replace(str(folder), name), expected)], {}
    answers = _answers(challenger, jobs)
    if missing := sorted(set(others) - set(answers) - {"evidence", "by_policy"}):
        return [Check(role, False, f"it gives no {', '.join(missing)}", f"every answer that {name} gives")], {}
    checks, metrics = champion_checks(name, jobs, answers, others, limits, role)
    if known is not None:
        both = known_to_both(known, other)
        if len(both) >= FEWEST_JUDGED:
            wider, _ = champion_checks(
                name,
                both,
                _answers(challenger, both),
                on_this_ladder(_answers(bundle, both), bundle.ladder),
                limits,
                role,
            )
            checks = settled(checks, wider, f"of the {len(both):,} jobs that both trainings knew")
    if "bin_pred" in answers and "bin_pred" not in others:
        figure = f"memory bins are not compared: it was trained for {bundle.ladder}"
        checks.append(Check(f"{role}.ladder", None, figure, f"{LADDER}, in force"))
    return checks, {**metrics, "jobs_compared" if role == "champion" else "jobs_compared_reference": len(jobs)}
