"""The run ``retrain``: looks at what has changed, says why or why not, trains, and asks the gate."""

import json
import time
from dataclasses import asdict, dataclass, field, replace

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from calmlflow import settings
from calmlflow.errors import InputError
from calmlflow.jobs.predictions import read_recorded, stored_predictions
from calmlflow.jobs.records import sort_records
from calmlflow.jobs.stores.open import read_table
from calmlflow.registry.claim import PATIENCE_S, POLL_S, ConflictError, claimed
from calmlflow.registry.tracking import environment_params, log_new_params, tracked_run
from calmlflow.runs.data import MIN_JOBS
from calmlflow.runs.promote import PromotionRequest, promote_in_run
from calmlflow.runs.retrain import (
    Change,
    Limits,
    challenger_of,
    champion_of,
    findings_table,
    judge_jobs,
    judge_predictions,
    new_jobs,
    read_seen,
    stages_of,
)
from calmlflow.runs.train import Outcome, TrainingRequest, train
from calmlflow.settings import BUNDLE_MODEL, hide_password, refuse_password

_HELD_HOURS = 6
"""A run that says it trains for longer was left behind by a process that is gone."""

_WAY = {"None": (), "Staging": ("Staging",), "Production": ("Staging", "Production")}


@dataclass(frozen=True)
class RetrainRequest:
    """What the user of ``retrain`` says.

    Attributes
    ----------
    training : TrainingRequest
        How to train, and the stage that the new version is to reach.
    limits : Limits
    predictions : str
        Recorded predictions, see `read_recorded`; none: those of the store that the jobs are in.
    dry_run : bool
        Only say what would be done.
    """

    training: TrainingRequest
    limits: Limits = field(default_factory=Limits)
    predictions: str = "none"
    dry_run: bool = False


@dataclass
class Decision:
    """What was decided, and why; kept as ``decision.json``.

    Attributes
    ----------
    decision : {"trained", "training", "would train", "not needed"}
    reasons : list of str
    data : str
    jobs, quarantined : int
    champion, challenger, version : int or None
        In Production; newer and waiting; trained by this run.
    since_champion, since_challenger : Change or None
        What has changed since they were trained.
    """

    decision: str
    reasons: list[str]
    data: str
    jobs: int
    quarantined: int
    champion: int | None = None
    challenger: int | None = None
    version: int | None = None
    since_champion: Change | None = None
    since_challenger: Change | None = None

    @property
    def verdict(self) -> str:
        """One line for people."""
        return f"{self.decision}: {'; '.join(self.reasons)}"

    def log(self) -> None:
        """Write it down in the active run."""
        told = dict(vars(self))
        for name in ("since_champion", "since_challenger"):
            if change := told[name]:
                told[name] = {
                    "criteria": [asdict(criterion) for criterion in change.criteria],
                    "figures": change.figures,
                    "drift": change.drift.to_dict("index"),
                }
        mlflow.log_text(json.dumps(told, indent=2), "decision.json")
        mlflow.set_tags(
            {
                "retrain.decision": self.decision,
                "retrain.reasons": "; ".join(self.reasons),
                "retrain.data": self.data,
                "champion_version": self.champion or "none",
            }
        )


def retrain_in_run(request: RetrainRequest) -> tuple[Decision, Outcome | None]:
    """Train if enough has changed since the version in Production was trained, and promote what comes of it.

    Returns
    -------
    tuple of Decision, and Outcome or None
        The outcome of the training, where there was one. What was found is printed before it begins.

    Raises
    ------
    CalmlflowError
        What the champion was trained on cannot be had, the training fails, or the gate refuses. The run is marked
        FAILED.
    """
    with tracked_run("retrain") as run:
        training, data = request.training, request.training.data
        for uri in (data, request.predictions):
            refuse_password(uri)
        request.limits.check()
        stage = "None" if training.stage == "None" else settings.parse_stage(training.stage)
        if stage not in _WAY:
            raise InputError(f"stage is {stage}; expected one of {', '.join(_WAY)}")
        told = {name: value for name, value in asdict(training).items() if name not in ("register", "data", "stage")}
        log_new_params(
            {
                "data": hide_password(data),
                "predictions": hide_password(request.predictions),
                **told,
                **asdict(request.limits),
                "stage": stage,
                "dry_run": request.dry_run,
                **environment_params(),
            }
        )
        client = MlflowClient()
        decision = _decide(client, request)
        if decision.decision == "training":
            rival = _claim(client, run, decision)
            if rival:
                decision = replace(decision, decision="not needed", reasons=[rival])
        decision.log()
        if found := decision.since_champion or decision.since_challenger:
            mlflow.log_metrics(found.figures)
            print(findings_table(found.criteria))
        print(decision.verdict, flush=True)
        if decision.decision != "training":
            return decision, None
        outcome = train(replace(training, register=True, stage="None"), nested=True)
        decision = replace(decision, decision="trained", version=outcome.versions[BUNDLE_MODEL])
        mlflow.set_tag("retrain.version", decision.version)
        decision.log()
        for step in _WAY[stage]:
            outcome.promoted = promote_in_run(PromotionRequest(step, decision.version), nested=True)
        return decision, outcome


def _decide(client: MlflowClient, request: RetrainRequest) -> Decision:
    training, limits = request.training, request.limits
    checked = sort_records(read_table(training.data, training.seed), hide_password(training.data))
    jobs = checked.valid
    state = stages_of(client)
    champion = champion_of(state)
    decision = Decision(
        "not needed",
        [],
        hide_password(training.data),
        len(jobs),
        len(checked.quarantine),
        champion,
        challenger_of(state, champion),
    )
    if len(jobs) < MIN_JOBS:
        decision.reasons = [f"{decision.data} holds {len(jobs):,} valid jobs, {MIN_JOBS} are the fewest to train on"]
        return decision
    if champion is None:
        decision.reasons = ["no version is in Production"]
    else:
        seen = read_seen(client, champion)
        changes = judge_jobs(jobs, seen.jobs, limits)
        new = new_jobs(jobs, seen.jobs)
        if request.predictions == "none":
            recorded = stored_predictions(training.data, new["ipst"].tolist())
        else:
            recorded = read_recorded(request.predictions, new["ipst"].tolist())
        realised = judge_predictions(new, seen, recorded, limits)
        found = Change((*changes.criteria, *realised.criteria), changes.drift, {**changes.figures, **realised.figures})
        decision.since_champion = found
        decision.reasons = found.reasons
        if not found.reasons:
            decision.reasons = [f"nothing has changed enough since version {champion} was trained"]
            return decision
    if decision.challenger is not None:
        waiting = read_seen(client, decision.challenger)
        since = judge_jobs(jobs, waiting.jobs, limits)
        decision.since_challenger = since
        if not since.reasons:
            number = len(new_jobs(jobs, waiting.jobs))
            decision.reasons = [
                f"version {waiting.version} ({waiting.stage}) is newer than the one in Production and was trained on "
                f"all but {number:,} of these jobs: promote it, or archive it (`calmlflow promote --stage Archived`)"
            ]
            return decision
    decision.decision = "would train" if request.dry_run else "training"
    return decision


# -- One at a time --------------------------------------------------------------------------------------------------


def _claim(client: MlflowClient, run: Run, decision: Decision) -> str:
    """Mark this run as the one that trains on these jobs; otherwise why it must not, for people."""
    _make_model(client)
    patient_until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with claimed(client, BUNDLE_MODEL, "a retraining"):
                rival = _rival(client, run, decision)
                if not rival:
                    mlflow.set_tags({"retrain.data": decision.data, "retrain.decision": "training"})
                return rival
        except ConflictError:
            # A promotion, or another that looks just now: either takes a moment.
            if time.monotonic() > patient_until:
                raise
            time.sleep(POLL_S)


def _rival(client: MlflowClient, run: Run, decision: Decision) -> str:
    state = stages_of(client)
    if challenger_of(state, champion_of(state)) != decision.challenger or champion_of(state) != decision.champion:
        return "versions have changed while this run looked; the next run sees them"
    oldest = run.info.start_time - _HELD_HOURS * 3_600_000
    others = client.search_runs(
        [run.info.experiment_id],
        f"attributes.status = 'RUNNING' and attributes.start_time > {oldest} and tags.`retrain.decision` = 'training'",
    )
    same = [other for other in others if other.data.tags.get("retrain.data") == decision.data]
    return f"run {same[0].info.run_id} trains on the same jobs already" if same else ""


def _make_model(client: MlflowClient) -> None:
    """A claim is made on the registered model, which the first training has yet to make."""
    try:
        client.create_registered_model(BUNDLE_MODEL)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
