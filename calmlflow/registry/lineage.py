"""What a registered version says of itself, as tags: the jobs it saw, its scores, and the run of each part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from calmlflow.settings import TARGETS

HEADLINES = {
    "mem_bin": ("accuracy", "recall_2g", "recall_8g", "recall_16g", "recall_64g", "excess_cost"),
    "memory": ("rmse", "mae"),
    "wallclock": ("rmse", "mae", "kill_time_coverage", "kill_time_reserved"),
}
"""Target -> the scores that a version is judged by, and carries as tags; see `calmlflow.results.scoring`."""


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    Attributes
    ----------
    data : str
        URI of the jobs.
    jobs : int
        How many it was trained on, or 0 where that is not known.
    newest_job : int
        Timestamp of the newest of them, epoch seconds; 0 where it is not known.
    seed : int or None
    scores : dict of dict of float
        Target -> score -> value, of its own held-out jobs; a target that was not scored is absent.
    runs : dict of str to str
        Network -> id of the run that trained it.
    """

    data: str
    jobs: int
    newest_job: int
    seed: int | None
    scores: Mapping[str, Mapping[str, float]]
    runs: Mapping[str, str]

    @classmethod
    def of_training(
        cls,
        data: str,
        trained_on: pd.DataFrame,
        seed: int,
        scores: Mapping[str, Mapping[str, float]],
        runs: Mapping[str, str],
    ) -> "Lineage":
        """Lineage of networks that were trained on these job records."""
        return cls(data, len(trained_on), int(trained_on["timestamp"].max()), seed, scores, runs)

    def tags(self, networks: Sequence[str]) -> dict[str, str]:
        """Tags of a version that holds these networks.

        ``data``, ``jobs``, ``newest_job``, ``seed``, ``run.{network}`` and ``score.{target}.{score}``.
        """
        found = {"data": self.data, "jobs": str(self.jobs), "newest_job": str(self.newest_job)}
        if self.seed is not None:
            found["seed"] = str(self.seed)
        for network in networks:
            if network in self.runs:
                found[f"run.{network}"] = self.runs[network]
            target = TARGETS[network]
            scores = self.scores.get(target, {})
            found |= {f"score.{target}.{name}": f"{scores[name]:.6g}" for name in HEADLINES[target] if name in scores}
        return found
