"""Read finished jobs from S3 into a store: each dataset is stored, quarantined with a reason, or pending."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pandas as pd

from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, control_features
from calmlflow.hst.resources import MAX_METRICS_FILE_BYTES, StepFailedError, job_targets
from calmlflow.jobs.events import FailedJob
from calmlflow.jobs.killed import (
    FILE_MISSING,
    SHOWN_BYTES,
    STEP_FAILED,
    STEPS,
    find_killed,
    killed_jobs,
    told_by_files,
)
from calmlflow.jobs.quarantine import IMPOSSIBLE
from calmlflow.jobs.stores.base import JOBS, MOSAICS, PREDICTIONS, QUARANTINE, Store
from calmlflow.jobs.upsert import Batch, Counts, upsert
from calmlflow.settings import SHADOW
from calmlflow.storage.s3 import (
    Content,
    NoSuchBucketError,
    NoSuchObjectError,
    S3Object,
    asking,
    list_objects,
    list_pages,
    new_client,
    read_content,
    read_object,
)

WORKERS = 32
"""Datasets that are read at once: at 20 ms a request S3 is the limit, at 1 ms the processor."""

BATCH = 500
"""Jobs that are stored in one change; as many are read again after a kill."""

CLOCKS_APART_S = 300.0
"""Largest difference between S3's clock and this one; in doubt a dataset is read again."""

# Kinds of quarantine entries, beside those of killed jobs.
NO_DATASET = "no dataset"
BAD_CONTROL = "bad control file"
BAD_METRICS = "bad metrics file"
_ALWAYS = -math.inf


@dataclass(frozen=True)
class Ingested:
    """Outcome of an ingest; each dataset is counted once."""

    # Datasets that were read.
    counts: Counts = field(default_factory=Counts)
    # Datasets that are stored or quarantined already and were not read again.
    known: int = 0
    # Dataset -> why S3 did not let it be read. The same command tries again.
    pending: dict[str, str] = field(default_factory=dict)
    # Kind of quarantine entry -> datasets of this run.
    reasons: dict[str, int] = field(default_factory=dict)
    # Kind of kill -> kills that were found, known ones among them.
    killed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.counts.total + self.known + len(self.pending)

    def figures(self) -> dict[str, float]:
        """Counts by name, for metrics and scripts."""
        counted = {"datasets": self.total, **self.counts.outcomes(), "known": self.known, "pending": len(self.pending)}
        return {**counted, "killed": sum(self.killed.values()), "seconds": round(self.seconds, 3)}

    def __add__(self, other: "Ingested") -> "Ingested":
        return Ingested(
            self.counts + other.counts,
            self.known + other.known,
            self.pending | other.pending,
            dict(Counter(self.reasons) + Counter(other.reasons)),
            dict(Counter(self.killed) + Counter(other.killed)),
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        counted = {**self.counts.outcomes(), "known": self.known, "pending": len(self.pending)}
        shown = ", ".join(f"{number:,} {name}" for name, number in counted.items() if number) or "nothing"
        kinds = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self.reasons.items()))
        kills = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self.killed.items()))
        told = (f" ({kinds})" if kinds else "") + (f"; killed: {kills}" if kills else "")
        return f"{self.total:,} datasets in {self.seconds:.1f} s: {shown}{told}"


class Found(NamedTuple):
    """A finished job, with columns of JOBS, or of MOSAICS for a mosaic."""

    record: Mapping[str, Any]
    is_mosaic: bool
    # What its metrics files tell of earlier runs that failed.
    kills: tuple[Mapping[str, Any], ...] = ()


class Refused(NamedTuple):
    """A dataset without a valid record, with columns of QUARANTINE."""

    ipst: str
    kind: str
    reason: str
    timestamp: int | None = None
    record: str | None = None
    # What is told of kills, see `calmlflow.jobs.killed.find_killed`.
    kills: tuple[Mapping[str, Any], ...] = ()


class Unread(NamedTuple):
    """A dataset that S3 did not let be read: it is pending."""

    ipst: str
    reason: str


Outcome = Found | Refused | Unread


def ingest(
    store: Store,
    bucket: str,
    datasets: Iterable[str] | Literal["new", "all"] = "new",
    *,
    retry_quarantine: bool = False,
    client: Any = None,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Ingested:
    """Read finished jobs from a bucket into a store.

    Safe to repeat and to run beside others: the newer record of a dataset wins. An interrupted run is completed by the
    next one, which reads at most `BATCH` jobs again.

    Parameters
    ----------
    store : Store
    bucket : str
    datasets : iterable of str, or "new" or "all"
        "new": every dataset under ``outputs/`` that is neither stored nor quarantined with the same files; "all": every
        dataset.
    retry_quarantine : bool
        Also read quarantined datasets whose files have not changed.
    client : optional
        Of S3.
    on_progress : callable
        Called with the number of datasets done, and of all.

    Raises
    ------
    CalmlflowError
        There is no such bucket, it cannot be listed, or the store cannot be written. Single datasets that cannot be
        read are pending.
    """
    started = time.perf_counter()
    client = client or new_client(connections=WORKERS)
    source = f"s3://{bucket}"
    names = sorted(_folders(client, bucket, "outputs/")) if isinstance(datasets, str) else list(dict.fromkeys(datasets))
    plan = _plan(store, names, source, retry_quarantine) if datasets == "new" else dict.fromkeys(names, _ALWAYS)
    if isinstance(datasets, str):
        vanished = _vanished(store, client, bucket, names)
        names += vanished
        plan |= dict.fromkeys(vanished, _ALWAYS)
    done = Ingested(known=len(names) - len(plan))
    jobs = list(plan.items())
    with ThreadPoolExecutor(WORKERS, "calmlflow-ingest") as pool:
        for start in range(0, len(jobs), BATCH):
            # Files that change after they were read must be newer than what is stored of them.
            begun = time.time()
            outcomes: list[Outcome | None] = []
            for outcome in pool.map(lambda job: _read_one(client, bucket, *job), jobs[start : start + BATCH]):
                outcomes.append(outcome)
                on_progress(done.total + len(outcomes), len(names))
            done += _store(store, outcomes, source, begun)
    if isinstance(datasets, str):
        # Of jobs that left no metrics files and were quarantined before twice their kill time had passed.
        upsert(store, Batch(killed=killed_jobs(store)), source)
    return done + Ingested(seconds=time.perf_counter() - started)


def ingest_failure(store: Store, failed: FailedJob, client: Any = None) -> Ingested:
    """Keep the kills that Batch tells of; without features, which control file or prediction have, quarantine the job.

    Safe to repeat. Raises a CalmlflowError where S3 or the store does not answer.
    """
    source, features = f"s3://{failed.bucket}" if failed.bucket else "batch", {}
    job = parse_dataset(failed.name)
    with suppress(InputError):
        if failed.bucket and not job.is_hap:
            control = _read_control(client or new_client(), failed.bucket, job)
            features = control_features(failed.name, control)._asdict()
    killed = find_killed(store, [{**kill, **features} for kill in failed.kills])
    refused = pd.DataFrame()
    if killed.empty:
        last = failed.kills[-1]
        reason = f"{failed.name}: {last['reason']}; expected a job that ends, with a control file or a prediction"
        refused = pd.DataFrame([Refused(failed.name, STEP_FAILED, reason, last["timestamp"])._asdict()])
    counts = upsert(store, Batch(killed=killed, refused=refused), source)
    kinds = {STEP_FAILED: len(refused), IMPOSSIBLE: counts.quarantined - len(refused)}
    return Ingested(counts, reasons={kind: n for kind, n in kinds.items() if n}, killed=dict(Counter(killed["kind"])))


def _plan(store: Store, names: Iterable[str], source: str, retry_quarantine: bool) -> dict[str, float]:
    """Dataset to read -> read it only if its files changed after this moment."""
    known = {name for table in (JOBS, MOSAICS) for part in store.read(table, ["ipst"]) for name in part["ipst"]}
    refused: dict[str, float] = {}
    dismissed: dict[str, float] = {}
    for part in store.read(QUARANTINE, ["ipst", "digest", "source", "last_seen", "resolved_at"]):
        # Entries of other buckets do not count.
        here = part[part["digest"].fillna("").eq("") & part["source"].eq(source)]
        is_open = here["resolved_at"].isna()
        for seen, entries in ((refused, here[is_open]), (dismissed, here[~is_open])):
            seen.update(zip(entries["ipst"], entries["last_seen"].astype(float) - CLOCKS_APART_S, strict=True))
    # A failed rerun is quarantined beside the record of the run before. A dismissed entry stays dismissed until its
    # files change.
    wanted = [name for name in names if name in refused or name not in known]
    if retry_quarantine:
        return {name: _ALWAYS for name in wanted if name in refused or name not in dismissed}
    return {name: refused.get(name, dismissed.get(name, _ALWAYS)) for name in wanted}


def _folders(client: Any, bucket: str, prefix: str) -> list[str]:
    """Datasets that have a folder below a prefix."""
    pages = list_pages(client, S3Object(bucket, prefix), "a bucket of finished jobs", Delimiter="/")
    folders = (folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ()))
    return [folder.removeprefix(prefix).removesuffix("/") for folder in folders]


def _vanished(store: Store, client: Any, bucket: str, there: list[str]) -> list[str]:
    """Jobs of this bucket that were sized, and of which nothing is heard after twice their kill time."""
    parts = list(store.read(PREDICTIONS, ["ipst", "timestamp", "kill_time", "source"]))
    if not parts:
        return []
    # A job that was sized anew may still run.
    sized = pd.concat(parts).sort_values("timestamp")
    sized = sized[sized["source"].ne(SHADOW)].drop_duplicates("ipst", keep="last")
    is_late = sized["timestamp"] + 2 * sized["kill_time"].astype(float) < time.time()
    late = sized[is_late & ~sized["ipst"].isin(there)].set_index("ipst")["timestamp"]
    if late.empty:
        return []
    for table in (JOBS, MOSAICS, QUARANTINE):
        for part in store.read(table, ["ipst", "timestamp"]):
            heard = part["ipst"].map(late) <= (math.inf if table is QUARANTINE else part["timestamp"].astype(float))
            late = late[~late.index.isin(part["ipst"][heard])]
    # A prediction may be for a plan that was never carried out: a job has a control file.
    return sorted({*late.index} & {*_folders(client, bucket, "control/")}) if len(late) else []


def _store(store: Store, outcomes: list[Outcome | None], source: str, begun: float) -> Ingested:
    known = outcomes.count(None)
    found = [outcome for outcome in outcomes if isinstance(outcome, Found)]
    jobs, mosaics = ([one.record for one in found if one.is_mosaic == kind] for kind in (False, True))
    refused = [outcome._asdict() for outcome in outcomes if isinstance(outcome, Refused)]
    pending = {outcome.ipst: outcome.reason for outcome in outcomes if isinstance(outcome, Unread)}
    if not (jobs or mosaics or refused):
        return Ingested(known=known, pending=pending)
    told = [kill for outcome in outcomes if isinstance(outcome, Found | Refused) for kill in outcome.kills]
    killed = find_killed(store, told)
    batch = Batch(pd.DataFrame(jobs), pd.DataFrame(mosaics), killed, pd.DataFrame(refused))
    counts = upsert(store, batch, source, begun, alone=True)
    kinds = Counter(entry["kind"] for entry in refused) + Counter({IMPOSSIBLE: counts.quarantined - len(refused)})
    return Ingested(counts, known, pending, dict(kinds), dict(Counter(killed["kind"])))


# -- Reading --------------------------------------------------------------------------------------------------------


def _read_one(client: Any, bucket: str, name: str, since: float) -> Outcome | None:
    """Read a dataset; None where its files have not changed since a moment."""
    try:
        if since > _ALWAYS and not _changed_since(client, bucket, name, since):
            return None
        return read_finished(client, bucket, name)
    except NoSuchBucketError:
        raise
    except CalmlflowError as error:
        return Unread(name, str(error))


def _changed_since(client: Any, bucket: str, name: str, moment: float) -> bool:
    """Whether one of the three files of a dataset was written after a moment (epoch seconds)."""
    for key in (*(_metrics_key(name, step) for step in STEPS), Dataset(name, "ipppssoot").control_key):
        with suppress(NoSuchObjectError), asking(S3Object(bucket, key), "read", "a file of a finished job"):
            if client.head_object(Bucket=bucket, Key=key)["LastModified"].timestamp() > moment:
                return True
    return False


def read_finished(client: Any, bucket: str, name: str) -> Found | Refused:
    """Read the files of a finished job; its ``timestamp`` is the time of the newer one of the metrics files."""
    try:
        job = parse_dataset(name)
        if job.name != name:
            raise InputError(f"folder outputs/{name[:60]} is no dataset's; expected its name in lower case, {job.name}")
    except InputError as error:
        return Refused(name, NO_DATASET, str(error))
    kind, control = BAD_METRICS, None
    metrics: dict[str, Content] = {}
    try:
        for step in STEPS:
            target = S3Object(bucket, _metrics_key(name, step))
            metrics[step] = read_content(client, target, MAX_METRICS_FILE_BYTES, "the output of time --verbose")
        targets = job_targets(name, *(metrics[step].data for step in STEPS))
        used = {"ipst": name, "timestamp": _newest(metrics), "wallclock": targets.wallclock, "memory": targets.memory}
        if job.is_hap:
            outputs = list_objects(client, S3Object(bucket, f"outputs/{name}/"), "the outputs of a job")
            size = sum(item["Size"] for item in outputs)
            return Found({**used, "disk": size / 1e9}, True)
        kind = BAD_CONTROL
        control = _read_control(client, bucket, job)
        features = control_features(name, control)
        record = {**used, **features._asdict(), "mem_bin": targets.mem_bin}
        return Found(record, False, _told(name, metrics, control))
    except NoSuchBucketError:
        raise
    except InputError as error:
        kills: tuple[Mapping[str, Any], ...] = ()
        is_step = kind == BAD_METRICS
        if isinstance(error, NoSuchObjectError):
            kind = FILE_MISSING
        elif isinstance(error, StepFailedError):
            kind = STEP_FAILED
        if is_step and kind != BAD_METRICS and not job.is_hap:
            with suppress(InputError):
                control = _read_control(client, bucket, job)
            kills = _told(name, metrics, control)
        # The beginnings of the files that were read.
        files = {f"{step}_metrics.txt": content.data for step, content in metrics.items()}
        files |= {"control": control} if control is not None else {}
        shown = {name: data[:SHOWN_BYTES].decode(errors="replace") for name, data in files.items()}
        return Refused(name, kind, str(error), _newest(metrics), json.dumps(shown), kills)


def _told(name: str, metrics: Mapping[str, Content], control: bytes | None) -> tuple[Mapping[str, Any], ...]:
    texts = {step: content.data for step, content in metrics.items()}
    return tuple(told_by_files(name, texts, _newest(metrics), control))


def _newest(metrics: Mapping[str, Content]) -> int | None:
    """Time of the newest file."""
    return max((int(content.modified) for content in metrics.values()), default=None)


def _read_control(client: Any, bucket: str, job: Dataset) -> bytes:
    return read_object(client, S3Object(bucket, job.control_key), MAX_CONTROL_FILE_BYTES, "a control file")


def _metrics_key(name: str, step: str) -> str:
    return f"outputs/{name}/{step}_metrics.txt"
