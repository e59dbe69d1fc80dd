"""Retrain when enough has changed since the version in Production was trained."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.resources import KILLS
from calmlflow.jobs.drift import FEWEST_NEW, drift_table
from calmlflow.jobs.predictions import Recorded
from calmlflow.jobs.records import sort_records
from calmlflow.registry.held_out import training_table
from calmlflow.registry.load import load_results
from calmlflow.registry.tracking import environment_params, log_new_params, tracked_run
from calmlflow.registry.versions import State, find_version, read_state
from calmlflow.results.realised import Realised, ended_runs, join_predictions, realised_scores
from calmlflow.results.report.realised import realised_html, realised_verdict
from calmlflow.results.scores import FEWEST_JUDGED
from calmlflow.results.table import PROBABILITIES
from calmlflow.runs.data import MIN_JOBS
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.realised import Ended, read_ended, realised_content
from calmlflow.runs.summary import Outcome
from calmlflow.runs.train import TrainingRequest, train
from calmlflow.settings import BUNDLE_MODEL, NETWORKS

_STEPS = {"None": (), "Staging": ("Staging",), "Production": ("Staging", "Production")}
_HELD_OUT = {"accuracy": "score.mem_bin.accuracy", "kill_time_coverage": "score.wallclock.kill_time_coverage"}
_MARGINS = {"accuracy": "accuracy_drop", "excess_cost": "cost_rise", "kill_time_coverage": "coverage_drop"}
_ABANDONED_H = 6  # a run that has trained for longer was left behind by a process that is gone


@dataclass(frozen=True)
class Limits:
    """How much change is enough to retrain; 0 switches a criterion off."""

    min_new: int = 1000  # jobs that the training did not see, or saw with an older timestamp
    min_share: float = 0.1  # new jobs over jobs seen
    drift: float = 0.25  # population stability index of any feature, or of a target given the features
    # Realised accuracy, excess cost and kill-time coverage against those of held-out jobs.
    accuracy_drop: float = 0.02
    cost_rise: float = 0.02
    coverage_drop: float = 0.01

    def check(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value:g}; expected 0 (switched off) or more")


@dataclass(frozen=True)
class RetrainRequest:
    """Options of the entry point; see docs/reference.md."""

    training: TrainingRequest
    limits: Limits = field(default_factory=Limits)
    predictions: str = "none"  # a URI; none: those in the database of the jobs
    dry_run: bool = False


@dataclass(frozen=True)
class Criterion:
    """One reason to train, met or not."""

    name: str
    limit: float
    met: bool
    found: str


@dataclass(frozen=True)
class Change:
    """Changes since a training."""

    criteria: tuple[Criterion, ...]
    drift: dict[str, dict[str, float]]  # population stability index and chance, by column
    figures: dict[str, float]  # metrics of the run

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(f"{one.found} ({one.name} {one.limit:g})" for one in self.criteria if one.met)


@dataclass(frozen=True)
class Seen:
    """A version, the jobs of its training with ``split`` and its answers, and its held-out scores."""

    version: int
    stage: str
    jobs: pd.DataFrame
    held_out_scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The decision of a run, kept as ``decision.json``: a challenger is newer than the champion in Production."""

    decision: Literal["not needed", "would train", "training", "trained"]
    reasons: tuple[str, ...]
    data: str
    jobs: int
    quarantined: int
    champion: int | None = None
    challenger: int | None = None
    version: int | None = None  # the one that this run trained
    since_champion: Change | None = None
    since_challenger: Change | None = None

    @property
    def verdict(self) -> str:
        return f"{self.decision}: {'; '.join(self.reasons)}"


def retrain_in_run(request: RetrainRequest) -> tuple[Decision, Outcome | None]:
    """Decide whether to train, train, and promote the new version through the gate, as one MLflow run.

    Findings are printed before a training begins. The outcome is None where nothing was trained. Raises a
    CalmlflowError where the jobs of the champion's training are lost, the training fails, or the gate refuses.
    """
    with tracked_run("retrain") as run:
        training = request.training
        request.limits.check()
        stage = "None" if training.stage == "None" else settings.parse_stage(training.stage)
        if stage not in _STEPS:
            raise InputError(f"stage is {stage}; expected one of {', '.join(_STEPS)}")
        options = {"predictions": request.predictions, "dry_run": request.dry_run, **asdict(request.limits)}
        log_new_params({**asdict(training), **options, "stage": stage, **environment_params()})
        client = MlflowClient()
        if not request.dry_run:
            mlflow.set_tags({"retrain.data": training.data, "retrain.decision": "looking"})
        ended = read_ended(training.data, request.predictions, training.seed)
        decision = _decide(request, ended)
        if decision.decision == "training" and (obstacle := _obstacle(client, run, decision)):
            decision = replace(decision, decision="not needed", reasons=(obstacle,))
        _log(decision)
        if change := decision.since_champion or decision.since_challenger:
            mlflow.log_metrics(change.figures)
            print_findings(change.criteria)
        realised = realised_content(ended)
        mlflow.log_text(realised_html(realised), "realised.html")
        mlflow.log_text(json.dumps(realised.figures), "realised.json")
        print(realised_verdict(realised))
        print(decision.verdict, flush=True)
        if decision.decision != "training":
            return decision, None
        outcome = train(replace(training, register=True, stage="None"), nested=True)
        decision = replace(decision, decision="trained", version=outcome.versions[BUNDLE_MODEL])
        mlflow.set_tag("retrain.version", decision.version)
        _log(decision)
        for step in _STEPS[stage]:
            promoted = promote_in_run(PromotionRequest(step, decision.version, newest=True), nested=True)
            outcome = replace(outcome, promoted=promoted)
        return decision, outcome


def _decide(request: RetrainRequest, ended: Ended) -> Decision:
    data, limits, jobs = request.training.data, request.limits, ended.jobs.valid
    champion, challenger = read_contenders()
    decision = Decision("not needed", (), data, len(jobs), len(ended.jobs.quarantine), champion, challenger)
    if len(jobs) < MIN_JOBS:
        reason = f"{data} holds {len(jobs):,} valid jobs, {MIN_JOBS} are the fewest to train on"
        return replace(decision, reasons=(reason,))
    if champion is None:
        decision = replace(decision, reasons=("no version is in Production",))
    else:
        seen = read_seen(champion)
        change = judge_jobs(jobs, seen.jobs, limits)
        realised = judge_predictions(new_jobs(ended_runs(jobs, ended.killed), seen.jobs), seen, ended.recorded, limits)
        change = Change(change.criteria + realised.criteria, change.drift, change.figures | realised.figures)
        decision = replace(decision, since_champion=change, reasons=change.reasons)
        if not change.reasons:
            return replace(decision, reasons=(f"nothing has changed enough since version {champion} was trained",))
    if challenger is not None:
        waiting = read_seen(challenger)
        change = judge_jobs(jobs, waiting.jobs, limits)
        decision = replace(decision, since_challenger=change)
        if not change.reasons:
            reason = (
                f"version {challenger} ({waiting.stage}) is newer than the one in Production and was trained on all "
                f"but {change.figures['new_jobs']:,.0f} of these jobs: promote or archive it with `calmlflow promote`"
            )
            return replace(decision, reasons=(reason,))
    return replace(decision, decision="would train" if request.dry_run else "training")


def _obstacle(client: MlflowClient, run: Run, decision: Decision) -> str:
    """Give the reason why this run must not train now: of runs that look at the same jobs, the first one trains."""
    if read_contenders() != (decision.champion, decision.challenger):
        return "versions have changed while this run looked; the next run sees them"
    oldest = run.info.start_time - _ABANDONED_H * 3_600_000
    running = f"attributes.status = 'RUNNING' and attributes.start_time > {oldest}"
    for other in client.search_runs([run.info.experiment_id], running):
        state, data = (other.data.tags.get(f"retrain.{name}") for name in ("decision", "data"))
        same = data == decision.data and other.info.run_id != run.info.run_id
        earlier = (other.info.start_time, other.info.run_id) < (run.info.start_time, run.info.run_id)
        if same and (state == "training" or (state == "looking" and earlier)):
            return f"run {other.info.run_id} trains on the same jobs already"
    return ""


def _log(decision: Decision) -> None:
    mlflow.log_text(json.dumps(asdict(decision), indent=2), "decision.json")
    tags = {"decision": decision.decision, "reasons": "; ".join(decision.reasons), "data": decision.data}
    mlflow.set_tags({f"retrain.{name}": value for name, value in tags.items()})
    mlflow.set_tag("champion_version", decision.champion or "none")


# -- Facts ----------------------------------------------------------------------------------------------------------


def read_contenders() -> tuple[int | None, int | None]:
    """Champion and challenger in the registry; None where there is none."""
    try:
        return contenders(read_state(BUNDLE_MODEL))
    except InputError:
        return None, None  # nothing has been registered yet


def contenders(state: State) -> tuple[int | None, int | None]:
    """The version in Production (by alias where the server has no stages), and the newest above it not archived."""
    champion = state.held_by("Production")
    if champion is None:
        champion = state.aliases.get("production")
    waiting = [number for number, stage in state.stages.items() if stage in ("None", "Staging")]
    return champion, max((number for number in waiting if number > (champion or 0)), default=None)


def read_seen(version: int) -> Seen:
    """Read a version and the jobs that all its networks saw; a CalmlflowError where they are lost."""
    source = f"models:/{BUNDLE_MODEL}/{version}"
    results = load_results(source)
    # Recorded predictions are answers, so they are held against answers.
    table = (results.answer or results).jobs
    lost = CalmlflowError(
        f"data/latest.csv of {source} has no jobs that all its networks saw, so which jobs are new cannot be told; "
        "expected those it was trained on: train a version anew with `mlflow run . -e main`"
    )
    if table is None:
        raise lost
    carried = [name for name in ("bin_pred", "split", "kill_time", *PROBABILITIES) if name in table]
    table = sort_records(table, f"data/latest.csv of {source}", carried).valid
    found = find_version(str(version), BUNDLE_MODEL)
    for run in {found.tags[f"run.{network}"] for network in NETWORKS if f"part.{network}" in found.tags}:
        # Its own table is of the newest training; a network that was taken over saw the jobs of its own.
        own = training_table(run).drop_duplicates("ipst").set_index("ipst")["timestamp"]
        known = own.reindex(table["ipst"]).to_numpy()
        older = table.assign(timestamp=np.fmin(table["timestamp"], known).astype(np.int64))
        table = older[~np.isnan(known)].reset_index(drop=True)
    if table.empty:
        raise lost
    scores = {score: float(found.tags[tag]) for score, tag in _HELD_OUT.items() if tag in found.tags}
    return Seen(version, found.stage, table, scores)


def new_jobs(jobs: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Job records that are not among those seen, or are there with an older timestamp."""
    known = seen.set_index("ipst")["timestamp"].reindex(jobs["ipst"]).to_numpy()
    # A missing timestamp is NaN here, and nothing is older than it.
    return jobs[~(known >= jobs["timestamp"].to_numpy())].reset_index(drop=True)


# -- Criteria -------------------------------------------------------------------------------------------------------


def judge_jobs(jobs: pd.DataFrame, seen: pd.DataFrame, limits: Limits) -> Change:
    """Judge the number of new jobs, and their drift from those seen where it is more than other programmes make."""
    new = new_jobs(jobs, seen)
    share = len(new) / len(seen)
    counts = (
        Criterion("min_new", limits.min_new, 0 < limits.min_new <= len(new), f"{len(new):,} new jobs"),
        Criterion("min_share", limits.min_share, 0 < limits.min_share <= share, f"{share:.1%} as many as it saw"),
    )
    figures = {"new_jobs": float(len(new)), "new_share": share}
    if len(new) < FEWEST_NEW:
        found = f"not judged: {len(new):,} new jobs; {FEWEST_NEW} tell drift from chance"
        return Change((*counts, Criterion("drift", limits.drift, False, found)), {}, figures)
    table = drift_table(seen, new)
    moved = table[(table["psi"] >= limits.drift) & (table["psi"] > table["chance"])]
    shown = moved.head(5) if len(moved) else table.head(3)
    found = "drift of " + ", ".join(
        f"{name} {psi:.3g} (by chance up to {chance:.3g})" for name, psi, chance in shown.itertuples()
    )
    drift = Criterion("drift", limits.drift, limits.drift > 0 and len(moved) > 0, found)
    by_column = {str(name): {"psi": float(psi), "chance": float(chance)} for name, psi, chance in table.itertuples()}
    figures |= {f"psi_{name}": index["psi"] for name, index in by_column.items()}
    return Change((*counts, drift), by_column, figures)


def judge_predictions(ended: pd.DataFrame, seen: Seen, recorded: Recorded, limits: Limits) -> Change:
    """Judge recorded predictions of new `ended_runs`: worse than on held-out jobs, beyond limits and beyond chance?"""
    joined = join_predictions(ended, recorded.predictions, str(seen.version))
    runs = joined.judged
    count = int(runs["charged"].sum())
    scores: dict[str, Realised] = {}
    if count >= FEWEST_JUDGED and "split" in seen.jobs:
        held_out = seen.jobs[seen.jobs["split"] == "test"]
        scores = {one.score.name: one for one in realised_scores(runs, held_out, seen.held_out_scores)}
    figures: dict[str, float] = {
        "realised_jobs": count,
        **{f"realised_{name}": int(runs[name].sum()) for name in (f"killed_{kind}" for kind in KILLS)},
        "realised_other_versions": sum(joined.others.values()),
        "realised_left_out": joined.left_out,
        "realised_unreadable": recorded.unreadable,
    }
    for name, one in scores.items():
        figures |= {f"realised_{name}": one.found, f"held_out_{name}": one.held_out}
    missing = f"version {seen.version} has no such score of held-out jobs"
    if count < FEWEST_JUDGED:
        others = "".join(f", {number:,} by version {name}" for name, number in joined.others.items())
        left_out = f", {joined.left_out:,} by a policy or incomplete" if joined.left_out else ""
        missing = f"{count:,} new jobs with a prediction of version {seen.version}{others}{left_out}"
    criteria = []
    for name, option in _MARGINS.items():
        limit, score = getattr(limits, option), scores.get(name)
        if score is None:
            criteria.append(Criterion(option, limit, False, f"{name} not judged: {missing}"))
            continue
        word = score.verdict()
        said = {"better": "better beyond chance", "worse": "worse beyond chance", "no difference": "perhaps by chance"}
        found = (
            f"realised {name} {score.found:.4g}, held out {score.held_out:.4g}, difference {score.low:+.2g} to "
            f"{score.high:+.2g} ({score.jobs:,} jobs of {score.programmes:,} programmes): {said.get(word, word)}"
        )
        criteria.append(Criterion(option, limit, limit > 0 and score.verdict(limit) == "worse", found))
    return Change(tuple(criteria), {}, figures)


def print_findings(criteria: Sequence[Criterion]) -> None:
    """Print for each criterion its limit, whether it is met, and the finding."""
    print(f"{'criterion':<14}{'limit':>8}       found")
    for one in criteria:
        limit = f"{one.limit:g}" if one.limit else "off"
        print(f"{one.name:<14}{limit:>8}  {'met' if one.met else '':<4} {one.found}")
