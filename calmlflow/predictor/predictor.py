"""Answer single jobs with the version of the bundle that a registry stage holds."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import Features, job_features, switch_warnings
from calmlflow.hst.ladder import LADDER, Ladder
from calmlflow.predictor.answers import as_answers, fallback_policy, mosaic_policy
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.cache import Cache
from calmlflow.predictor.emit import Emitter, prediction_record
from calmlflow.predictor.logs import log_answer
from calmlflow.predictor.metrics import Tally, as_text, serve_page
from calmlflow.predictor.registry_client import StagedVersion, left_until, resolve_stage
from calmlflow.predictor.shadow import Shadow

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from calmlflow.predictor.batch import BatchOutcome

log = logging.getLogger(__name__)

# Seconds after which a predictor without a bundle asks the registry again, if ``refresh`` is longer.
RETRY_S = 10.0
# Time limits of a look for which nobody waits, and of the registry's part of any.
LOOK_S, ASK_S = 300.0, 60.0


@dataclass(frozen=True)
class Serving:
    """The bundle that answers at one moment, or None for the policy; ``staged`` is None for the bundle of an image."""

    bundle: Bundle | None
    version: str | None
    source: str
    staged: StagedVersion | None = None

    def answer(self, name: str, features: Features) -> dict[str, Any]:
        if self.bundle is None:
            return fallback_policy()
        outputs = self.bundle.run_known([features])
        found = self.bundle.answer(outputs, self.bundle.correct(outputs, [features], [name]))
        source = "policy" if "by_policy" in found else self.source
        return {**as_answers(found, self.bundle.ladder)[0], "version": self.version, "source": source}


def answer_mosaic(job: Dataset, emit: Emitter | None = None, tally: Tally | None = None) -> dict[str, Any]:
    """Answer a mosaic by policy, which needs no bundle."""
    began = time.perf_counter()
    answer = mosaic_policy()
    _record(job.name, None, answer, began, emit, tally)
    return answer


def _record(
    dataset: str,
    features: Features | None,
    answer: dict[str, Any],
    began: float,
    emit: Emitter | None,
    tally: Tally | None,
    ladder: Ladder = LADDER,
) -> None:
    """Log an answer, count it and emit it; a failure never costs the answer."""
    elapsed_ms = 1000 * (time.perf_counter() - began)
    log_answer(dataset, features, answer, elapsed_ms)
    if tally is not None:
        tally.count(answer, elapsed_ms)
    if emit is not None:
        try:
            emit(prediction_record(dataset, features, answer, time.time(), ladder))
        except Exception as error:
            log.warning("the prediction of %s was not kept (%s)", dataset, error)


class Predictor:
    """Answers from the version of the bundle in a stage. Safe to share between threads.

    Parameters
    ----------
    stage : str
        Staging, Production or Archived; or a version's number, an alias or latest, see `settings.parse_choice`.
    registry_uri : str, optional
        Default: `calmlflow.settings.registry_uri`.
    refresh : float
        Seconds, 0 or more, after which an answer triggers another look at the registry, in the background; infinity:
        never. The present version answers until a new one is loaded.
    timeout_s : float, optional
        Seconds in which the registry must give its version, files included; then the last good one is taken, or none.
        Default: `calmlflow.settings.timeout_s`.
    policy_fallback : bool
        Without a bundle, answer by `fallback_policy` instead of failing.
    emit : callable, optional
        Called with the record of every prediction, see `calmlflow.predictor.emit`; its failures are logged.
    shadow : str, optional
        What answers each job too, once its answer is out, as for ``stage``; needs ``emit``, which keeps both. See
        `calmlflow.predictor.shadow`.
    cache : Path, optional
        Folder of downloaded bundles. Default: `calmlflow.settings.cache_dir`.

    Raises
    ------
    CalmlflowError
        The stage is empty, or the registry or its artifact store is out of reach, no version is in the cache or the
        image, and ``policy_fallback`` is false.
    """

    def __init__(
        self,
        stage: str = "Production",
        registry_uri: str | None = None,
        *,
        refresh: float = 300.0,
        timeout_s: float | None = None,
        policy_fallback: bool = False,
        emit: Emitter | None = None,
        shadow: str = "",
        cache: Path | None = None,
    ):
        if not refresh >= 0:
            raise InputError(f"refresh is {refresh!r}; expected seconds, 0 or more")
        self._stage = settings.parse_choice(stage)
        self._registry_uri = registry_uri or settings.registry_uri()
        self._asks = registry_uri is not None or settings.baked_bundle() is None or settings.has_registry()
        self._cache = Cache(self._registry_uri, cache)
        self._refresh_s = refresh
        self._policy_fallback = policy_fallback
        self._emit = emit
        self._tally = Tally()
        self._shadow: Shadow | None = None
        if shadow and emit is None:
            log.warning("no shadow answers of %s, since no prediction is kept; expected emit", shadow)
        elif shadow and emit is not None:
            # A cache of its own: no answer waits for a lock that a shadow holds.
            own = (cache or settings.cache_dir()) / "shadow"
            self._shadow = Shadow(lambda: Predictor(shadow, registry_uri, cache=own), emit)
        # A wrong setting must not pass for a registry out of reach.
        default_s = settings.timeout_s()
        self.serving = Serving(None, None, "policy")
        self._next_check = 0.0
        self._checking: threading.Thread | None = None
        # What the registry said last.
        self._asked: StagedVersion | None = None
        try:
            self._serve(self._begin(default_s if timeout_s is None else timeout_s))
        except CalmlflowError as error:
            if not policy_fallback:
                raise
            log.warning("%s; answering by policy", error)
        self._plan_check()

    def predict(self, dataset: str, keys: Mapping[str, object]) -> dict[str, Any]:
        """Answer one job, an ipppssoot or a mosaic, by the keys of its control file, which a mosaic does not need.

        An InputError names dataset, key and value that break a rule.

        Returns
        -------
        dict
            ``memBin``, ``memVal`` (GB), ``clockTime`` (s), ``killTime`` (s), ``probabilities`` of the bins,
            ``unseen`` (true for a job unlike any in training), ``evidence`` (finished jobs behind the answer: row,
            programme, visit, run), ``warnings`` (sentences), ``version`` of the bundle, and ``source``: registry, cache
            (registry or version out of reach) or policy (with ``fallback`` true if it replaces a bundle).
        """
        return self._answer(dataset, keys)[0]

    def explain(self, dataset: str, keys: Mapping[str, object]) -> dict[str, Any]:
        """Answer one job as `predict` does, and explain the answer, see `calmlflow.predictor.explain.explain`."""
        # The explanation is loaded for those who ask for it.
        from calmlflow.predictor.explain import explain

        return explain(*self._answer(dataset, keys))

    def _answer(
        self, dataset: str, keys: Mapping[str, object]
    ) -> tuple[dict[str, Any], str, Features | None, Bundle | None]:
        """An answer, kept and logged, with the dataset's name, its features and the bundle that gave it."""
        job = parse_dataset(dataset)
        if job.is_hap:
            return answer_mosaic(job, self._emit, self._tally), job.name, None, None
        if not isinstance(keys, Mapping):
            raise InputError(f"{job.name}: the keys are a {type(keys).__name__}; expected a mapping of key to value")
        began = time.perf_counter()
        self._refresh_if_due()
        features = job_features(job.name, keys)
        # Another version may take over at any moment.
        serving = self.serving
        answer = serving.answer(job.name, features)
        answer["warnings"] += switch_warnings(job.name, keys)
        ladder = serving.bundle.ladder if serving.bundle else LADDER
        _record(job.name, features, answer, began, self._emit, self._tally, ladder)
        if self._shadow:
            self._shadow.follow(job.name, features, serving.version)
        return answer, job.name, features, serving.bundle

    def metrics(self) -> str:
        """What this process has answered, and by which version, in the text format of Prometheus (0.0.4)."""
        serving, stage = self.serving, self._stage
        labels = {"stage": stage, "version": serving.version or "none", "source": serving.source}
        outcomes = self._shadow.outcomes.copy() if self._shadow else {}
        shadow = [("calmlflow_shadow_answers_total", {"outcome": each}, n) for each, n in outcomes.items()]
        return as_text([("calmlflow_predictor_info", labels, 1), *self._tally.samples(stage), *shadow])

    def serve_metrics(self, port: int) -> "WSGIServer":
        """Serve `metrics` at ``http://127.0.0.1:{port}/metrics`` in the background, until the process ends.

        For a process that has no web pages of its own. Port 0 takes a free one: ``server_port`` of what is returned.
        """
        return serve_page(port, self.metrics)

    def predict_many(self, data: Any, output: str | Path, **options: Any) -> "BatchOutcome":
        """Answer many jobs, see `calmlflow.predictor.batch.predict_many`."""
        # pyarrow is loaded for many jobs only.
        from calmlflow.predictor.batch import predict_many

        self._refresh_if_due()
        return predict_many(self.serving, data, output, **options)

    def look(self, timeout_s: float) -> None:
        """Look for a new version now, for ``timeout_s`` at most, if ``refresh`` seconds have passed.

        For a process that is frozen between two answers, where nothing happens in the background.
        """
        if time.monotonic() >= self._next_check and self._asks:
            self._check(timeout_s)

    def _refresh_if_due(self) -> None:
        """Ask the registry in the background if ``refresh`` seconds have passed since it was asked."""
        now = time.monotonic()
        if now < self._next_check or not self._asks:
            return
        self._next_check = now + RETRY_S
        # Of a check that began before a fork, the child sees a thread that has ended.
        if self._checking and self._checking.is_alive():
            return
        self._checking = threading.Thread(target=self._check, name="calmlflow-refresh", daemon=True)
        try:
            self._checking.start()
        except RuntimeError as error:
            self._plan_check()
            log.warning("looking for a new version must wait (%s)", error)

    def _check(self, timeout_s: float | None = None) -> None:
        """Look for a new version; without ``timeout_s`` nobody waits."""
        try:
            self._serve(self._pull(timeout_s) if self.serving.bundle else self._begin(timeout_s))
        except CalmlflowError as error:
            log.warning("%s; answering with %s as before", error, self.serving.version or "the policy")
            # The version in memory is newer than any on disk.
            if self.serving.bundle:
                self.serving = replace(self.serving, source="cache")
        except Exception:
            log.exception("looking for a new version failed; answering with %s as before", self.serving.version)
        finally:
            self._plan_check()

    def _serve(self, serving: Serving) -> None:
        """Answer with a bundle from now on, and tell once if its memory bins are not those in force."""
        bundle = serving.bundle
        if bundle and bundle is not self.serving.bundle and not bundle.ladder.has_bins_of(LADDER):
            log.warning(
                "version %s answers with bins of %s; expected those of %s, which is in force",
                serving.version,
                bundle.ladder,
                LADDER,
            )
        self.serving = serving

    def _plan_check(self) -> None:
        wait_s = self._refresh_s if self.serving.bundle else min(self._refresh_s, RETRY_S)
        self._next_check = time.monotonic() + wait_s

    def _begin(self, timeout_s: float | None) -> Serving:
        """The version in the stage, or else the last good one: a stage that is empty never empties a predictor."""
        baked = settings.baked_bundle()
        if baked and not self._asks:
            return _load_baked(baked)
        try:
            return self._pull(timeout_s)
        except Exception as error:
            if not isinstance(error, CalmlflowError):
                log.exception("asking the registry failed")
            return self._last_good(error)

    def _pull(self, timeout_s: float | None) -> Serving:
        """The version in the stage, as the registry has it now, within ``timeout_s``; None: nobody waits."""
        deadline = time.monotonic() + (LOOK_S if timeout_s is None else timeout_s)
        if self.serving.bundle or settings.baked_bundle() or self._cache.recall(self._stage):
            return self._ask(deadline, hurried=timeout_s is not None)
        # Of processes that start together without a version, one asks and fetches for all.
        with self._cache.alone("ask", deadline):
            for staged in self._cache.recall(self._stage)[:1]:
                if bundle := self._cache.load_kept(staged):
                    return Serving(bundle, staged.version, "registry", staged)
            return self._ask(deadline, hurried=False)

    def _ask(self, deadline: float, hurried: bool) -> Serving:
        self._asked = staged = resolve_stage(self._stage, self._registry_uri, min(left_until(deadline), ASK_S))
        if staged == self.serving.staged:
            return replace(self.serving, source="registry")
        bundle = self._cache.load(staged, left_until(deadline), hurried)
        if self._cache.remember(self._stage, staged) and not staged.recorded:
            log.warning(
                "version %s was moved to %s without the gate; expected `calmlflow promote`, or `calmlflow stages "
                "--repair` to record it",
                staged.version,
                self._stage,
            )
        return Serving(bundle, staged.version, "registry", staged)

    def _last_good(self, error: Exception) -> Serving:
        """The version that the stage held last, or before that, or that an image carries; else raise the error."""
        for noted in self._cache.recall(self._stage):
            # The registry's digest counts, not the one that it had when the version was noted.
            staged = self._asked if self._asked and self._asked.folder == noted.folder else noted
            if bundle := self._cache.load_kept(staged):
                log.warning("%s; answering with version %s from the cache", error, staged.version)
                return Serving(bundle, staged.version, "cache", staged)
        if folder := settings.baked_bundle():
            baked = _load_baked(folder)
            log.warning("%s; answering with version %s of the image", error, baked.version)
            return baked
        raise error


def _load_baked(folder: Path) -> Serving:
    """The bundle of a folder whose ``version.json`` names its version."""
    try:
        version = str(json.loads((folder / "version.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder}/version.json cannot be read; expected the version of the bundle there: bake the image again"
        ) from error
    return Serving(Bundle.load(folder, settings.NETWORKS), version, "cache")
