"""Read the jobs that a version is judged by: those that its training held out, or newer ones."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from calmlflow.console import say
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.jobs.records import check_records
from calmlflow.jobs.stores.open import read_jobs
from calmlflow.registry.versions import Version
from calmlflow.results.scores import FEWEST_JUDGED

TABLE = "data/latest.csv"


@dataclass(frozen=True)
class Jobs:
    """Jobs that a version was trained on, and those to score it on."""

    trained_on: int  # how many
    newest: int  # timestamp of the newest, epoch seconds; 0 where it is not known
    problem: str | None  # why they cannot be read, or are no valid job records
    scored: pd.DataFrame | None
    known: pd.DataFrame | None = None  # all that the training left in its run: trained on, or held out


def judged_jobs(challenger: Version, champion: Version | None, data: str | None) -> Jobs:
    """Read the jobs of a version's training, and those to judge it by.

    An InputError where ``data`` cannot be read, or too few of its jobs are newer than those of both trainings.
    """
    jobs = _of_training(challenger)
    if data is None:
        return jobs
    of_champion = champion.tags.get("newest_job", "") if champion else ""
    newest = max(jobs.newest, int(of_champion) if of_champion.isdecimal() else 0)
    checked = read_jobs(data)
    found = checked.valid
    newer = found[found["timestamp"] > newest].reset_index(drop=True)
    if len(newer) < FEWEST_JUDGED:
        names = f"version {challenger.number}" + (f" or {champion.number}" if champion else "")
        raise InputError(
            f"{data} holds {len(found):,} jobs, {len(newer)} of them newer than those that {names} was trained on "
            f"(timestamp above {newest}); expected {FEWEST_JUDGED} at least to judge by"
        )
    say(f"{data}: {len(checked.quarantine):,} records quarantined, {len(newer):,} of {len(found):,} jobs new to both")
    return replace(jobs, scored=newer)


def new_to(champion: Version, jobs: pd.DataFrame) -> pd.DataFrame:
    """Those of some jobs that a champion was not trained on, so that it has no advantage from knowing them.

    All of them, if too few would be left, or if nobody knows what it was trained on: then it is the challenger that
    has to be better than chance lets it be.
    """
    # A bundle may hold networks of several trainings.
    runs = {champion.run_id, *(run for name, run in champion.tags.items() if name.startswith("run."))}
    left = jobs[~jobs["ipst"].isin(trained_on(runs))].reset_index(drop=True)
    return left if len(left) >= FEWEST_JUDGED else jobs


def trained_on(runs: Iterable[str]) -> set[str]:
    """Names of the jobs that some runs trained on, as far as their tables can be read."""
    seen: set[str] = set()
    for run_id in runs:
        try:
            table = training_table(run_id)
            seen |= set(table.loc[table["split"] == "train", "ipst"].astype(str).str.strip().str.lower())
        except (CalmlflowError, KeyError):
            continue
    return seen


def newest_of(jobs: pd.DataFrame, champion: Version) -> pd.DataFrame:
    """Those of some jobs that are newer than all of a champion's training; all of them, if too few would be left."""
    of_champion = champion.tags.get("newest_job", "")
    newer = jobs[jobs["timestamp"] > int(of_champion)] if of_champion.isdecimal() else jobs.iloc[:0]
    return newer.reset_index(drop=True) if len(newer) >= FEWEST_JUDGED else jobs


def known_to_both(known: pd.DataFrame, other: Version) -> pd.DataFrame:
    """Those of the jobs of a version's training that another version's training knew too, with the same outcome."""
    theirs = _of_training(other).known
    if theirs is None:
        return known.iloc[:0]
    measured = ["memory", "wallclock"]
    found = theirs.set_index("ipst")[measured].reindex(known["ipst"]).to_numpy()
    same = np.isclose(found, known[measured].to_numpy(dtype=float), rtol=1e-6, atol=0).all(axis=1)
    return known[same].reset_index(drop=True)


def _of_training(version: Version) -> Jobs:
    try:
        table = training_table(version.run_id)
        checked = check_records(table, TABLE)
        if "split" not in table:
            raise InputError(f"{TABLE} of its run has no column split; expected train and test")
    except CalmlflowError as error:
        return Jobs(0, 0, str(error), None)
    problem = None
    if len(checked.quarantine):
        problem = (
            f"{len(checked.quarantine):,} of {len(table):,} records break the schema: {next(iter(checked.reasons()))}"
        )
    names = table["ipst"].astype(str).str.strip().str.lower()
    split_of_name = table.assign(ipst=names).drop_duplicates("ipst").set_index("ipst")["split"]
    split = split_of_name.reindex(checked.valid["ipst"]).to_numpy()
    held_out = checked.valid[split == "test"].reset_index(drop=True)
    # A version that was trained elsewhere was only scored on the jobs that it came with.
    trained_on = checked.valid[split == "train"] if "train" in split else checked.valid
    if held_out.empty:
        return Jobs(len(trained_on), 0, f"{TABLE} of its run holds no test jobs; expected some to score on", None)
    return Jobs(len(trained_on), int(trained_on["timestamp"].max()), problem, held_out, checked.valid)


def training_table(own_run: str) -> pd.DataFrame:
    """The training set that a version's run, or the run above it, left as an artifact."""
    client, reason = MlflowClient(), "no run"
    run_id: str | None = own_run
    parent = None
    while run_id:
        try:
            # The run of one network of three has no table of its own; its parent has.
            parent = client.get_run(run_id).data.tags.get("mlflow.parentRunId")
            with tempfile.TemporaryDirectory(prefix="calmlflow-gate-") as temporary:
                return pd.read_csv(client.download_artifacts(run_id, TABLE, temporary), dtype={"ipst": "str"})
        except Exception as error:
            # Whatever stands between here and the artifact store (MLflow, requests, boto3, pandas) raises its own kind.
            reason = error.error_code if isinstance(error, MlflowException) else type(error).__name__
            run_id = parent if run_id == own_run else None
    raise CalmlflowError(f"{TABLE} of run {own_run or 'unknown'} cannot be read ({reason}); expected its jobs")
