"""Finished jobs from S3 into a store: whatever is there gets stored, or quarantined with its reason, or is pending."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import pandas as pd

from calmlflow.errors import CalmlflowError
from calmlflow.jobs.finished import Found, Refused, Unread, changed_since, read_finished
from calmlflow.jobs.quarantine import IMPOSSIBLE
from calmlflow.jobs.stores.base import JOBS, MOSAICS, QUARANTINE, Store
from calmlflow.jobs.upsert import Batch, Counts, keep
from calmlflow.storage.s3 import NoSuchBucketError, S3Object, asking, new_client

WORKERS = 32
"""Datasets that are read at once: at 20 ms a request S3 is what one waits for, at 1 ms the processor."""

BATCH = 500
"""Jobs that are stored in one change, and at most read anew after a kill."""

CLOCKS_APART_S = 300.0
"""S3's clock and this machine's may differ by so much; in doubt a dataset is read once more."""

Outcome = Found | Refused | Unread
OnProgress = Callable[[int, int | None], None]


@dataclass
class Ingested:
    """What became of the datasets that were looked at.

    Attributes
    ----------
    counts : Counts
        Of those that were read.
    known : int
        Stored or in the quarantine already, and not read again.
    pending : dict of str to str
        Dataset -> why S3 did not let it be read. The same command tries them again.
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
        """Datasets that were looked at; each is counted once."""
        return self.counts.total + self.known + len(self.pending)

    def figures(self) -> dict[str, float]:
        """Counts by name, for metrics and for scripts."""
        counted = {"datasets": self.total, **vars(self.counts), "known": self.known, "pending": len(self.pending)}
        return {**counted, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        counted = {**vars(self.counts), "known": self.known, "pending": len(self.pending)}
        shown = ", ".join(f"{number:,} {name}" for name, number in counted.items() if number)
        kinds = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self.reasons.items()))
        return f"{self.total:,} datasets in {self.seconds:.1f} s: {shown or 'nothing'}" + (
            f" ({kinds})" if kinds else ""
        )


def ingest(
    store: Store,
    bucket: str,
    datasets: Iterable[str] | Literal["new", "all"] = "new",
    *,
    retry_quarantine: bool = False,
    client: Any = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Ingested:
    """Read finished jobs from a bucket and put them into a store.

    Safe to run again and beside others: the same job twice is one record, and the newer one wins. What is interrupted
    goes on where it was: at most `BATCH` jobs are read anew.

    Parameters
    ----------
    store : Store
    bucket : str
    datasets : iterable of str, or "new" or "all"
        Those to read; "new": every dataset under ``outputs/`` that is neither stored nor, unless its files have changed
        since, in the quarantine; "all": every one of them.
    retry_quarantine : bool
        Also read those in the quarantine whose files have not changed (after a fix of this program, say).
    client : optional
        Of S3; default: one with boto3's own settings.
    on_progress : callable
        Called with the datasets done and, where it is known, their number.

    Raises
    ------
    NoSuchBucketError
        There is no such bucket.
    CalmlflowError
        The bucket cannot be listed, or the store cannot be written. What S3 does not let be read of single datasets
        counts as pending instead.
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
            done.known += 1
        else:
            batch.append(outcome)
            # What changes after it was read must be seen to be newer than what is kept of it.
            begun = min(begun, since)
        if len(batch) >= BATCH:
            _keep(store, batch, source, done, begun)
            batch, begun = [], time.time()
        on_progress(done.total + len(batch), len(names))
    _keep(store, batch, source, done, begun)
    done.seconds = time.perf_counter() - started
    return done


_ALWAYS = -math.inf


def _listed(client: Any, bucket: str) -> Iterator[str]:
    """Names of the folders under ``outputs/``."""
    with asking(S3Object(bucket, "outputs/"), "listed", "a bucket of finished jobs"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="outputs/", Delimiter="/")
        for page in pages:
            for folder in page.get("CommonPrefixes", []):
                yield folder["Prefix"].removeprefix("outputs/").removesuffix("/")


def _plan(store: Store, names: Iterable[str], source: str, retry_quarantine: bool) -> dict[str, float]:
    """Dataset that may be new -> the moment after which its files must have changed to be read.

    What another bucket has of it in the quarantine says nothing of this one.
    """
    known = {name for table in (JOBS, MOSAICS) for part in store.read(table, ["ipst"]) for name in part["ipst"]}
    refused: dict[str, float] = {}
    dismissed: dict[str, float] = {}
    for part in store.read(QUARANTINE, ["ipst", "digest", "source", "last_seen", "resolved_at"]):
        here = part[part["digest"].fillna("").eq("") & part["source"].eq(source)]
        is_open = here["resolved_at"].isna()
        for seen, entries in ((refused, here[is_open]), (dismissed, here[~is_open])):
            seen.update(zip(entries["ipst"], entries["last_seen"].astype(float) - CLOCKS_APART_S, strict=True))
    # A rerun that failed is in the quarantine beside the record of the run before it. What somebody settled without its
    # being stored stays settled until its files change.
    wanted = [name for name in names if name in refused or name not in known]
    if retry_quarantine:
        return {name: _ALWAYS for name in wanted if name in refused or name not in dismissed}
    return {name: refused.get(name, dismissed.get(name, _ALWAYS)) for name in wanted}


def _read_all(client: Any, bucket: str, plan: Mapping[str, float]) -> Iterator[tuple[float, Outcome | None]]:
    """Read datasets, several at once, as they come: when reading began, and None for one that has not changed."""
    with ThreadPoolExecutor(WORKERS, "calmlflow-ingest") as pool:
        left = iter(plan.items())
        # Few more than are read just now: what was read and is not stored yet waits in memory.
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
        if since > _ALWAYS and not changed_since(client, bucket, name, since):
            return begun, None
        return begun, read_finished(client, bucket, name)
    except NoSuchBucketError:
        raise
    except CalmlflowError as error:
        return begun, Unread(name, str(error))


def _keep(store: Store, outcomes: list[Outcome], source: str, done: Ingested, begun: float) -> None:
    """Store what was read, and count it."""
    jobs = [outcome.record for outcome in outcomes if isinstance(outcome, Found) and not outcome.is_mosaic]
    mosaics = [outcome.record for outcome in outcomes if isinstance(outcome, Found) and outcome.is_mosaic]
    refused = [outcome._asdict() for outcome in outcomes if isinstance(outcome, Refused)]
    batch = Batch(pd.DataFrame(jobs), pd.DataFrame(mosaics), pd.DataFrame(refused))
    counts = keep(store, batch, source, begun, alone=True) if jobs or mosaics or refused else Counts()
    done.counts += counts
    kinds = Counter(entry["kind"] for entry in refused)
    kinds[IMPOSSIBLE] += counts.quarantined - len(refused)
    done.reasons = dict(Counter(done.reasons) + kinds)
    done.pending |= {outcome.ipst: outcome.reason for outcome in outcomes if isinstance(outcome, Unread)}
