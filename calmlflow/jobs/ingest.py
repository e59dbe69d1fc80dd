"""Read finished jobs from S3 into a store: each dataset is stored, quarantined with a reason, or pending."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
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
    TryAgainError,
    asking,
    new_client,
    read_content,
)

WORKERS = 32
"""Datasets that are read at once: at 20 ms a request S3 is the limit, at 1 ms the processor."""

BATCH = 500
"""Jobs that are stored in one change; as many are read again after a kill."""

CLOCKS_APART_S = 300.0
"""Largest difference between S3's clock and this one; in doubt a dataset is read again."""

TRIES = 3
"""Times that an object is read while S3 is busy or content breaks off, beyond boto3's own tries."""

STEPS = ("process", "preview")
"""Steps of a job, each timed in a file of its own."""

NO_DATASET, FILE_MISSING, STEP_FAILED, BAD_CONTROL, BAD_METRICS = (
    "no dataset",
    "file missing",
    "step failed",
    "bad control file",
    "bad metrics file",
)
"""Kinds of quarantine entries."""

OnProgress = Callable[[int, int | None], None]

_ALWAYS = -math.inf
_SHOWN_BYTES = 2_000


@dataclass(frozen=True)
class Ingested:
    """Outcome of an ingest.

    Attributes
    ----------
    counts : Counts
        Datasets that were read.
    known : int
        Datasets that are stored or quarantined already and were not read again.
    pending : dict of str to str
        Dataset -> why S3 did not let it be read. The same command tries again.
    reasons : dict of str to int
        Kind of quarantine entry -> number of datasets in this run.
    seconds : float
    """

    counts: Counts = field(default_factory=Counts)
    known: int = 0
    pending: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Number of datasets; each is counted once."""
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
        rest = (
            f"{number:,} {name}" for name, number in (("known", self.known), ("pending", len(self.pending))) if number
        )
        shown = ", ".join(filter(None, (str(self.counts), *rest))) or "nothing"
        kinds = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self.reasons.items()))
        return f"{self.total:,} datasets in {self.seconds:.1f} s: {shown}" + (f" ({kinds})" if kinds else "")


class Found(NamedTuple):
    """A finished job, with the columns of JOBS, or of MOSAICS for a mosaic."""

    record: Mapping[str, Any]
    is_mosaic: bool


class Refused(NamedTuple):
    """A dataset without a valid record; see `calmlflow.jobs.stores.base.QUARANTINE`."""

    ipst: str
    kind: str
    reason: str
    timestamp: int | None = None
    record: str | None = None


class Unread(NamedTuple):
    """A dataset that S3 did not let be read; it counts as pending."""

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
    on_progress: OnProgress = lambda done, total: None,
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
        Also read quarantined datasets whose files have not changed (after a fix of this program).
    client : optional
        Of S3; default: one with boto3's own settings.
    on_progress : callable
        Called with the number of datasets done, and of all where known.

    Raises
    ------
    NoSuchBucketError
        There is no such bucket.
    CalmlflowError
        The bucket cannot be listed, or the store cannot be written. Single datasets that cannot be read are pending.
    """
    started = time.perf_counter()
    client = client or new_client(connections=WORKERS)
    source = f"s3://{bucket}"
    names = sorted(_listed(client, bucket)) if isinstance(datasets, str) else list(dict.fromkeys(datasets))
    plan = _plan(store, names, source, retry_quarantine) if datasets == "new" else dict.fromkeys(names, _ALWAYS)
    done = Ingested(known=len(names) - len(plan))
    batch: list[Outcome] = []
    begun = time.time()
    for since, outcome in _read_all(client, bucket, plan):
        if outcome is None:
            done += Ingested(known=1)
        else:
            batch.append(outcome)
            # Files that change after they were read must be newer than what is stored of them.
            begun = min(begun, since)
        if len(batch) >= BATCH:
            done += _store(store, batch, source, begun)
            batch, begun = [], time.time()
        on_progress(done.total + len(batch), len(names))
    return done + _store(store, batch, source, begun) + Ingested(seconds=time.perf_counter() - started)


def _listed(client: Any, bucket: str) -> Iterator[str]:
    """Names of the folders under ``outputs/``."""
    with asking(S3Object(bucket, "outputs/"), "listed", "a bucket of finished jobs"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="outputs/", Delimiter="/")
        for page in pages:
            for folder in page.get("CommonPrefixes", []):
                yield folder["Prefix"].removeprefix("outputs/").removesuffix("/")


def _plan(store: Store, names: Iterable[str], source: str, retry_quarantine: bool) -> dict[str, float]:
    """Dataset to read -> read it only if its files changed after this moment.

    Quarantine entries of other buckets do not count.
    """
    known = {name for table in (JOBS, MOSAICS) for part in store.read(table, ["ipst"]) for name in part["ipst"]}
    refused: dict[str, float] = {}
    dismissed: dict[str, float] = {}
    for part in store.read(QUARANTINE, ["ipst", "digest", "source", "last_seen", "resolved_at"]):
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


def _store(store: Store, outcomes: list[Outcome], source: str, begun: float) -> Ingested:
    jobs = [outcome.record for outcome in outcomes if isinstance(outcome, Found) and not outcome.is_mosaic]
    mosaics = [outcome.record for outcome in outcomes if isinstance(outcome, Found) and outcome.is_mosaic]
    refused = [outcome._asdict() for outcome in outcomes if isinstance(outcome, Refused)]
    pending = {outcome.ipst: outcome.reason for outcome in outcomes if isinstance(outcome, Unread)}
    if not (jobs or mosaics or refused):
        return Ingested(pending=pending)
    batch = Batch(pd.DataFrame(jobs), pd.DataFrame(mosaics), pd.DataFrame(refused))
    counts = upsert(store, batch, source, begun, alone=True)
    kinds = Counter(entry["kind"] for entry in refused) + Counter({IMPOSSIBLE: counts.quarantined - len(refused)})
    return Ingested(counts, pending=pending, reasons=dict(kinds))


# -- Reading --------------------------------------------------------------------------------------------------------


def _read_all(client: Any, bucket: str, plan: Mapping[str, float]) -> Iterator[tuple[float, Outcome | None]]:
    """Read datasets, several at once: yields when reading began, and None for a dataset that has not changed."""
    with ThreadPoolExecutor(WORKERS, "calmlflow-ingest") as pool:
        left = iter(plan.items())
        # Bounded, because outcomes wait in memory.
        running = {pool.submit(_read_one, client, bucket, *job) for job in islice(left, 4 * WORKERS)}
        try:
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(_read_one, client, bucket, *job) for job in islice(left, len(ended))}
                for future in ended:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _read_one(client: Any, bucket: str, name: str, since: float) -> tuple[float, Outcome | None]:
    begun = time.time()
    try:
        if since > _ALWAYS and not _changed_since(client, bucket, name, since):
            return begun, None
        return begun, read_finished(client, bucket, name)
    except NoSuchBucketError:
        raise
    except CalmlflowError as error:
        return begun, Unread(name, str(error))


def _changed_since(client: Any, bucket: str, name: str, moment: float) -> bool:
    """Whether one of the three files of a dataset was written after a moment (epoch seconds)."""
    for key in (*(_metrics_key(name, step) for step in STEPS), Dataset(name, "ipppssoot").control_key):
        with suppress(NoSuchObjectError), asking(S3Object(bucket, key), "read", "a file of a finished job"):
            if client.head_object(Bucket=bucket, Key=key)["LastModified"].timestamp() > moment:
                return True
    return False


def read_finished(client: Any, bucket: str, name: str) -> Found | Refused:
    """Read the files of a finished job.

    Parameters
    ----------
    client
        Of S3; see `calmlflow.storage.s3.new_client`.
    bucket : str
    name : str
        Dataset, as its folder under ``outputs/`` is named.

    Returns
    -------
    Found or Refused
        ``timestamp`` is the time at which the newer one of the metrics files was written, in epoch seconds.

    Raises
    ------
    NoSuchBucketError
        There is no such bucket.
    CalmlflowError
        S3 cannot be read.
    """
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
            metrics[step] = _read(client, target, MAX_METRICS_FILE_BYTES, "the output of time --verbose")
        targets = job_targets(name, *(metrics[step].data for step in STEPS))
        timestamp = int(max(content.modified for content in metrics.values()))
        used = {"ipst": name, "timestamp": timestamp, "wallclock": targets.wallclock, "memory": targets.memory}
        if job.is_hap:
            return Found({**used, "disk": _disk_gb(client, bucket, job)}, True)
        kind = BAD_CONTROL
        control = _read(client, S3Object(bucket, job.control_key), MAX_CONTROL_FILE_BYTES, "a control file").data
        features = job_features(name, parse_control(control))
        return Found({**used, **features._asdict(), "mem_bin": targets.mem_bin}, False)
    except NoSuchBucketError:
        raise
    except InputError as error:
        if isinstance(error, NoSuchObjectError):
            kind = FILE_MISSING
        elif isinstance(error, StepFailedError):
            kind = STEP_FAILED
        newest = max((content.modified for content in metrics.values()), default=None)
        return Refused(name, kind, str(error), None if newest is None else int(newest), _as_json(metrics, control))


def _metrics_key(name: str, step: str) -> str:
    return f"outputs/{name}/{step}_metrics.txt"


def _read(client: Any, target: S3Object, limit: int, expected: str) -> Content:
    for _ in range(TRIES - 1):
        with suppress(TryAgainError):
            return read_content(client, target, limit, expected)
    return read_content(client, target, limit, expected)


def _disk_gb(client: Any, bucket: str, job: Dataset) -> float:
    """GB (10^9 bytes) of the outputs of a job in the bucket."""
    target = S3Object(bucket, f"outputs/{job.name}/")
    with asking(target, "listed", "the outputs of a job"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=target.key)
        return sum(found["Size"] for page in pages for found in page.get("Contents", [])) / 1e9


def _as_json(metrics: Mapping[str, Content], control: bytes | None) -> str:
    """The beginnings of the files that were read, for the quarantine."""
    files = {f"{step}_metrics.txt": content.data for step, content in metrics.items()}
    files |= {"control": control} if control is not None else {}
    return json.dumps({name: data[:_SHOWN_BYTES].decode(errors="replace") for name, data in files.items()})
