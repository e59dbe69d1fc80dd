"""When to train anew: what has changed since the version in Production was trained, and whether that is enough."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.drift import FEWEST_NEW, drift_table
from calmlflow.jobs.predictions import Recorded
from calmlflow.jobs.records import sort_records
from calmlflow.registry.load import load_results
from calmlflow.registry.versions import State, explained, read_state
from calmlflow.results.realised import FEWEST_JOBS, Joined, Realised, join_predictions, realised_scores
from calmlflow.settings import BUNDLE_MODEL

_PROMISED = {"accuracy": "score.mem_bin.accuracy", "kill_time_coverage": "score.wallclock.kill_time_coverage"}


@dataclass(frozen=True)
class Limits:
    """What is enough; 0 switches a criterion off.

    Attributes
    ----------
    min_new : int
        New jobs: those that the training did not see, or saw with an older timestamp.
    min_share : float
        New jobs over jobs seen.
    drift : float
        Population stability index of any feature or target, see `calmlflow.jobs.drift`.
    accuracy_drop, cost_rise, coverage_drop : float
        By how much realised accuracy, excess cost and kill-time coverage are worse than held out.
    """

    min_new: int = 1000
    min_share: float = 0.1
    drift: float = 0.25
    accuracy_drop: float = 0.02
    cost_rise: float = 0.02
    coverage_drop: float = 0.01

    def check(self) -> None:
        """Raise an InputError where a limit is below 0 or no number."""
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value:g}; expected 0 (switched off) or more")


@dataclass(frozen=True)
class Criterion:
    """One reason to train, met or not.

    Attributes
    ----------
    name : str
        Its parameter.
    limit : float
        0: switched off.
    met : bool
    told : str
        What was found, for people.
    """

    name: str
    limit: float
    met: bool
    told: str


@dataclass(frozen=True)
class Seen:
    """A version, and the jobs of its training, held-out ones too.

    Attributes
    ----------
    version : int
    stage : str
    jobs : DataFrame
        Job records with ``split`` and, where the training has them, ``bin_pred``.
    promised : dict of str to float
        Scores on its held-out jobs.
    """

    version: int
    stage: str
    jobs: pd.DataFrame
    promised: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What has changed since a training.

    Attributes
    ----------
    criteria : tuple of Criterion
    drift : DataFrame
        See `calmlflow.jobs.drift.drift_table`; empty where it was not judged.
    figures : dict of str to float
        For metrics.
    """

    criteria: tuple[Criterion, ...]
    drift: pd.DataFrame
    figures: dict[str, float]

    @property
    def reasons(self) -> list[str]:
        """What is told of the criteria that are met."""
        return [f"{found.told} ({found.name} {found.limit:g})" for found in self.criteria if found.met]


# -- New jobs and drift ---------------------------------------------------------------------------------------------


def new_jobs(jobs: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Those of some job records that others do not have, or have with an older timestamp."""
    known = seen.set_index("ipst")["timestamp"].reindex(jobs["ipst"]).to_numpy()
    # Nothing is older than a missing timestamp.
    return jobs[~(known >= jobs["timestamp"].to_numpy())].reset_index(drop=True)


def judge_jobs(jobs: pd.DataFrame, seen: pd.DataFrame, limits: Limits) -> Change:
    """Count new jobs, and look where they have moved away from those seen.

    A feature has drifted where its index reaches the limit and is more than chance, as is no index of a few jobs.

    Parameters
    ----------
    jobs, seen : DataFrame
        Job records there are now; those of a training, one at least.
    limits : Limits
    """
    new = new_jobs(jobs, seen)
    share = len(new) / len(seen)
    criteria = [
        Criterion("min_new", limits.min_new, 0 < limits.min_new <= len(new), f"{len(new):,} new jobs"),
        Criterion("min_share", limits.min_share, 0 < limits.min_share <= share, f"{share:.1%} as many as it saw"),
    ]
    figures = {"new_jobs": float(len(new)), "new_share": share}
    drift = pd.DataFrame({"psi": [], "chance": []})
    if len(new) < FEWEST_NEW:
        told = f"not judged: {len(new):,} new jobs; {FEWEST_NEW} tell drift from chance"
        return Change((*criteria, Criterion("drift", limits.drift, False, told)), drift, figures)
    drift = drift_table(seen, new)
    moved = drift[(drift["psi"] >= limits.drift) & (drift["psi"] > drift["chance"])]
    shown = moved if len(moved) else drift.head(3)
    told = "drift of " + ", ".join(f"{name} {index:.3g}" for name, index in shown["psi"].head(5).items())
    criteria.append(Criterion("drift", limits.drift, limits.drift > 0 and len(moved) > 0, told))
    return Change(tuple(criteria), drift, figures | {f"psi_{name}": float(psi) for name, psi in drift["psi"].items()})


# -- Predictions ----------------------------------------------------------------------------------------------------


def judge_predictions(new: pd.DataFrame, seen: Seen, recorded: Recorded, limits: Limits) -> Change:
    """Hold recorded predictions of new jobs against what the version's held-out jobs promised.

    A score is worse where it is by more than its limit, and by more than chance.

    Parameters
    ----------
    new : DataFrame
        Job records that the version was not trained on.
    seen : Seen
    recorded : Recorded
        What was predicted for them.
    limits : Limits
    """
    joined = join_predictions(new, recorded.predictions, str(seen.version))
    figures: dict[str, float] = {
        "realised_jobs": len(joined.judged),
        "realised_other_versions": sum(joined.others.values()),
        "realised_left_out": joined.left_out,
        "realised_unreadable": recorded.unreadable,
    }
    scores: list[Realised] = []
    if len(joined.judged) >= FEWEST_JOBS and "split" in seen.jobs:
        held_out = seen.jobs[seen.jobs["split"] == "test"]
        scores = realised_scores(joined.judged, held_out, seen.promised)
    for score in scores:
        figures |= {f"realised_{score.score}": score.found, f"held_out_{score.score}": score.held_out}
    margins = {"accuracy": "accuracy_drop", "excess_cost": "cost_rise", "kill_time_coverage": "coverage_drop"}
    by_name = {score.score: score for score in scores}
    criteria = [
        _judged(by_name[score], name, limits)
        if score in by_name
        else Criterion(name, getattr(limits, name), False, f"{score} not judged: {_why_not(joined, seen)}")
        for score, name in margins.items()
    ]
    return Change(tuple(criteria), pd.DataFrame(), figures)


def _judged(score: Realised, name: str, limits: Limits) -> Criterion:
    limit = getattr(limits, name)
    met = limit > 0 and score.worse > limit and score.low > 0
    told = f"realised {score.score} {score.found:.4g}, held out {score.held_out:.4g}"
    beyond = "" if score.worse <= 0 else ", beyond chance" if score.low > 0 else ", perhaps by chance"
    return Criterion(name, limit, met, told + beyond)


def _why_not(joined: Joined, seen: Seen) -> str:
    if len(joined.judged) >= FEWEST_JOBS:
        return f"version {seen.version} has no such score of held-out jobs"
    others = "".join(f", {count:,} by version {name}" for name, count in joined.others.items())
    left_out = f", {joined.left_out:,} by a policy or incomplete" if joined.left_out else ""
    return f"{len(joined.judged):,} new jobs with a prediction of version {seen.version}{others}{left_out}"


# -- Versions -------------------------------------------------------------------------------------------------------


def stages_of(client: MlflowClient) -> State:
    """What the registry holds of the bundle; nothing where it does not know the model yet."""
    try:
        return read_state(client, BUNDLE_MODEL)
    except InputError:
        return State({}, {}, (), 1)


def champion_of(state: State) -> int | None:
    """The version in Production, or of its alias where the server has no stages."""
    held = state.held_by("Production")
    return state.aliases.get("production") if held is None else held


def challenger_of(state: State, champion: int | None) -> int | None:
    """The newest version above the champion that may still become one."""
    waiting = [number for number, stage in state.stages.items() if stage in ("None", "Staging")]
    return max((number for number in waiting if number > (champion or 0)), default=None)


def read_seen(client: MlflowClient, version: int) -> Seen:
    """A version and the jobs of its training.

    Raises
    ------
    CalmlflowError
        They cannot be had: nobody could say what has changed.
    """
    source = f"models:/{BUNDLE_MODEL}/{version}"
    table = load_results(source).jobs
    if table is None:
        raise CalmlflowError(f"{source} has left no data/latest.csv; expected the jobs that it was trained on")
    carried = [name for name in ("bin_pred", "split") if name in table]
    jobs = sort_records(table, f"data/latest.csv of {source}", carried).valid
    if jobs.empty:
        raise CalmlflowError(f"data/latest.csv of {source} holds no valid job record; expected what it was trained on")
    try:
        found: ModelVersion = client.get_model_version(BUNDLE_MODEL, str(version))
    except MlflowException as error:
        raise explained(error, f"version {version} of {BUNDLE_MODEL}") from None
    promised = {score: float(found.tags[tag]) for score, tag in _PROMISED.items() if tag in found.tags}
    return Seen(version, str(found.current_stage), jobs, promised)


# -- For people -----------------------------------------------------------------------------------------------------


def findings_table(criteria: Sequence[Criterion]) -> str:
    """A line for each criterion: met or not, its limit, and what was found."""
    rows = [f"{'criterion':<14}{'limit':>8}  {'':<4} found"]
    for one in criteria:
        limit = f"{one.limit:g}" if one.limit else "off"
        rows.append(f"{one.name:<14}{limit:>8}  {'met' if one.met else '':<4} {one.told}")
    return "\n".join(row.rstrip() for row in rows)
