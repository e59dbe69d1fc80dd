"""Judge a challenger by its shadow answers to live jobs that have finished since, beside the answers they ran with."""

import pandas as pd

from calmlflow import settings
from calmlflow.errors import CalmlflowError
from calmlflow.jobs.predictions import read_recorded
from calmlflow.jobs.records import sort_records
from calmlflow.jobs.stores.open import read_table
from calmlflow.predictor.bundle import Predictions
from calmlflow.registry.against import champion_checks
from calmlflow.registry.checks import Check
from calmlflow.registry.limits import Limits
from calmlflow.registry.versions import Version
from calmlflow.results.scores import FEWEST_JUDGED, PREDICTED
from calmlflow.results.table import PROBABILITIES

# Role of the champion's recorded answers; checks and metrics begin with it.
LIVE = "live"
_ANSWER = [*PREDICTED.values(), "kill_time", *PROBABILITIES]


def shadow_checks(
    challenger: Version, champion: Version, limits: Limits, data: str, predictions: str
) -> tuple[list[Check], dict[str, float]]:
    """Compare recorded answers of two versions on the jobs that have finished since, see `champion_checks`.

    ``data`` is a store of jobs; ``predictions`` is as for `read_recorded`, or empty: in that store. Too few jobs decide
    nothing; jobs that cannot be read fail. Killed jobs, of which nobody knows what they needed, do not count.
    """
    expected = f"{FEWEST_JUDGED} finished jobs at least with answers of both versions"
    shown = settings.hide_password(data)
    try:
        jobs = sort_records(read_table(data), shown).valid
        recorded = read_recorded(predictions or data, set(jobs["ipst"])).predictions
        jobs, this, other = paired_answers(jobs, recorded, challenger.number, champion.number)
    except CalmlflowError as error:
        return [Check(LIVE, False, str(error), expected)], {}
    if len(jobs) < FEWEST_JUDGED:
        return [Check(LIVE, None, f"{len(jobs)} jobs of {shown}", expected)], {}
    of_both = limits.model_copy(update={"slices": {}})
    checks, metrics = champion_checks(f"version {champion.number} live", jobs, this, other, of_both, LIVE)
    return checks, {**metrics, "jobs_compared_live": len(jobs)}


def paired_answers(
    jobs: pd.DataFrame, predictions: pd.DataFrame, challenger: int, champion: int
) -> tuple[pd.DataFrame, Predictions, Predictions]:
    """Finished jobs that ran with an answer of the champion and have a shadow answer of the challenger, and both.

    The latest of each before the end of the job; it ran with the latest of all that are no shadow.
    """
    ends = predictions["ipst"].map(jobs.set_index("ipst")["timestamp"]).astype(float)
    before = predictions[predictions["timestamp"] <= ends].sort_values("timestamp", kind="stable")
    is_shadow = before["source"].eq(settings.SHADOW)
    shadow = before[is_shadow & before["version"].eq(str(challenger))].drop_duplicates("ipst", keep="last")
    live = before[~is_shadow].drop_duplicates("ipst", keep="last")
    live = live[live["version"].eq(str(champion)) & live["source"].ne("policy")]
    sides = [side.set_index("ipst")[_ANSWER].dropna() for side in (shadow, live)]
    paired = jobs[jobs["ipst"].isin(sides[0].index) & jobs["ipst"].isin(sides[1].index)].reset_index(drop=True)
    this, other = (_as_predictions(side.loc[paired["ipst"]]) for side in sides)
    return paired, this, other


def _as_predictions(rows: pd.DataFrame) -> Predictions:
    found = {name: rows[name].to_numpy(dtype=float) for name in ("mem_pred", "wall_pred", "kill_time")}
    return {**found, "bin_pred": rows["bin_pred"].to_numpy(dtype=int), "probabilities": rows[PROBABILITIES].to_numpy()}
