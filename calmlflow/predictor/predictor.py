"""The answer to one job."""

import logging
from collections.abc import Mapping
from typing import Any

from calmlflow import settings
from calmlflow.hst.dataset import parse_dataset
from calmlflow.hst.errors import CalmlflowError
from calmlflow.hst.features import job_features
from calmlflow.hst.ladder import LADDER
from calmlflow.predictor.bundle import Bundle, Predictions
from calmlflow.predictor.registry_http import AccessDeniedError
from calmlflow.predictor.stage import Cache, NoSuchVersionError, resolve_stage

log = logging.getLogger(__name__)


def mosaic_policy() -> dict[str, Any]:
    """The answer for a mosaic, which no network covers: the 8g rung and three days."""
    return {
        "memBin": 1,
        "memVal": round(LADDER[1].limit_gb, 2),
        "clockTime": 43_200,
        "killTime": 259_200,
        "probabilities": [0.0, 1.0, 0.0, 0.0],
        "unseen": False,
        "version": None,
        "source": "policy",
    }


class Predictor:
    """Answers from the version of the bundle that a stage holds.

    Parameters
    ----------
    stage : str
        Staging, Production or Archived.
    registry_uri : str, optional
        Default: `calmlflow.settings.registry_uri`.

    Raises
    ------
    CalmlflowError
        No bundle can be had: the stage holds none, or the registry cannot be asked and none is cached.
    """

    def __init__(self, stage: str = "Production", registry_uri: str | None = None):
        stage = settings.parse_stage(stage)
        registry_uri = registry_uri or settings.registry_uri()
        cache = Cache(registry_uri)
        self.source = "registry"
        try:
            staged = resolve_stage(stage, registry_uri)
            self.bundle: Bundle = cache.load(staged)
            cache.remember(stage, staged)
        except (NoSuchVersionError, AccessDeniedError):
            raise
        except CalmlflowError as error:
            # Out of reach, or a version that is no bundle: the last good one is better than no answer.
            remembered = cache.recall(stage)
            if remembered is None:
                raise
            log.warning("%s; answering with version %s from the cache", error, remembered.version)
            self.bundle, staged, self.source = cache.load(remembered), remembered, "cache"
        self.version = staged.version

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
            cache or policy.
        """
        if parse_dataset(dataset).is_hap:
            return mosaic_policy()
        found = self.bundle.predict([job_features(dataset, keys)])
        return {**as_answers(found)[0], "version": self.version, "source": self.source}


def as_answers(found: Predictions) -> list[dict[str, Any]]:
    """Predictions of n jobs in the words of the answer; a key is left out where the bundle lacks its network."""
    columns: dict[str, list[Any]] = {}
    if "bin_pred" in found:
        columns["memBin"] = found["bin_pred"].tolist()
        columns["probabilities"] = [[round(p, 6) for p in row] for row in found["probabilities"].tolist()]
        columns["unseen"] = found["unseen"].tolist() if "unseen" in found else [False] * len(columns["memBin"])
    if "mem_pred" in found:
        columns["memVal"] = [round(value, 2) for value in found["mem_pred"].tolist()]
    if "wall_pred" in found:
        columns["clockTime"] = [int(value) for value in found["wall_pred"].tolist()]
        columns["killTime"] = found["kill_time"].tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
