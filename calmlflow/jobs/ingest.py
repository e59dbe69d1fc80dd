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
from calmlflow.hst.features import MAX_CONTROL_FILE_BYTES, job_features, parse_control
from calmlflow.hst.resources import MAX_METRICS_FILE_BYTES, StepFailedError, job_targets
from calmlflow.jobs.quarantine import IMPOSSIBLE
from calmlflow.jobs.stores.base import JOBS, MOSAICS, QUARANTINE, Store
from calmlflow.jobs.upsert import Batch, Counts, upsert
from calmlflow.storage.s3 import (
    Content,
    NoSuchBucketError,
    NoSuchObjectError,
    S3Object,
    asking,
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

# Kinds of quarantine entries.
NO_DATASET = "no dataset"
FILE_MISSING = "file missing"
STEP_FAILED = "step failed"
BAD_CONTROL = "bad control file"
BAD_METRICS = "bad metrics file"
# Steps of a job, each timed in a file of its own.
_STEPS = ("process", "preview")
_ALWAYS = -math.inf
_SHOWN_BYTES = 2_000


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
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.counts.total + self.known + len(self.pending)

    def figures(self) -> dict[str, float]:
        """Counts by name, for metrics and scripts."""
        counted = {"datasets": self.total, **vars(self.counts), "known": self.known, "pending": len(self.pending)}
        return {**counted, "seconds": round(self.seconds, 3)}

    def __add__(self, other: "Ingested") -> "Ingested":
        return Ingested(
            self.counts + other.counts,
            self.known + other.known,
            self.pending | other.pending,
            dict(Counter(self.reasons) + Counter(other.reasons)),
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        counted = {**vars(self.counts), "known": self.known, "pending": len(self.pending)}
        shown = ", ".join(f"{number:,} {name}" for name, number in counted.items() if number) or "nothing"
        kinds = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self.reasons.items()))
        return f"{self.total:,} datasets in {self.seconds:.1f} s: {shown}" + (f" ({kinds})" if kinds else "")


class Found(NamedTuple):
    """A finished job, with columns of JOBS, or of MOSAICS for a mosaic."""

    record: Mapping[str, Any]
    is_mosaic: bool


class Refused(NamedTuple):
    """A dataset without a valid record, with columns of QUARANTINE."""

    ipst: str
    kind: str
    reason: str
    timestamp: int | None = None
    record: str | None = None


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
    if isinstance(datasets, str):
        pages = list_pages(client, S3Object(bucket, "outputs/"), "a bucket of finished jobs", Delimiter="/")
        folders = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ())]
        names = sorted(folder.removeprefix("outputs/").removesuffix("/") for folder in folders)
    else:
        names = list(dict.fromkeys(datasets))
    plan = _plan(store, names, source, retry_quarantine) if datasets == "new" else dict.fromkeys(names, _ALWAYS)
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
    return done + Ingested(seconds=time.perf_counter() - started)


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


def _store(store: Store, outcomes: list[Outcome | None], source: str, begun: float) -> Ingested:
    known = outcomes.count(None)
    found = [outcome for outcome in outcomes if isinstance(outcome, Found)]
    jobs, mosaics = ([one.record for one in found if one.is_mosaic == kind] for kind in (False, True))
    refused = [outcome._asdict() for outcome in outcomes if isinstance(outcome, Refused)]
    pending = {outcome.ipst: outcome.reason for outcome in outcomes if isinstance(outcome, Unread)}
    if not (jobs or mosaics or refused):
        return Ingested(known=known, pending=pending)
    batch = Batch(pd.DataFrame(jobs), pd.DataFrame(mosaics), pd.DataFrame(refused))
    counts = upsert(store, batch, source, begun, alone=True)
    kinds = Counter(entry["kind"] for entry in refused) + Counter({IMPOSSIBLE: counts.quarantined - len(refused)})
    return Ingested(counts, known, pending, dict(kinds))


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
    for key in (*(_metrics_key(name, step) for step in _STEPS), Dataset(name, "ipppssoot").control_key):
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
        for step in _STEPS:
            target = S3Object(bucket, _metrics_key(name, step))
            metrics[step] = read_content(client, target, MAX_METRICS_FILE_BYTES, "the output of time --verbose")
        targets = job_targets(name, *(metrics[step].data for step in _STEPS))
        timestamp = int(max(content.modified for content in metrics.values()))
        used = {"ipst": name, "timestamp": timestamp, "wallclock": targets.wallclock, "memory": targets.memory}
        if job.is_hap:
            pages = list_pages(client, S3Object(bucket, f"outputs/{name}/"), "the outputs of a job")
            size = sum(item["Size"] for page in pages for item in page.get("Contents", ()))
            return Found({**used, "disk": size / 1e9}, True)
        kind, target = BAD_CONTROL, S3Object(bucket, job.control_key)
        control = read_object(client, target, MAX_CONTROL_FILE_BYTES, "a control file")
        features = job_features(name, parse_control(control))
        return Found({**used, **features._asdict(), "mem_bin": targets.mem_bin}, False)
    except NoSuchBucketError:
        raise
    except InputError as error:
        if isinstance(error, NoSuchObjectError):
            kind = FILE_MISSING
        elif isinstance(error, StepFailedError):
            kind = STEP_FAILED
        newest = max((int(content.modified) for content in metrics.values()), default=None)
        # The beginnings of the files that were read.
        files = {f"{step}_metrics.txt": content.data for step, content in metrics.items()}
        files |= {"control": control} if control is not None else {}
        shown = {name: data[:_SHOWN_BYTES].decode(errors="replace") for name, data in files.items()}
        return Refused(name, kind, str(error), newest, json.dumps(shown))


def _metrics_key(name: str, step: str) -> str:
    return f"outputs/{name}/{step}_metrics.txt"
