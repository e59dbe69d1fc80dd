"""The answer to one job, from the version that a stage holds; every time."""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmlflow import settings
from calmlflow.errors import CalmlflowError, InputError
from calmlflow.hst.dataset import Dataset, parse_dataset
from calmlflow.hst.features import Features, job_features
from calmlflow.predictor.answers import as_answers, fallback_policy, mosaic_policy
from calmlflow.predictor.bundle import Bundle
from calmlflow.predictor.cache import HURRIED, PATIENCE, Cache
from calmlflow.predictor.emit import Emitter, prediction_record
from calmlflow.predictor.logs import log_answer
from calmlflow.predictor.stage import NoSuchVersionError, StagedVersion, resolve_stage

if TYPE_CHECKING:
    from calmlflow.predictor.batch import BatchOutcome

log = logging.getLogger(__name__)

MAX_KNOWN = 50_000
"""Answers that are kept: the archive's 45,000 jobs have 818 different rows of features."""

RETRY_S = 10.0
"""Seconds after which a predictor without a bundle asks again, where ``refresh`` is longer."""


@dataclass(frozen=True)
class Serving:
    """What answers at one moment.

    Attributes
    ----------
    bundle : Bundle or None
        None where none can be had and the policy answers.
    version : str or None
        Of the bundle.
    source : str
        ``registry``; ``cache`` where the registry could not be asked, or what it holds could not be had; ``policy``.
    staged : StagedVersion, optional
        What the bundle is; None for one that an image brings.
    known : dict
        Answers so far.
    """

    bundle: Bundle | None
    version: str | None
    source: str
    staged: StagedVersion | None = None
    known: dict[Features, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def answer(self, features: Features) -> dict[str, Any]:
        """The answer to a job; to one of features that were asked before, the same again."""
        if self.bundle is None:
            return fallback_policy()
        found = self.known.get(features)
        if found is None:
            (found,) = as_answers(self.bundle.predict([features]))
            if len(self.known) < MAX_KNOWN:
                self.known[features] = found
        # The caller's own, whatever he does with it.
        return {**found, "probabilities": [*found["probabilities"]], "version": self.version, "source": self.source}


def answer_mosaic(job: Dataset, emit: Emitter | None = None) -> dict[str, Any]:
    """Answer a mosaic by policy, for which no bundle, and so no `Predictor`, is needed."""
    began = time.perf_counter()
    answer = mosaic_policy()
    _tell(job.name, None, answer, began, emit)
    return answer


def _tell(dataset: str, features: Features | None, answer: dict[str, Any], began: float, emit: Emitter | None) -> None:
    """Log an answer, and keep it where it is wanted; neither may cost it."""
    log_answer(dataset, features, answer, 1000 * (time.perf_counter() - began))
    if emit is not None:
        try:
            emit(prediction_record(dataset, features, answer, time.time()))
        except Exception as error:
            log.warning("the prediction of %s was not kept (%s)", dataset, error)


class Predictor:
    """Answers from the version of the bundle that a stage holds. Safe to share between threads.

    Parameters
    ----------
    stage : str
        Staging, Production or Archived.
    registry_uri : str, optional
        Default: `calmlflow.settings.registry_uri`.
    refresh : float
        Seconds, 0 or more, after which an answer has the registry asked again, in the background; infinity: never.
        Until a new version is loaded the one before it goes on answering.
    policy_fallback : bool
        Where no bundle can be had, answer by `fallback_policy` instead of failing.
    emit : callable, optional
        Called with the record of every prediction, see `calmlflow.predictor.emit`; its failures are logged.

    Raises
    ------
    CalmlflowError
        No bundle can be had, and ``policy_fallback`` is false: the stage holds none, or the registry cannot be asked
        and none is cached.

    Examples
    --------
    >>> Predictor("Production").predict("j8c601020", {"n_files": 17, "total_mb": 9.6})  # doctest: +SKIP
    {'memBin': 0, ...}
    """

    def __init__(
        self,
        stage: str = "Production",
        registry_uri: str | None = None,
        *,
        refresh: float = 300.0,
        policy_fallback: bool = False,
        emit: Emitter | None = None,
    ):
        if not refresh >= 0:
            raise InputError(f"refresh is {refresh!r}; expected seconds, 0 or more")
        self._stage = settings.parse_stage(stage)
        self._registry_uri = registry_uri or settings.registry_uri()
        self._asks = registry_uri is not None or settings.baked_bundle() is None or settings.has_registry()
        self._cache = Cache(self._registry_uri)
        self._refresh_s = refresh
        self._policy_fallback = policy_fallback
        self._emit = emit
        # A setting that cannot be read is its owner's fault, and no registry that is away.
        settings.timeout_s()
        self.serving = Serving(None, None, "policy")
        self._checking, self._process = threading.Lock(), os.getpid()
        try:
            self.serving = self._begin()
        except CalmlflowError as error:
            if not policy_fallback:
                raise
            log.warning("%s; answering by policy", error)
        self._plan_check()

    @property
    def bundle(self) -> Bundle | None:
        """See `Serving`."""
        return self.serving.bundle

    @property
    def version(self) -> str | None:
        """See `Serving`."""
        return self.serving.version

    @property
    def source(self) -> str:
        """See `Serving`."""
        return self.serving.source

    def predict(self, dataset: str, keys: Mapping[str, object]) -> dict[str, Any]:
        """Answer one job.

        Parameters
        ----------
        dataset : str
            ipppssoot, or a mosaic's name.
        keys : mapping
            The control file's keys; see `calmlflow.hst.features.job_features`. Not looked at for a mosaic.

        Returns
        -------
        dict
            ``memBin``, ``memVal`` (GB), ``clockTime`` (s), ``killTime`` (s), ``probabilities`` of the four bins,
            ``unseen`` (true for a job unlike any in training), ``version`` of the bundle, and ``source``: registry,
            cache or policy (with ``fallback``: true where it stands in for a bundle).

        Raises
        ------
        InputError
            Name or keys break a rule; names dataset, key and value.
        """
        job = parse_dataset(dataset)
        if job.is_hap:
            return answer_mosaic(job, self._emit)
        if not isinstance(keys, Mapping):
            raise InputError(f"{job.name}: the keys are a {type(keys).__name__}; expected a mapping of key to value")
        began = time.perf_counter()
        self.refresh_if_due()
        features = job_features(job.name, keys)
        answer = self.serving.answer(features)
        _tell(job.name, features, answer, began, self._emit)
        return answer

    def predict_many(self, data: Any, output: Any, **options: Any) -> "BatchOutcome":
        """Answer many jobs, see `calmlflow.predictor.batch.predict_many`, which takes the same and some options more.

        Parameters
        ----------
        data : str, Path, DataFrame, or Arrow Table or iterable of RecordBatch
            A CSV or Parquet file, a folder of Parquet files, or ``s3://`` of a file or of control files.
        output : str or Path
            CSV or Parquet by its ending, here or in S3. Rows that break a rule go to ``*.errors.csv`` beside it.
        """
        # Arrow is for many jobs only.
        from calmlflow.predictor.batch import predict_many

        self.refresh_if_due()
        return predict_many(self, data, output, **options)

    # -- Which version answers ----------------------------------------------------------------------------------------

    def refresh_if_due(self) -> None:
        """Have the registry asked in the background, if the last time was ``refresh`` seconds ago and nobody asks."""
        if time.monotonic() < self._next_check or not self._asks:
            return
        if self._process != os.getpid():
            # A fork during a check: the thread that would end it is the parent's.
            self._checking, self._process = threading.Lock(), os.getpid()
        if self._checking.acquire(blocking=False):
            try:
                threading.Thread(target=self._check, name="calmlflow-refresh", daemon=True).start()
            except RuntimeError as error:
                self._plan_check()
                self._checking.release()
                log.warning("looking for a new version must wait (%s)", error)

    def _check(self) -> None:
        try:
            self.serving = self._pull() if self.serving.bundle else self._begin()
        except CalmlflowError as error:
            log.warning("%s; answering with %s as before", error, self.serving.version or "the policy")
            # What has answered so far goes on: better than none, and than an older one on disk.
            if self.serving.bundle:
                self.serving = replace(self.serving, source="cache")
        except Exception:
            log.exception("looking for a new version failed; answering with %s as before", self.serving.version)
        finally:
            self._plan_check()
            self._checking.release()

    def _plan_check(self) -> None:
        wait_s = self._refresh_s if self.serving.bundle else min(self._refresh_s, RETRY_S)
        self._next_check = time.monotonic() + wait_s

    def _begin(self) -> Serving:
        """What the registry's stage holds, or else the last good bundle."""
        baked = settings.baked_bundle()
        if baked and not self._asks:
            return _load_baked(baked)
        try:
            return self._pull_first()
        except NoSuchVersionError:
            # An answer, and a clear one: the stage was emptied.
            raise
        except CalmlflowError as error:
            return self._last_good(error)
        except Exception as error:
            log.exception("asking the registry failed")
            return self._last_good(error)

    def _pull_first(self) -> Serving:
        """As `_pull`; where nothing is known yet, one of the processes that start together asks for all of them."""
        if self._cache.recall(self._stage) or settings.baked_bundle():
            return self._pull()
        patience = HURRIED if self._policy_fallback else PATIENCE
        with self._cache.alone("ask", patience * settings.timeout_s()):
            # Noted while this one waited, so no older than an answer of its own.
            for staged in self._cache.recall(self._stage)[:1]:
                bundle = self._cache.load_kept(staged)
                if bundle:
                    return Serving(bundle, staged.version, "registry", staged)
            return self._pull()

    def _pull(self) -> Serving:
        """What the registry's stage holds."""
        staged = resolve_stage(self._stage, self._registry_uri)
        if staged == self.serving.staged:
            return replace(self.serving, source="registry")
        hurried = bool(self.serving.bundle or self._cache.recall(self._stage) or settings.baked_bundle())
        bundle = self._cache.load(staged, hurried)
        self._cache.remember(self._stage, staged)
        return Serving(bundle, staged.version, "registry", staged)

    def _last_good(self, error: Exception) -> Serving:
        """What the stage held when it was last asked, or before that, or what an image brings; else raise the error."""
        for staged in self._cache.recall(self._stage):
            bundle = self._cache.load_kept(staged)
            if bundle:
                log.warning("%s; answering with version %s from the cache", error, staged.version)
                return Serving(bundle, staged.version, "cache", staged)
        folder = settings.baked_bundle()
        if not folder:
            raise error
        baked = _load_baked(folder)
        log.warning("%s; answering with version %s of the image", error, baked.version)
        return baked


def _load_baked(folder: Path) -> Serving:
    """The bundle of a folder whose ``version.json`` tells its version."""
    try:
        version = str(json.loads((folder / "version.json").read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{folder}/version.json cannot be used; expected the version of the bundle there: bake the image anew"
        ) from None
    return Serving(Bundle.load(folder, settings.NETWORKS), version, "cache")
