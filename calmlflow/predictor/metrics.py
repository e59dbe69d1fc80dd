"""Metrics for Prometheus (text format 0.0.4) and CloudWatch (embedded metric format): names, counters, rendering."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from calmlflow.errors import CalmlflowError
from calmlflow.settings import HOST

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

# Name -> kind and help of every metric of a running predictor and of `calmlflow jobs status`.
METRICS = {
    "calmlflow_predictor_info": ("gauge", "Version that answers now; the value is 1."),
    "calmlflow_answers_total": ("counter", "Answers by source: registry, cache or policy."),
    "calmlflow_unseen_answers_total": ("counter", "Answers to jobs unlike any of the training."),
    "calmlflow_answer_milliseconds": ("histogram", "Time of an answer; control file and record are not in it."),
    "calmlflow_shadow_answers_total": ("counter", "Answers of the shadow stage: kept, same (version) or failed."),
    "calmlflow_status_timestamp_seconds": ("gauge", "When the store of job records was looked at."),
    "calmlflow_store_healthy": ("gauge", "1: the store is healthy; 0: see calmlflow jobs status."),
    "calmlflow_records": ("gauge", "Finished jobs in the store."),
    "calmlflow_newest_job_age_seconds": ("gauge", "Time since the newest finished job ended."),
    "calmlflow_quarantine_open": ("gauge", "Open quarantine entries by kind."),
    "calmlflow_killed_jobs": ("gauge", "Killed jobs of the last 7 days by what killed them."),
    "calmlflow_realised_jobs": ("gauge", "Jobs with a prediction that ended in the last 30 days."),
    "calmlflow_realised_coverage": ("gauge", "Share of these that ended before their kill time."),
    "calmlflow_realised_excess_dollars": ("gauge", "Dollars that these cost beyond a perfect choice of memory bins."),
    "calmlflow_realised_excess_cost": ("gauge", "The same as a share of what a perfect choice costs."),
}

BUCKETS_MS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 100.0, 1000.0)

Sample = tuple[str, Mapping[str, str], float]
"""Name (of a histogram with ``_bucket``, ``_sum`` or ``_count``), labels and value."""


def as_text(samples: Iterable[Sample]) -> str:
    """Samples of `METRICS` in the text format of Prometheus, each metric with its lines HELP and TYPE."""
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        metric = name if name in METRICS else name.rpartition("_")[0]
        lines[metric].append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    heads = {name: [f"# HELP {name} {text}", f"# TYPE {name} {kind}"] for name, (kind, text) in METRICS.items()}
    return "".join(f"{line}\n" for name, found in lines.items() if found for line in heads[name] + found)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Tally:
    """Count answers. Safe to share between threads."""

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self._sources: Counter[str] = Counter()
        self._unseen, self._sum_ms = 0, 0.0
        # The last bucket has no bound.
        self._buckets = [0] * (len(BUCKETS_MS) + 1)

    def count(self, answer: Mapping[str, Any], elapsed_ms: float) -> None:
        with self._counting:
            self._sources[answer["source"]] += 1
            self._unseen += bool(answer.get("unseen"))
            self._sum_ms += elapsed_ms
            self._buckets[bisect_left(BUCKETS_MS, elapsed_ms)] += 1

    def samples(self, stage: str) -> list[Sample]:
        labels, name = {"stage": stage}, "calmlflow_answer_milliseconds"
        with self._counting:
            counts = list(accumulate(self._buckets))
            bounds = zip([*map(str, BUCKETS_MS), "+Inf"], counts, strict=True)
            return [
                *(("calmlflow_answers_total", {**labels, "source": source}, n) for source, n in self._sources.items()),
                ("calmlflow_unseen_answers_total", labels, self._unseen),
                *((f"{name}_bucket", {**labels, "le": bound}, n) for bound, n in bounds),
                (f"{name}_sum", labels, round(self._sum_ms, 3)),
                (f"{name}_count", labels, counts[-1]),
            ]


def emf(
    metrics: Mapping[str, tuple[float, str]], dimensions: Mapping[str, str], sets: Sequence[Sequence[str]], now: float
) -> dict[str, Any]:
    """Metrics, name -> value and unit, as one object in CloudWatch's embedded metric format.

    ``sets`` are the sets of dimensions by which CloudWatch adds them up; ``now`` is in epoch seconds.
    """
    named = [{"Name": name, "Unit": unit} for name, (_, unit) in metrics.items()]
    directive = {"Namespace": "calmlflow", "Dimensions": sets, "Metrics": named}
    values = {name: value for name, (value, _) in metrics.items()}
    return {"_aws": {"Timestamp": int(1000 * now), "CloudWatchMetrics": [directive]}, **dimensions, **values}


def answer_emf(answer: Mapping[str, Any], source: str, elapsed_ms: float, stage: str, now: float) -> dict[str, Any]:
    """The metrics of one answer, by stage, and by stage and source."""
    unseen = int(bool(answer.get("unseen")))
    metrics = {"Answers": (1, "Count"), "Unseen": (unseen, "Count"), "Milliseconds": (elapsed_ms, "Milliseconds")}
    return emf(metrics, {"Stage": stage, "Source": source}, [["Stage"], ["Stage", "Source"]], now)


def serve_page(port: int, text: Callable[[], str]) -> "WSGIServer":
    """Serve a text that is made anew for each request, see `Predictor.serve_metrics`."""
    # Loaded for those who ask for it.
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        # Seconds for a client that says nothing.
        timeout = 5

        def log_message(self, *words: object) -> None:
            """Nothing is logged of a page that is asked for every few seconds."""

    def page(_: object, start: Callable[..., object]) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")])
        return [text().encode()]

    try:
        server = make_server(HOST, port, page, handler_class=Quiet)
    except (OSError, OverflowError) as error:
        raise CalmlflowError(f"metrics cannot be served on port {port} ({error}); expected a free port") from error
    threading.Thread(target=server.serve_forever, name="calmlflow-metrics", daemon=True).start()
    return server
