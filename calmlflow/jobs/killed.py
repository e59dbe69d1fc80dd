"""Find out what killed a job, keep killed jobs in a store, and read them."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from typing import Any

import pandas as pd

from calmlflow.errors import InputError
from calmlflow.hst.features import FEATURES, control_features
from calmlflow.hst.ladder import LADDER
from calmlflow.hst.resources import Usage, parse_runs
from calmlflow.jobs.records import sort_killed
from calmlflow.jobs.stores.base import JOBS, KILLED, PREDICTIONS, QUARANTINE, Source, Store, conform
from calmlflow.jobs.stores.open import open_source
from calmlflow.settings import SHADOW

STEPS = ("process", "preview")
"""Steps of a job, each timed in a file of its own."""

# Kinds of quarantine entries that may be killed jobs.
STEP_FAILED = "step failed"
FILE_MISSING = "file missing"

NO_METRICS = "no metrics files after twice the kill time"
"""Reason of a job whose kill nobody saw: it was sized, and it left nothing."""

BATCH = "Batch: "
"""Beginning of reasons that Batch gave."""

SHOWN_BYTES = 2_000
"""A quarantine entry shows so much of the beginning of a file."""

SAME_RUN_S = 600
"""Kills of one dataset that are no further apart are one kill, seen twice: by Batch and in the metrics files."""

# A job whose steps took this share of its kill time was killed by it: the rest goes for staging files.
_NEARLY = 0.9
# A prediction is given before its job is submitted; clocks differ.
_CLOCKS_APART_S = 300
# Statuses 31 to 34 are those of caldp for a lack of memory.
_MEMORY_STATUSES = (31, 32, 33, 34)
_KILLED, _TERMINATED = 137, 143
_STATUS = re.compile(r"says exit status ([0-9]{1,5});")
_METRICS_MISSING = re.compile(r"/outputs/[^/]+/[a-z]+_metrics\.txt cannot be read")


def read_killed(uri: str) -> pd.DataFrame:
    """Read the killed jobs of a store, also those that only its quarantine tells of.

    Parameters
    ----------
    uri : str
        See `calmlflow.jobs.stores.open.open_source`. Beside a file ``jobs.csv``, ``jobs.killed_jobs.csv`` holds them.

    Returns
    -------
    DataFrame of n kills
        The columns of `KILLED`; a dataset that was killed twice has two rows. Empty where the source tells of none.
    """
    with closing(open_source(uri)) as source:
        return killed_jobs(source)


def killed_jobs(source: Source, now: float | None = None) -> pd.DataFrame:
    """The killed jobs of an open source, see `read_killed`."""
    stored = pd.concat([conform(pd.DataFrame(), KILLED), *source.read(KILLED)], ignore_index=True)
    stored = conform(sort_killed(stored).valid, KILLED)
    told: list[dict[str, Any]] = []
    for part in source.read(QUARANTINE, ["ipst", "timestamp", "kind", "reason", "record"]):
        for entry in part[part["kind"].isin((STEP_FAILED, FILE_MISSING))].to_dict("records"):
            told += _told_by(entry)
    found = find_killed(source, told, now)
    found = found[_same_kill(found, stored).isna()]
    killed = pd.concat([stored, found], ignore_index=True)
    return killed[~_is_refuted(killed, source)].reset_index(drop=True)


def find_killed(source: Source, told: Iterable[Mapping[str, Any]], now: float | None = None) -> pd.DataFrame:
    """Judge what is told of kills, with the predictions that a source holds.

    Parameters
    ----------
    source : Source
    told : iterable of mapping
        Columns of `KILLED`, of which all but ``ipst`` may be missing, and ``exit_status``, which stands for a missing
        ``kind``. Where both are missing the job left no metrics files: it counts as killed by time, once twice its kill
        time has passed since its prediction. Missing features are those of the prediction.
    now : float, optional
        Epoch seconds.

    Returns
    -------
    DataFrame of n kills
        The columns of `KILLED`, unchecked. What cannot be told, or has no features, is left out.
    """
    moment = time.time() if now is None else now
    told = list(told)
    answers: dict[Any, list[dict[Any, Any]]] = {}
    if told:
        predictions = source.get(PREDICTIONS, {one["ipst"] for one in told}).sort_values("timestamp")
        predictions = predictions[predictions["source"].ne(SHADOW)]
        plain = predictions.astype(object).where(predictions.notna(), None)
        answers = {name: part.to_dict("records") for name, part in plain.groupby("ipst")}
    rows = [_judge(one, answers.get(one["ipst"], []), moment) for one in told]
    return conform(pd.DataFrame([row for row in rows if row]), KILLED).drop_duplicates(list(KILLED.key))


def keep_killed(store: Store, rows: pd.DataFrame, now: int) -> None:
    """Add valid kills to a store, in a change of its own or in the current one; a kill seen twice stays one row.

    Of two rows of one kill the larger bounds are kept, and the kind and the words of the one that knows more.
    """
    if rows.empty:
        return
    there = store.get(KILLED, rows["ipst"].tolist())
    at = _same_kill(rows, there)
    is_known = at.notna()
    new, old = rows[is_known].reset_index(drop=True), there.loc[at[is_known].astype(int)].reset_index(drop=True)
    knows_more = pd.Series(_knowledge(new) > _knowledge(old))
    merged = old.assign(
        **{name: new[name].where(knows_more, old[name]) for name in ("kind", "reason")},
        **{name: pd.concat([old[name], new[name]], axis=1).max(axis=1) for name in ("wallclock", "memory")},
    )
    names = ["kind", "reason", "wallclock", "memory"]
    is_more = ~(merged[names].eq(old[names]).fillna(False) | (merged[names].isna() & old[names].isna())).all(axis=1)
    rows = pd.concat([rows[~is_known].assign(stored_at=now), merged[is_more]], ignore_index=True)
    store.put(KILLED, conform(rows.drop_duplicates(list(KILLED.key), keep="last"), KILLED))


def told_by_files(
    name: str, metrics: Mapping[str, str | bytes], timestamp: int | None, control: str | bytes | None
) -> list[dict[str, Any]]:
    """What the files of a job tell of its runs that failed, see `find_killed`.

    ``metrics`` has the files that are there, by step, of which the last one was written at ``timestamp``. A file that
    does not parse tells nothing.
    """
    told: list[dict[str, Any]] = []
    before: Usage | None = None
    for step in [step for step in STEPS if step in metrics]:
        try:
            runs = parse_runs(metrics[step])
        except InputError:
            break
        after_s = 0
        for usage in reversed(runs):
            if usage.exit_status != 0:
                earlier = before if before and not after_s else Usage(0, 0, 0)
                told.append(
                    {
                        "timestamp": None if timestamp is None else timestamp - after_s,
                        "exit_status": usage.exit_status,
                        "wallclock": float(earlier.elapsed_s + usage.elapsed_s),
                        "memory": (earlier.resident_kb + usage.resident_kb) / 1e6,
                        "reason": f"{step}_metrics.txt says exit status {usage.exit_status}",
                    }
                )
            after_s += usage.elapsed_s
        before = runs[-1]
        # The step after a failed one has nothing to work on.
        if before.exit_status != 0:
            break
    else:
        # Every file that is there ends with success.
        told += [{}] if len(metrics) < len(STEPS) else []
    features = {}
    with suppress(InputError):
        features = control_features(name, control)._asdict() if control is not None else {}
    return [{"ipst": name, **one, **features} for one in told]


# -- Judgement ------------------------------------------------------------------------------------------------------


def kind_of(exit_status: int, wallclock_s: float | None, kill_time_s: float | None) -> str:
    """What ended a job with an exit status, given the time it ran and the kill time it had, where known."""
    share = wallclock_s / kill_time_s if wallclock_s and kill_time_s else None
    if exit_status == _KILLED:
        return "time" if share is not None and share >= _NEARLY else "memory"
    if exit_status == _TERMINATED:
        return "machine" if share is not None and share < _NEARLY else "time"
    return "memory" if exit_status in _MEMORY_STATUSES else "failed"


def _judge(told: Mapping[str, Any], answers: list[dict[Any, Any]], now: float) -> dict[str, Any] | None:
    row: dict[str, Any] = {name: told.get(name) for name in KILLED.columns}
    kind, status = row["kind"], told.get("exit_status")
    is_seen = kind is not None or status is not None
    if is_seen and row["timestamp"] is None:
        return None
    latest = row["timestamp"] + _CLOCKS_APART_S if is_seen else now
    answer: dict[Any, Any] = next((one for one in reversed(answers) if one["timestamp"] <= latest), {})
    kill_time = answer.get("kill_time")
    if not is_seen:
        if kill_time is None or now < answer["timestamp"] + 2 * kill_time:
            return None
        row |= {"timestamp": int(answer["timestamp"] + kill_time), "kind": "time", "reason": NO_METRICS}
    elif kind is None:
        row["kind"] = kind_of(told["exit_status"], row["wallclock"], kill_time)
    # A job that was killed for a limit needs at least the limit.
    if row["kind"] == "time" and kill_time is not None:
        row["wallclock"] = max(row["wallclock"] or 0.0, float(kill_time))
    rung = answer.get("bin_pred")
    if row["kind"] == "memory" and rung is not None and 0 <= rung < len(LADDER):
        row["memory"] = max(row["memory"] or 0.0, LADDER.rungs[int(rung)].limit_gb)
    if any(row[name] is None for name in FEATURES):
        row |= {name: answer.get(name) for name in FEATURES}
    return None if any(row[name] is None for name in FEATURES) else row


def _told_by(entry: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """What a quarantine entry tells of kills."""
    name, reason = str(entry["ipst"]), str(entry["reason"])
    status, files = _STATUS.search(reason), _files_of(entry["record"])
    if not status and not _METRICS_MISSING.search(reason):
        return []
    timestamp = None if pd.isna(entry["timestamp"]) else int(entry["timestamp"])
    metrics = {step: files[f"{step}_metrics.txt"] for step in STEPS if f"{step}_metrics.txt" in files}
    told = told_by_files(name, metrics, timestamp, files.get("control"))
    if not status or any("exit_status" in one for one in told):
        return told
    # The files are not shown, or not as a whole.
    reason = reason.removeprefix(f"{name}: ").partition(";")[0]
    seen = {"ipst": name, "timestamp": timestamp, "exit_status": int(status[1]), "reason": reason}
    return [{**(told[0] if told else {}), **seen}]


def _files_of(record: object) -> dict[str, str]:
    """The whole files that an entry shows."""
    try:
        files = json.loads(str(record))
    except (ValueError, RecursionError):
        return {}
    found = files.items() if isinstance(files, dict) else ()
    texts = {str(name): text for name, text in found if isinstance(text, str)}
    # Longer ones are cut off.
    return {name: text for name, text in texts.items() if len(text.encode(errors="replace")) < SHOWN_BYTES}


def _same_kill(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Index of the nearest kill of the same dataset, at most `SAME_RUN_S` away; NaN where there is none."""
    these, those = (
        kills[["ipst", "timestamp"]].astype({"timestamp": "int64"}).sort_values("timestamp") for kills in (rows, others)
    )
    nearest = pd.merge_asof(
        these, those.assign(at=those.index), on="timestamp", by="ipst", direction="nearest", tolerance=SAME_RUN_S
    )
    return pd.Series(nearest["at"].to_numpy(dtype=float), index=these.index).reindex(rows.index)


def _knowledge(rows: pd.DataFrame) -> pd.Series:
    """How much is known of what killed each job: a kind other than ``failed``, then the word of Batch."""
    return 2 * rows["kind"].ne("failed").astype(int) + rows["reason"].fillna("").str.startswith(BATCH).astype(int)


def _is_refuted(killed: pd.DataFrame, source: Source) -> pd.Series:
    """Kills that nobody saw, of jobs that finished within their kill time, or whose kill was seen, after all."""
    unseen = killed["reason"].eq(NO_METRICS).fillna(False).astype(bool)
    if not unseen.any():
        return unseen
    rows = killed.loc[unseen, ["ipst", "timestamp", "wallclock"]].reset_index()
    jobs = source.get(JOBS, rows["ipst"].tolist())[["ipst", "timestamp", "wallclock"]]
    seen = killed.loc[~unseen, ["ipst", "timestamp"]].assign(wallclock=0.0)
    later = rows.merge(pd.concat([jobs, seen]), on="ipst", suffixes=("", "_later"))
    predicted_at = later["timestamp"] - later["wallclock"]
    refutes = (later["timestamp_later"] >= predicted_at) & (later["wallclock_later"] < later["wallclock"])
    return unseen & killed.index.isin(later.loc[refutes.fillna(False).astype(bool), "index"])
